"""Whether distillation helped: the sentence of each case, the interval, what to try next, and when nothing can be said."""

import numpy as np
import pytest
import torch

from kdcli.base.result import Result
from kdcli.config.parse import parse_config
from kdcli.plan.plan import Decision, Plan
from kdcli.results.outcome import compare_with_alone, lines_of
from kdcli.runs.folder import RunFolder
from kdcli.statistics.intervals import RESAMPLES, bootstrap_differences

PROJECTION = {"method": "projection", "projector": "inverted", "weight": 0.3}
WEAK = {"accuracy": 0.11, "level": "near", "of_input": 0.5, "samples": 500}


def shares(hits):
    return torch.stack([torch.as_tensor(hits).double(), torch.ones(len(hits), dtype=torch.float64)], dim=1)


def run_of(path, hits, *, split="test", metric="accuracy", relation="cross", task="image-classification", **more):
    """A finished run whose student answers each sample as ``hits`` say."""
    run = RunFolder.create(path)
    plan = {"teacher_probe": more.pop("probe", None), "unread": more.pop("unread", ())}
    measured = {metric: float(np.mean(hits))} | more.pop("metrics", {})
    epoch, teacher = more.pop("epoch", 3), more.pop("teacher", {})
    values = {
        "teacher": "resnet50", "student": "resnet18", "data": "my photos", "task": task, "seed": 7,
        "train": {"epochs": 8}, "methods": [{"method": "supervised"}, PROJECTION], **more,
    }  # fmt: skip
    config = parse_config(values, source="test")
    decisions = (Decision("relation", relation, "Because."), Decision("training", "8 epochs", "So."))
    run.write_plan(Plan(relation, None, config.methods, None, decisions, **plan), command="kdcli distill")
    run.write_config(config)
    run.write_samples(split, {"index": torch.arange(len(hits)), metric: shares(hits)})
    splits = {"validation": {"epoch": epoch, "step": 1.0, metric: 0.5}, "test": {}} | {split: measured}
    splits["validation"] |= {"epoch": epoch}
    run.write_result(Result(**splits, steps=1, seconds=1.0, skipped=0, teacher=teacher))
    return run


def answers(gained, lost, size=200, both=80):
    """Of so many samples alone answers some, the student some others."""
    ours, alone = np.zeros((2, size))
    ours[: both + gained] = 1
    alone[:both] = 1
    alone[both + gained : both + gained + lost] = 1
    return ours, alone


def compared(tmp_path, gained, lost, noun="image", **more):
    ours, theirs = answers(gained, lost)
    run = run_of(tmp_path / "run", ours, **more)
    names = ("split", "metric", "task")
    alone = run_of(tmp_path / "run" / "baseline", theirs, **{name: more[name] for name in names if name in more})
    return compare_with_alone(run, alone, noun=noun)


def test_it_helped(tmp_path):
    outcome = compared(tmp_path, gained=30, lost=4)
    assert outcome.verdict == "helped"
    ours, theirs = ({"accuracy": shares(hits).numpy()} for hits in answers(30, 4))
    assert RESAMPLES >= 2000
    difference = outcome.differences["accuracy"]
    low, high = bootstrap_differences(ours, theirs, seed=0)["accuracy"]
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.13, low, high), abs=0.006)
    assert outcome.sentence == (
        f"Distillation helped: +13.0 points, 95 % interval [{100 * difference.low:.1f}, {100 * difference.high:.1f}] over the"
        " 200 test images (one seed: the spread between seeds comes on top)."
    )
    assert lines_of(outcome) == [outcome.sentence], "there is nothing else to try"
    again = compared(tmp_path / "again", gained=30, lost=4)
    assert again.differences == outcome.differences, "the resamples are the seed's"


def test_it_did_not_help(tmp_path):
    outcome = compared(tmp_path, gained=3, lost=30, probe=WEAK, unread=("pooled",))
    assert outcome.verdict == "harmed"
    assert outcome.sentence.startswith("Distillation did not help: -13.5 points, 95 % interval [-")
    first, *rest = outcome.tries
    assert first == (
        "another teacher than resnet50, whose features gave 0.11 in the plan's probe; this ranks them: kdcli models probe"
        " --data 'my photos' --teacher NAME --teacher NAME"
    )
    assert rest[0].startswith("--feature-layers embedding:pooled: the student's classifier reads embedding")
    assert rest[1] == "a lower weight of the features: --feature-weight 0.1 in place of 0.3"
    assert "kdcli models layers resnet18" in rest[2]
    assert f"{tmp_path / 'run'}/baseline (--teacher none --method none)" in rest[-1]
    assert lines_of(outcome)[1:3] == ["To try next:", f"  - {first}"]


