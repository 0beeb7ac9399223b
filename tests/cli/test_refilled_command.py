"""``kdcli distill --method refilled``: two stages from one command, cut short anywhere, in one process and in two."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

import kdcli.experiments.distill
import kdcli.training.trainer
from kdcli.methods.local_classifier_kl import LocalClassifier

SHORT = (
    *("--student", "test_resnet", "--device", "cpu", "--batch-size", "8", "--epochs", "2", "--checkpoint-every", "3"),
    *("--set", "student.image_size=32", "--set", "data.workers=0", "--set", "data.labels_per_class=12"),
)
GLOBAL = (
    *("--set", "methods=[{method: supervised}, {method: local_classifier_kl, centers: global}]"),
    *("--set", "embedding={epochs: 2, optim: {lr: 0.002}}", "--set", "train.ema=0.9"),
)
TIMES = ("images_per_second", "data_wait")


def weights(run):
    return load_file(run / "student" / "model.safetensors")


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def lines(run, event=None):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in TIMES}
        for line in found
        if event is None or line["event"] == event
    ]


def result(run):
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def command(photos, trained_teacher):
    return ("distill", "--teacher", trained_teacher, "--data", photos, *SHORT)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory, run_cli_in):
    """Both stages with all that has to be kept: global centres, averaged weights. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run_cli_in(*command, *GLOBAL, "--output", "run", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "run"


def test_one_command_gives_both_stages_and_a_fair_baseline(run_cli, tmp_path, command, monkeypatch):
    starts, tested = [], []
    train_step, evaluate = kdcli.training.trainer.Trainer.train_step, kdcli.training.trainer.evaluate

    def first_steps(self, batch, epoch):
        if self.step == 0:
            state = {name: value.clone() for name, value in self.objective.student.module.state_dict().items()}
            starts.append((self.run.path.name, state, epoch, batch))
        train_step(self, batch, epoch)

    def evaluated(job, model, source, accelerator, skip, note):
        if source is job.data.test:
            tested.append(job.config.teacher.name)
        return evaluate(job, model, source, accelerator, skip, note)

    monkeypatch.setattr(kdcli.training.trainer.Trainer, "train_step", first_steps)
    monkeypatch.setattr(kdcli.training.trainer, "evaluate", evaluated)
    outcome = run_cli(*command, "--method", "refilled", "--baseline", "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    run = tmp_path / "run"

    (_, _, _, first_batch), (_, second, epoch, second_batch), (_, _, first_epoch, _) = starts
    assert [name for name, *_ in starts] == ["embedding", "run", "baseline"]
    assert_same(second, weights(run / "embedding"))
    assert (epoch, first_epoch) == (2, 0), "the second stage goes on with the stream of samples"
    assert not torch.equal(first_batch.images, second_batch.images)
    assert len(tested) == 2, "the test split is for the end of a run, not for its first stage"

    stage, both, alone = result(run / "embedding"), result(run), result(run / "baseline")
    assert both["embedding"]["ncm_accuracy"] == stage["validation"]["ncm_accuracy"]
    assert stage["test"] == {}
    assert alone["steps"] == stage["steps"] + both["steps"] == both["embedding"]["steps"] + both["steps"]
    best = max(lines(run / "embedding", "validation"), key=lambda line: (line["ncm_accuracy"], line["epoch"]))
    assert stage["validation"]["epoch"] == best["epoch"]
    assert "accuracy" not in best
    table = outcome.stdout[outcome.stdout.index("Result") :]
    assert re.search(rf"embedding ncm_accuracy .* {best['ncm_accuracy']:.4f} .* - ", table)
    assert f"{stage['steps']} + {both['steps']}" in table
    card = (run / "README.md").read_text()
    assert f"| Embedding stage, validation ncm_accuracy | {best['ncm_accuracy']:.4f} |" in card
    assert "2 epochs of stochastic_triplet_kl before the others" in card

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "method" not in config
    assert config["embedding"]["epochs"] == 2
    compared = run_cli("compare", "run", "run/baseline", "--json")
    assert compared.exit_code == 0, compared.stderr
    groups = json.loads(compared.stdout)["groups"]
    assert groups[0]["metrics"]["embedding ncm_accuracy"]["mean"] == best["ncm_accuracy"]
    assert groups[1]["metrics"]["embedding ncm_accuracy"] is None
    assert groups[0]["settings"]["embedding.methods.stochastic_triplet_kl.margin"] == 0.2
    for what in (("evaluate", "run"), ("export", "run")):
        assert run_cli(*what).exit_code == 0


def test_the_features_of_the_first_stage_help_from_a_teacher_of_these_classes(whole):
    """Chance is 1/3."""
    assert result(whole)["embedding"]["ncm_accuracy"] > 0.6
    assert "centers" in "".join(load_file(whole / "projector.safetensors"))


def test_the_config_of_a_run_repeats_it(run_cli, tmp_path, whole):
    outcome = run_cli("distill", "--recipe", whole / "config.yaml", "--output", "again")
    assert outcome.exit_code == 0, outcome.stderr
    assert_same(weights(whole), weights(tmp_path / "again"))


class Interrupt(Exception):
    """Stands for a process that dies."""


def dies_at(step, trains_classifier):
    original = kdcli.training.trainer.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == step and self.job.trains_classifier == trains_classifier:
            raise Interrupt

    return kdcli.training.trainer.Trainer, "train_step", train_step


def dies(*_, **__):
    raise Interrupt


POINTS = {
    "before the first stage": lambda: (kdcli.experiments.distill, "embedding_job", dies),
    "in the first stage, before a checkpoint": lambda: dies_at(2, trains_classifier=False),
    "in the first stage": lambda: dies_at(5, trains_classifier=False),
    "between the stages": lambda: (kdcli.training.trainer.Trainer, "start_from", dies),
    "while the centres are computed": lambda: (LocalClassifier, "look", dies),
    "in the second stage, before a checkpoint": lambda: dies_at(2, trains_classifier=True),
    "in the second stage": lambda: dies_at(7, trains_classifier=True),
}


@pytest.mark.parametrize("points", [list(POINTS), *([point] for point in POINTS)], ids=lambda points: points[-1])
def test_a_run_cut_short_anywhere_goes_on_bit_for_bit(run_cli, tmp_path, command, whole, monkeypatch, points):
    arguments = (*command, *GLOBAL, "--output", "run")
    for point in points:
        with monkeypatch.context() as patch:
            patch.setattr(*POINTS[point]())
            with pytest.raises(Interrupt):
                run_cli(*arguments)
        arguments = ("distill", "--resume", "run")
    outcome = run_cli(*arguments)
    assert outcome.exit_code == 0, outcome.stderr
    run = tmp_path / "run"
    for folder in (".", "embedding"):
        assert_same(weights(whole / folder), weights(run / folder))
        assert lines(whole / folder) == lines(run / folder)
        first, second = (result(path / folder) for path in (whole, run))
        assert (first["validation"], first["test"]) == (second["validation"], second["test"])
        assert sorted(p.name for p in (whole / folder).iterdir()) == sorted(p.name for p in (run / folder).iterdir())
    assert_same(load_file(whole / "projector.safetensors"), load_file(run / "projector.safetensors"))


def test_a_signal_in_the_first_stage_says_how_to_go_on(run_cli, tmp_path, command, whole, monkeypatch):
    original = kdcli.training.trainer.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, "train_step", train_step)
        outcome = run_cli(*command, *GLOBAL, "--output", "run")
    assert outcome.exit_code == 143
    assert "Go on with: kdcli distill --resume run\n" in outcome.stdout
    asked = run_cli("distill", "--resume", "run", "--dry-run")
    assert "going on from step 4 of the embedding stage" in asked.stdout
    assert run_cli("distill", "--resume", "run").exit_code == 0
    assert_same(weights(whole), weights(tmp_path / "run"))


def test_more_epochs_are_the_second_stages(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    outcome = run_cli("distill", "--resume", "run", "--epochs", "3")
    assert outcome.exit_code == 0, outcome.stderr
    assert [line["epoch"] for line in lines(tmp_path / "run", "validation")] == [1, 2, 3]
    assert result(tmp_path / "run")["embedding"] == result(whole)["embedding"]
    refused = run_cli("distill", "--resume", "run", "--set", "embedding.epochs=3")
    assert refused.exit_code == 2
    assert "embedding.epochs 2 -> 3" in refused.stderr
    refused = run_cli("distill", "--resume", "run/embedding", "--epochs", "9")
    assert refused.exit_code == 2
    assert "run/embedding is a part of the run" in refused.stderr
    assert result(tmp_path / "run")["embedding"] == result(whole)["embedding"]


def test_the_first_stage_is_not_trained_again_with_its_run(run_cli, tmp_path, whole, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(kdcli.experiments.distill, "embedding_job", dies)
    outcome = run_cli("distill", "--resume", "run", "--epochs", "3")
    assert outcome.exit_code == 0, outcome.stderr


def test_no_epochs_evaluate_the_student_as_it_starts(run_cli, tmp_path, command):
    assert run_cli(*command, "--method", "refilled", "--output", "run", "--epochs", "0").exit_code == 0
    assert (result(tmp_path / "run")["steps"], result(tmp_path / "run")["embedding"]["steps"]) == (0, 0)


def test_each_stage_alone(run_cli, tmp_path, command):
    """Features first and labels then; the classifier from the start; features and nothing else."""
    stages = {
        "first": ("--set", "embedding.epochs=1", "--set", "methods=[{method: supervised}]"),
        "second": ("--set", "methods=[{method: supervised}, {method: local_classifier_kl}]"),
        "features": ("--set", "methods=[{method: stochastic_triplet_kl, mining: tuples}]"),
    }
    for name, options in stages.items():
        outcome = run_cli(*command, *options, "--epochs", "1", "--output", name)
        assert outcome.exit_code == 0, outcome.stderr
        assert (tmp_path / name / "embedding").exists() == (name == "first")
    assert set(result(tmp_path / "features")["test"]) == {"ncm_accuracy"}
    assert "test ncm_accuracy" in outcome.stdout
    assert {"accuracy", "loss"} <= set(result(tmp_path / "first")["test"])


def test_features_alone_beside_their_baseline(run_cli, tmp_path, command):
    """No method trains the classifier: the two have other metrics, and what reads the run's logits says so."""
    options = ("--set", "methods=[{method: stochastic_triplet_kl}]", "--baseline", "--epochs", "1")
    outcome = run_cli(*command, *options, "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    run = tmp_path / "run"
    own, alone = result(run)["test"]["ncm_accuracy"], result(run / "baseline")["test"]["accuracy"]
    assert re.search(rf"test ncm_accuracy .* {own:.4f} .* - ", outcome.stdout)
    assert re.search(rf"test accuracy .* - .* {alone:.4f} ", outcome.stdout)
    assert "| Classifier | untrained:" in (run / "README.md").read_text()
    assert "| Classifier |" not in (run / "baseline" / "README.md").read_text()
    outcome = run_cli("evaluate", run, "--against", run / "baseline", "--no-teacher", "--device", "cpu")
    assert outcome.exit_code == 0, outcome.stderr
    notes = json.loads((run / "evaluation" / "evaluation.json").read_text())["notes"]
    assert [note.partition(":")[0] for note in notes if "no method of the run trained its classifier" in note] == [
        str(run)
    ]


@pytest.mark.parametrize(
    ("classes", "shared"), [(("apple", "leaf", "stone"), "2 of your 3"), (("brick", "stone"), "0 of your 2")]
)
def test_the_teacher_may_know_other_classes(run_cli, tmp_path, trained_teacher, make_photos, classes, shared):
    photos = make_photos(dict.fromkeys(classes, 12))
    arguments = ("distill", "--teacher", trained_teacher, "--data", photos, *SHORT, "--set", "data.labels_per_class=4")
    outcome = run_cli(*arguments, "--method", "refilled", "--epochs", "1", "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{shared} are among its 3" in outcome.stdout
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["relation"] == "cross"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--teacher", "none"), "--method refilled needs a teacher"),
        (
            ("--set", "augment.mixup=0.5"),
            "local_classifier_kl takes each image for what it is, and mixup or cutmix is on",
        ),
        (("--projector", "linear"), "REFILLED has no projector"),
        (("--set", "embedding={epochs: 1, optim: {optimizer: adamm}}"), "no optimiser 'adamm'"),
    ],
)
def test_errors_leave_nothing(run_cli, tmp_path, command, options, problem):
    outcome = run_cli(*command, "--method", "refilled", *options, "--output", "run")
    assert outcome.exit_code == 2, outcome.stdout
    assert problem in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_an_error_in_the_second_stage_keeps_the_first(run_cli, tmp_path, command, whole, monkeypatch):
    with monkeypatch.context() as patch:

        def no_memory(*_):
            raise torch.OutOfMemoryError

        patch.setattr(LocalClassifier, "look", no_memory)
        outcome = run_cli(*command, *GLOBAL, "--output", "run")
    assert outcome.exit_code == 2
    assert "memory of the GPU ran out" in outcome.stderr
    assert run_cli("distill", "--resume", "run").exit_code == 0
    assert_same(weights(whole), weights(tmp_path / "run"))


def test_two_processes_train_as_one(run_cli, run_in_two_processes, tmp_path, photos, trained_teacher):
    """A student without batch statistics; and a mining that rounding does not change."""
    options = (
        *("--teacher", trained_teacher, "--data", photos, *SHORT, "--student", "test_vit", "--set", "train.ema=0.9"),
        *("--set", "methods=[{method: supervised}, {method: local_classifier_kl, centers: global}]"),
        *("--set", "embedding={epochs: 1, methods: [{method: stochastic_triplet_kl, margin: 2}]}", "--epochs", "1"),
    )
    assert run_cli("distill", *options, "--output", "one").exit_code == 0
    run_in_two_processes([("distill", *options, "--output", tmp_path / "two")])
    for folder in (".", "embedding"):
        one, two = (tmp_path / name / folder for name in ("one", "two"))
        for first, second in zip(lines(one), lines(two), strict=True):
            assert first.pop("event") == second.pop("event")
            assert first == pytest.approx(second, rel=2e-3, abs=1e-4)
        second = weights(two)
        for name, value in weights(one).items():
            torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    key = "local_classifier_kl.centers"
    centers = [load_file(tmp_path / name / "projector.safetensors")[key] for name in ("one", "two")]
    torch.testing.assert_close(*centers)
