"""Training ends early where epochs bring no better student."""

from __future__ import annotations

import json

import pytest
import torch

from kdcli.tasks.classification.report import ClassificationMeters
from kdcli.training import trainer


@pytest.fixture
def validations(run_cli, tmp_path, photos):
    def run(*options):
        models = ("--teacher", "none", "--data", photos, "--device", "cpu", "--no-test")
        small = ("--set", "student.image_size=32", "--set", "data.workers=0", "--batch-size", "16")
        outcome = run_cli("distill", *models, *small, "--output", "run", *options)
        assert outcome.exit_code == 0, outcome.stderr
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return outcome, [line for line in lines if line["event"] == "validation"]

    return run


def test_a_run_stops_after_so_many_epochs_without_a_better_student(validations, run_cli, monkeypatch):
    accuracies = iter((0.5, 0.7, 0.6, 0.65, 0.9))
    monkeypatch.setattr(trainer, "evaluate", lambda *args, **options: {"accuracy": next(accuracies), "loss": 1.0})
    outcome, found = validations("--student", "test_resnet", "--epochs", "8", "--set", "train.patience=2")
    assert [(line["epoch"], line["best"]) for line in found] == [(1, 1), (2, 1), (3, 0), (4, 0)]
    assert "Stopped early after epoch 4 of 8: no better student since epoch 2" in outcome.stdout
    again = run_cli("distill", "--resume", "run")
    assert again.exit_code == 0, again.stderr
    assert "finished" in again.stdout


def test_f1_and_precision_of_classes():
    meters = ClassificationMeters(4)
    predictions, targets = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    meters.update(torch.nn.functional.one_hot(predictions, 4).float(), targets)
    found = meters.compute()
    assert found["per_class_precision"] == [0.5, 1.0, 0.0, None]
    assert found["per_class_f1"] == [pytest.approx(2 / 3), 0.5, 0.0, None]
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 3)
