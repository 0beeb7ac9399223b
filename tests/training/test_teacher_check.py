"""A teacher is measured before it teaches: what it reaches stands everywhere, what only guesses is refused."""

from __future__ import annotations

import colorsys
import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from kdcli.base.checksums import is_signed_card
from kdcli.base.facts import UNLABELLED
from kdcli.statistics.chance import natural_key
from kdcli.training.teachers import check as teacher_check

NUMBERS = [str(number) for number in range(12)]  # in natural order; kdcli's is string order
SIZE = ("--set", "teacher.image_size=32", "--set", "student.image_size=32", "--set", "data.workers=0")
RUN = ("--student", "test_vit", "--data", "colours", "--batch-size", "32", "--epochs", "1", "--device", "cpu", *SIZE)


def draw(label, generator):
    colour = 255 * np.array(colorsys.hsv_to_rgb(label / 12, 1, 1))
    return np.clip(colour + generator.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder with ``colours/{train,val,test}/{0..11}`` and weights of test_resnet by the order of their classes.

    Its last layer is fitted to its random features by least squares: no training, and all classes right.
    """
    cwd, generator = tmp_path_factory.mktemp("check"), np.random.default_rng(0)
    counts, images = {"train": 8, "val": 5, "test": 4}, []
    for split, count in counts.items():
        for label, name in enumerate(NUMBERS):
            folder = cwd / "colours" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw(label, generator)
                Image.fromarray(pixels).save(folder / f"{number}.png")
                if split == "train":
                    images.append(pixels)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=12).eval()
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features = model.forward_head(model.forward_features((batch - 0.5) / 0.5), pre_logits=True)
        fitted = torch.linalg.lstsq(
            torch.cat([features, torch.ones(len(features), 1)], dim=1),
            10 * torch.eye(12).repeat_interleave(counts["train"], dim=0), driver="gelsd",
        ).solution  # fmt: skip
    strings = [NUMBERS.index(name) for name in sorted(NUMBERS)]
    state = model.state_dict()
    for name, weights in (("natural", fitted), ("string", fitted[:, strings]), ("useless", 0 * fitted + 1)):
        head = {"fc.weight": weights[:-1].T.contiguous(), "fc.bias": weights[-1].contiguous()}
        torch.save({**state, **head}, cwd / f"{name}.pth")
    return cwd


def teacher(name):
    return ("--teacher", "test_resnet", "--teacher-weights", f"{name}.pth")


def test_a_teacher_in_natural_order_is_refused_with_the_order(colours, run_cli):
    """Folders 0 to 11 in natural order against string order: 2 of 12 classes right, all where ten change places."""
    outcome = run_cli("distill", *teacher("natural"), *RUN, "--output", "natural", cwd=colours)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert "accuracy 0.1667" in outcome.stderr
    assert "on 60 validation images, and 1.0000 where 10 of the 12 change places" in outcome.stderr
    assert "(10 as 8, 11 as 9, 2 as 10, 3 as 11, 4 as 2, 5 as 3 and 4 more)" in outcome.stderr
    assert "natural order (2 before 10)" in outcome.stderr
    assert f"'teacher.label_names=[{', '.join(NUMBERS)}]'" in outcome.stderr
    assert not (colours / "natural").exists()


def test_evaluate_says_that_classes_are_in_another_order(colours, run_cli):
    read = Namespace(model="test_resnet", img_size=32)
    for name, sentences in (("natural", 1), ("string", 0)):
        state = torch.load(colours / f"{name}.pth")
        torch.save({"arch": "test_resnet", "args": read, "state_dict": state}, colours / f"{name}.pth.tar")
        outcome = run_cli(
            "evaluate", f"{name}.pth.tar", "--data", "colours", "--split", "validation", "--json", cwd=colours
        )
        assert outcome.exit_code == 0, outcome.stderr
        evaluation = json.loads(outcome.stdout)
        assert round(evaluation["models"]["model"]["top1"], 4) == (0.1667 if sentences else 1.0)
        said = [note for note in evaluation["notes"] if "in another order" in note]
        assert len(said) == sentences
        assert all("1.0000 where 10 of the 12 change places (10 as 8, " in note for note in said)


def measured_in(plan):
    """The plan's row of the teacher that was measured."""
    return next(row for row in plan["decisions"] if row["name"] == "teacher measured")


def test_its_own_names_set_the_order_right(colours, run_cli):
    names = f"teacher.label_names=[{', '.join(NUMBERS)}]"
    outcome = run_cli(
        "distill", *teacher("natural"), *RUN, "--dry-run", "--set", names, "--log-format", "json", cwd=colours
    )
    assert outcome.exit_code == 0, outcome.stderr
    plan = json.loads(outcome.stdout)
    assert plan["label_map"] == [NUMBERS.index(name) for name in sorted(NUMBERS)]
    assert plan["teacher_metrics"]["accuracy"] == 1.0
    assert measured_in(plan)["value"].startswith("accuracy 1.0000")
    wrong = run_cli(
        "distill", *teacher("natural"), *RUN, "--dry-run", "--set", "teacher.label_names=[a, b]", cwd=colours
    )
    assert (wrong.exit_code, "has 2 names" in wrong.stderr) == (2, True)


def test_a_teacher_that_guesses_is_refused_and_taken_when_asked(colours, run_cli):
    """One class for everything: 5 of 60 right."""
    outcome = run_cli("distill", *teacher("useless"), *RUN, "--dry-run", cwd=colours)
    assert outcome.exit_code == 2
    assert "does no better than guessing: accuracy 0.0833" in outcome.stderr
    assert "the preprocessing that it was trained with: it gets" in outcome.stderr
    assert "teacher.mean=[R,G,B]" in outcome.stderr
    for tried in ("teacher.image_size=N", "--teacher-weights", "teacher.label_names", "--relation cross"):
        assert tried in outcome.stderr
    taken = run_cli("distill", *teacher("useless"), *RUN, "--dry-run", "--unchecked-teacher", cwd=colours)
    assert taken.exit_code == 0, taken.stderr
    assert "it is taken all the same" in taken.stdout
    features = run_cli("distill", *teacher("useless"), *RUN, "--dry-run", "--relation", "cross", cwd=colours)
    assert features.exit_code == 0, features.stderr
    assert "teacher measured" not in features.stdout


@pytest.fixture(scope="module")
def run(colours, run_cli_in):
    """A finished run with a baseline, and what it printed. Not to be changed."""
    outcome = run_cli_in("distill", *teacher("string"), *RUN, "--output", "run", "--baseline", cwd=colours)
    assert outcome.exit_code == 0, outcome.stderr
    return colours / "run", outcome.stdout


def test_the_teachers_metrics_stand_everywhere(run, run_cli, colours):
    folder, printed = run
    result = json.loads((folder / "result.json").read_text())
    plan = json.loads((folder / "plan.json").read_text())
    assert result["teacher"]["validation"] == plan["teacher_metrics"]
    assert {split: metrics["accuracy"] for split, metrics in result["teacher"].items()} == {
        "validation": 1.0,
        "test": 1.0,
    }
    assert "distil teacher  validation accuracy 1.0000" in printed
    table = printed[printed.index("Result") :].splitlines()
    heads = [cell.strip() for cell in table[1].strip("|").split("|")]
    assert heads == ["", "distilled", "student alone", "teacher", "difference"]
    for split in ("validation", "test"):
        (line,) = (line for line in table if f"{split} accuracy" in line)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[3] == "1.0000"
        assert (cells[4] == "-") == (split == "validation"), "what chose the epoch is not compared"
    assert "| Teacher, test accuracy | 1.0000 |" in (folder / "README.md").read_text()
    compared = run_cli("compare", "run", "--all", cwd=colours)
    assert "teacher validation accuracy" in compared.stdout
    again = run_cli("distill", "--resume", "run", cwd=colours)
    assert "finished" in again.stdout
    assert [line for line in again.stdout.splitlines() if "test accuracy" in line and "1.0000" in line]


def test_the_difference_to_the_student_alone_stands_everywhere(run, run_cli, colours):
    """On the 48 test images, by the answers to each; every file and table has the same."""
    folder, printed = run
    result, alone = (json.loads((path / "result.json").read_text()) for path in (folder, folder / "baseline"))
    outcome = result["outcome"]
    assert (outcome["split"], outcome["metric"], outcome["samples"]) == ("test", "accuracy", 48)
    assert alone["outcome"] is None
    difference = outcome["differences"]["accuracy"]
    assert difference["mean"] == pytest.approx(result["test"]["accuracy"] - alone["test"]["accuracy"])
    ours, theirs = (load_file(path / "test_samples.safetensors") for path in (folder, folder / "baseline"))
    assert ours["index"].tolist() == theirs["index"].tolist() == list(range(48))
    hits = [(side["accuracy"][:, 0]).mean() for side in (ours, theirs)]
    assert difference["mean"] == pytest.approx(float(hits[0] - hits[1]))
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert outcome["differences"]["loss"]["low"] is None
    assert f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]" in printed
    assert outcome["sentence"] in printed
    assert outcome["sentence"].startswith({"helped": "Distillation helped", "unclear": "No difference can be told"}.get(
        outcome["verdict"], "Distillation did not help"
    ))  # fmt: skip
    assert all(f"  - {phrase}" in printed for phrase in outcome["tries"])
    sentence = (
        outcome["sentence"].replace("[", r"\[") if r"\[" in (folder / "README.md").read_text() else outcome["sentence"]
    )
    assert f"| Beside the student alone | {sentence} |" in (folder / "README.md").read_text()
    assert f"run, beside its student alone: {outcome['sentence']}" in run_cli("compare", "run", cwd=colours).stdout
    assert is_signed_card((folder / "README.md").read_bytes()), "it is known again as kdcli's own"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and ".lock" not in file.name}
    again = run_cli("distill", "--resume", "run", cwd=colours)
    assert outcome["sentence"] in again.stdout
    assert {file: file.read_bytes() for file in before} == before, "what is known is not written again"