def test_no_difference_can_be_told(tmp_path):
    outcome = compared(tmp_path, gained=12, lost=10, epoch=8)
    assert outcome.verdict == "unclear"
    assert outcome.sentence.startswith("No difference can be told: +1.0 points, 95 % interval [-")
    assert outcome.tries[0] == "another weight of the features: --feature-weight 0.9 or 0.1 in place of 0.3"
    assert f"kdcli distill --resume {tmp_path / 'run'} --epochs 16" in outcome.tries[2], "the last epoch was the best"
    assert outcome.tries[3] == "more images, which need no labels: --set data.unlabelled=FOLDER"


def test_a_handful_of_samples_is_no_evidence(tmp_path):
    """Five gained and none lost: the bootstrap alone would call that a gain."""
    outcome = compared(tmp_path, gained=5, lost=0)
    assert outcome.differences["accuracy"].low > 0
    assert outcome.verdict == "unclear"
    assert "the two differ on 5 of them, too few to tell" in outcome.sentence
    assert compared(tmp_path / "more", gained=12, lost=0).verdict == "helped"


def test_without_a_test_split_it_says_what_the_epoch_was_chosen_on(tmp_path):
    outcome = compared(tmp_path, gained=30, lost=4, split="validation")
    assert outcome.split == "validation"
    assert "over the 200 validation images (on which the best epochs were chosen; one seed:" in outcome.sentence


def test_what_to_try_depends_on_the_relation(tmp_path):
    untrained = compared(tmp_path / "random", 10, 10, relation="random")
    assert untrained.tries[0] == "a pretrained teacher: resnet50 is untrained"
    worse = {"validation": {"accuracy": 0.3}, "test": {"accuracy": 0.35}}
    same = compared(tmp_path / "same", 10, 10, relation="same")
    assert not any("teacher:" in phrase for phrase in same.tries)
    ours, theirs = answers(10, 10)
    run = run_of(tmp_path / "weak", ours, relation="same", epoch=8)
    result = run.read_result()
    run.write_result(result.model_copy(update={"teacher": worse}))
    alone = run_of(tmp_path / "weak" / "baseline", theirs)
    tries = compare_with_alone(run, alone, noun="image").tries
    assert tries[0] == "a better teacher: this one's test accuracy is 0.3500, and that of the student alone 0.4500"


def test_texts_have_their_own_probe(tmp_path):
    outcome = compared(tmp_path, 10, 10, noun="text", task="text-classification", probe=WEAK | {"level": "above"})
    assert "over the 200 test texts" in outcome.sentence
    assert outcome.tries[0].startswith(
        "another teacher than resnet50; this ranks them: kdcli models probe --task text-c"
    )


def test_a_metric_of_other_units(tmp_path):
    """Of a share that is no accuracy the name is told; of what is no share the number as it is."""
    outcome = compared(tmp_path, 30, 4, metric="micro_f1", task="text-classification", noun="text")
    assert outcome.sentence.startswith("Distillation helped: +13.0 points of micro_f1, 95 % interval")
    outcome = compared(tmp_path / "other", 30, 4, metric="log_likelihood", task="causal-lm", noun="text")
    assert outcome.sentence.startswith("Distillation helped: +0.130 log_likelihood, 95 % interval [0.")


def test_what_is_not_made_of_sums_has_a_difference_and_no_interval(tmp_path):
    ours, theirs = answers(30, 4)
    run = run_of(tmp_path / "run", ours, metrics={"spearman": 0.5})
    alone = run_of(tmp_path / "run" / "baseline", theirs, metrics={"spearman": 0.25})
    spearman = compare_with_alone(run, alone, noun="text").differences["spearman"]
    assert (spearman.mean, spearman.low, spearman.high) == (0.25, None, None)


def test_sums_of_another_student_are_not_believed(tmp_path):
    """They don't add up to what was measured; or the samples of the two are others."""
    ours, theirs = answers(30, 4)
    run = run_of(tmp_path / "run", ours)
    alone = run_of(tmp_path / "run" / "baseline", theirs)
    result = alone.read_result()
    alone.write_result(result.model_copy(update={"test": {"accuracy": 0.9}}))
    outcome = compare_with_alone(run, alone, noun="image")
    assert outcome.differences["accuracy"].low is None
    assert outcome.sentence.endswith("on the test images, and no interval for it.")
    other = run_of(tmp_path / "other", theirs)
    other.write_samples("test", {"index": torch.arange(200) + 1, "accuracy": shares(theirs)})
    other.write_result(other.read_result())
    assert compare_with_alone(run, other, noun="image").samples == 0


def test_features_alone_are_not_compared(tmp_path):
    """Their students have no classifier: nearest class means against accuracy."""
    ours, theirs = answers(30, 4)
    run = run_of(tmp_path / "run", ours, metric="ncm_accuracy")
    assert compare_with_alone(run, run_of(tmp_path / "run" / "baseline", theirs), noun="image") is None
