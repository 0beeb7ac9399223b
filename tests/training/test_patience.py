"""Training ends early where epochs bring no better student."""

from __future__ import annotations

import json

import pytest
import torch

from kdcli.tasks.classification.report import ClassificationMeters


@pytest.fixture
def validations(run_cli, tmp_path, photos):
    def run(*options):
        models = ("--teacher", "none", "--student", "test_resnet", "--data", photos, "--device", "cpu", "--no-test")
        small = ("--set", "student.image_size=32", "--set", "data.workers=0", "--batch-size", "16")
        outcome = run_cli("distill", *models, *small, "--output", "run", *options)
        assert outcome.exit_code == 0, outcome.stderr
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return outcome, [line for line in lines if line["event"] == "validation"]

    return run


def test_a_run_stops_after_so_many_epochs_without_a_better_student(validations, run_cli, tmp_path):
    """A learning rate that is far too high: the first student is the best, unless a later one is better by luck."""
    outcome, found = validations(
        "--epochs", "8", "--set", "train.patience=2", "--lr", "3", "--set", "optim.optimizer=sgd"
    )
    best = max(line["epoch"] for line in found if line["best"])
    assert found[-1]["epoch"] == min(best + 2, 8)
    if found[-1]["epoch"] < 8:
        assert (
            f"Stopped early after epoch {found[-1]['epoch']} of 8: no better student since epoch {best}"
            in outcome.stdout
        )
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