def test_a_sample_is_told_to_be_one(colours, run_cli, monkeypatch):
    monkeypatch.setattr(teacher_check, "MOST_SAMPLES", 24)
    outcome = run_cli("distill", *teacher("string"), *RUN, "--output", "sampled", cwd=colours)
    assert outcome.exit_code == 0, outcome.stderr
    (line,) = (line for line in outcome.stdout.splitlines() if "| validation accuracy" in line)
    assert line.strip("| ").endswith("1.0000 (of 24)")
    (line,) = (line for line in outcome.stdout.splitlines() if "| test accuracy" in line)
    assert line.strip("| ").endswith("1.0000")
    assert json.loads((colours / "sampled" / "plan.json").read_text())["teacher_samples"] == 24
    again = run_cli("distill", "--resume", "sampled", "--epochs", "2", cwd=colours)
    assert "1.0000 (of 24)" in again.stdout
    assert json.loads((colours / "sampled" / "result.json").read_text())["teacher_samples"] == {"validation": 24}


def test_what_was_measured_is_kept_by_teacher_and_samples(colours, run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs, measure = [], teacher_check.measure_teacher
    monkeypatch.setattr(teacher_check, "measure_teacher", lambda *a, **k: runs.append(1) or measure(*a, **k))
    command = ("distill", *RUN, "--dry-run", "--log-format", "json")
    first, second = (run_cli(*command, *teacher("string"), cwd=colours).stdout for _ in range(2))
    assert len(runs) == 1
    metrics, decisions = ([json.loads(out)[key] for out in (first, second)] for key in ("teacher_metrics", "decisions"))
    assert metrics[0] == metrics[1]
    assert decisions[0][-1] == decisions[1][-1]
    refused = [run_cli(*command, *teacher("natural"), cwd=colours).stderr for _ in range(2)]
    assert len(runs) == 2, "other weights"
    assert refused[0] == refused[1]
    assert "1.0000 where 10 of the 12 change places" in refused[1]
    named = f"teacher.label_names=[{', '.join(NUMBERS)}]"
    run_cli(*command, *teacher("natural"), "--set", named, cwd=colours)
    assert len(runs) == 3, "the same weights, other classes"
    monkeypatch.setattr(teacher_check, "MOST_SAMPLES", 24)
    run_cli(*command, *teacher("string"), cwd=colours)
    assert len(runs) == 4, "other samples"


def test_another_teacher_that_is_taken_by_force_is_measured(run, run_cli, colours):
    folder, _ = run
    shutil.copytree(folder, colours / "forced", ignore=shutil.ignore_patterns("baseline"))
    again = ("distill", "--resume", "forced", "--epochs", "2", "--no-baseline", "--teacher-weights", "natural.pth")
    assert "the teacher has other weights" in run_cli(*again, cwd=colours).stderr
    outcome = run_cli(*again, "--force", cwd=colours)
    assert outcome.exit_code == 0, outcome.stderr
    measured = json.loads((colours / "forced" / "result.json").read_text())["teacher"]
    assert measured["validation"]["accuracy"] == measured["test"]["accuracy"] < 0.5
    plan = json.loads((colours / "forced" / "plan.json").read_text())
    assert plan["teacher_metrics"] == measured["validation"]
    decisions = {decision["name"]: decision for decision in plan["decisions"]}
    assert decisions["teacher measured"]["value"].startswith(f"accuracy {measured['validation']['accuracy']:.4f}")
    assert "natural.pth" in decisions["teacher"]["reason"]
    assert len(decisions) == len(plan["decisions"])


def test_a_run_that_goes_on_does_not_measure_again(run, run_cli, colours, monkeypatch):
    """What was measured is in the run folder; the test split is still to come."""
    folder, _ = run
    shutil.copytree(folder, colours / "longer", ignore=shutil.ignore_patterns("baseline"))
    monkeypatch.setattr("kdcli.experiments.distill.check_teacher", lambda *_, **__: pytest.fail("measured again"))
    more = ("--epochs", "2", "--no-baseline", "--log-format", "json")
    outcome = run_cli("distill", "--resume", "longer", *more, cwd=colours)
    assert outcome.exit_code == 0, outcome.stderr
    events = [json.loads(line) for line in outcome.stdout.splitlines()]
    (measured,) = (event for event in events if event["event"] == "teacher")
    assert measured["accuracy"] == 1.0
    assert events[-1]["distilled"]["teacher"] == json.loads((folder / "result.json").read_text())["teacher"]


def test_a_large_split_is_measured_on_a_sample_spread_over_it(colours, run_cli, monkeypatch):
    monkeypatch.setattr(teacher_check, "MOST_SAMPLES", 24)
    command = ("distill", *teacher("string"), *RUN, "--dry-run", "--log-format", "json")
    decision = measured_in(json.loads(run_cli(*command, cwd=colours).stdout))
    assert decision["value"].endswith("24 validation images")
    assert (
        "on 24 of the 60 validation images, evenly spread. Guessing gives an accuracy of 0.0833" in decision["reason"]
    )


def test_the_teachers_classes_may_be_more_than_the_datas(colours, run_cli):
    """Six of its twelve classes: logits of those alone, and all of them right."""
    command = ("distill", *teacher("string"), *RUN, "--dry-run", "--log-format", "json")
    names = f"teacher.label_names=[{', '.join(sorted(NUMBERS))}]"
    outcome = run_cli(*command, "--set", names, "--set", "data.classes=['9','10','3','4','5','6']", cwd=colours)
    assert outcome.exit_code == 0, outcome.stderr
    plan = json.loads(outcome.stdout)
    assert plan["relation"] == "same"
    assert sorted(NUMBERS, key=natural_key) == NUMBERS
    assert [sorted(NUMBERS)[place] for place in plan["label_map"]] == ["10", "3", "4", "5", "6", "9"]
    assert plan["teacher_metrics"]["accuracy"] == 1.0
    assert "logit_kd" in [options["method"] for options in plan["methods"]]


def test_the_flag_is_a_setting_of_the_run(colours, run_cli):
    outcome = run_cli("distill", "--teacher", "none", "--unchecked-teacher", *RUN[:-6], "--dry-run", cwd=colours)
    assert outcome.exit_code == 2
    assert "teacher.unchecked is set" in outcome.stderr


def test_two_processes_measure_what_one_does(run, colours, run_in_two_processes):
    folder, _ = run
    command = ("distill", *teacher("string"), *RUN, "--output", "two")
    command = [str(colours / word) if (colours / str(word)).exists() else word for word in command]
    command[-1] = str(colours / "two")
    run_in_two_processes([command])
    first, second = (json.loads((path / "result.json").read_text())["teacher"] for path in (folder, colours / "two"))
    assert first.keys() == second.keys()
    for split, metrics in first.items():
        assert second[split] == pytest.approx(metrics, rel=1e-5)
    sums = load_file(colours / "two" / "test_samples.safetensors")
    accuracy = json.loads((colours / "two" / "result.json").read_text())["test"]["accuracy"]
    assert sums["index"].tolist() == list(range(48)), "each sample once, in order, of both processes"
    assert float(sums["accuracy"][:, 0].mean()) == pytest.approx(accuracy)
    assert yaml.safe_load((colours / "two" / "config.yaml").read_text())["train"]["epochs"] == 1


def test_of_pixels_some_labelled_ones_of_every_image_are_looked_at():
    """512 x 512: equal steps would be two rows each, and all of them in the first column, which has no label here."""
    targets = torch.arange(512).repeat(2, 512, 1) // 128
    targets[..., :8] = UNLABELLED
    targets[1, 100:] = UNLABELLED
    rows = torch.nn.functional.one_hot(targets.clamp(min=0), 4).float()
    for outputs in (rows.movedim(-1, 1), rows.flatten(end_dim=2)):
        logits, labels = teacher_check._some_pixels(outputs, targets)
        assert torch.equal(logits.argmax(dim=1), labels)
        for of_image in labels.view(2, teacher_check._PIXELS):
            assert of_image.bincount(minlength=4).min() > 50, "every quarter of an image"
