"""A split that loses more than a few of its files is not measured; fewer are counted beside the metrics."""

from __future__ import annotations

import json
import shutil

import pytest

from kdcli.base.errors import UserError
from kdcli.data.unreadable import check_readable, most_unreadable

COUNTS = {f"{split}/{name}": 8 for split in ("train", "val", "test") for name in ("apple", "leaf", "sky")}
ALONE = ("--teacher", "none", "--student", "test_resnet", "--data", "photos")


@pytest.mark.parametrize(("size", "most"), [(1, 3), (24, 3), (399, 3), (400, 4), (50_000, 500)])
def test_three_or_a_hundredth_may_be_left_out(size, most):
    assert most_unreadable(size) == most
    check_readable([str(number) for number in range(most)], size, what="images")
    with pytest.raises(UserError, match=f"{most + 1} of {size} images can't be read, or are gone: 0, 1, 2, 3"):
        check_readable([str(number) for number in range(most + 1)], size, what="images")


@pytest.fixture
def photos(make_photos):
    return make_photos(COUNTS, name="photos")


def remove(folder, number):
    for file in sorted(folder.iterdir())[:number]:
        file.write_bytes(b"")


def test_classes_that_vanish_during_training_are_an_error(photos, run_cli, tiny, tmp_path, monkeypatch):
    """Two of three classes of the validation images are deleted while the first epoch is trained."""
    from kdcli.training.trainer import Trainer

    original = Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        for name in ("apple", "leaf"):
            shutil.rmtree(photos / "val" / name, ignore_errors=True)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    outcome = run_cli("distill", *ALONE, *tiny, "--output", "run")
    assert outcome.exit_code == 2
    assert "16 of 24 validation images can't be read, or are gone: " in outcome.stderr
    assert "val/apple/00.jpg" in outcome.stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_few_are_counted_beside_the_metrics_everywhere(photos, run_cli, tiny, tmp_path):
    remove(photos / "val" / "apple", 2)
    remove(photos / "test" / "sky", 3)
    outcome = run_cli("distill", *ALONE, *tiny, "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    rows = {
        line.strip("|").split("|")[0].strip(): line.strip("|").split("|")[1].strip()
        for line in outcome.stdout.splitlines() if line.startswith("| ") and "unreadable" in line
    }  # fmt: skip
    assert rows == {"validation unreadable": "2", "test unreadable": "3", "unreadable images skipped": "5"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["validation"]["unreadable"], result["test"]["unreadable"]) == (2, 3)
    evaluated = run_cli("evaluate", "run", "--device", "cpu", "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    evaluation = json.loads(evaluated.stdout)
    assert (evaluation["num_unreadable"], evaluation["num_images"]) == (3, 21)
    remove(photos / "test" / "leaf", 1)
    refused = run_cli("evaluate", "run/student", "--data", "photos", "--device", "cpu")
    assert refused.exit_code == 2
    assert "4 of 24 test images of" in refused.stderr
