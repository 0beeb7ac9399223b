"""A dense task of another package, through entry points alone: planned, trained, resumed, evaluated, exported, analysed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("few_digits", "few_points")

EXAMPLE = Path(__file__).parents[1] / "extension_dense"
DATA = ("--task", "toy_ink", "--data", "demo:digits", "--set", "data.train_images=96")
FAST = ("--batch-size", "32", "--lr", "0.01", "--device", "cpu", "--set", "data.workers=0")
STUDENT = ("--student", "toynet:small?width=4")


@pytest.fixture(scope="module")
def site(install_package):
    return install_package(EXAMPLE)


@pytest.fixture(scope="module")
def kdcli(site, tmp_path_factory, run_cli_in):
    """``kdcli(*arguments)`` in one folder, with the example installed."""
    cwd = tmp_path_factory.mktemp("dense")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))

        def run(*arguments):
            outcome = run_cli_in(*arguments, cwd=cwd)
            assert outcome.exit_code == 0, outcome.stderr
            return outcome.stdout

        run.cwd = cwd
        yield run


@pytest.fixture(scope="module")
def teacher(kdcli):
    """A finished run of a wider network, trained alone."""
    kdcli(
        "distill",
        "--teacher",
        "none",
        "--student",
        "toynet:small?width=8",
        *DATA,
        *FAST,
        "--epochs",
        "3",
        "--output",
        "teacher",
    )
    return "teacher"


SAME = ("--epochs", "2", "--projector", "orthogonal")
"""With the features of a teacher of the same task, which the plan leaves out by itself."""


@pytest.fixture(scope="module")
def same(kdcli, teacher):
    """A run with a teacher of the same task, its plan as printed."""
    out = kdcli("distill", "--teacher", teacher, *STUDENT, *DATA, *FAST, *SAME, "--output", "same")
    return kdcli.cwd / "same", out


@pytest.fixture(scope="module")
def cross(kdcli, trained_teacher):
    """A run with a classifier as its teacher."""
    out = kdcli("distill", "--teacher", trained_teacher, *STUDENT, *DATA, *FAST, "--epochs", "1", "--output", "cross")
    return kdcli.cwd / "cross", out


MAPS = (
    "[{method: supervised},"
    " {method: projection, projector: orthogonal, reads: maps, normalize_student: standardize, distance: smooth_l1,"
    " layers: ['pooled:pooled', '0:0']},"
    " {method: cwd}, {method: cwd_logits}, {method: skd}, {method: ifvd, projector: inverted}, {method: cirkd},"
    " {method: mgd, weighting: gradient, weight: 0.3}, {method: spectral_regularization, reads: maps}]"
)


@pytest.fixture(scope="module")
def maps(kdcli, teacher):
    """A run with methods on maps, in a recipe's words."""
    options = ("--teacher", teacher, *STUDENT, *DATA, *FAST, "--epochs", "1", "--set", f"methods={MAPS}")
    return kdcli.cwd / "maps", kdcli("distill", *options, "--output", "maps")


def metrics(run, event="test"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event][-1]


def test_a_teacher_of_the_same_task(same):
    run, out = same
    assert yaml.safe_load((run / "config.yaml").read_text())["task"] == "toy_ink"
    assert json.loads((run / "plan.json").read_text())["relation"] == "same"
    assert "2 classes of pixels" in out
    assert "orthogonal" in out
    assert [method["method"] for method in yaml.safe_load((run / "config.yaml").read_text())["methods"]] == [
        "supervised", "projection", "logit_kd",
    ]  # fmt: skip
    found = metrics(run)
    assert found["mean_iou"] > 0.35
    assert found["pixel_accuracy"] > 0.6


def test_a_classifier_as_the_teacher(cross):
    run, out = cross
    assert json.loads((run / "plan.json").read_text())["relation"] == "cross"
    assert "inverted" in out


def test_methods_on_maps(maps):
    run, out = maps
    assert "student features.0 (4, 16x16)" in out
    found = metrics(run, "train")
    for name in ("projection", "cwd", "cwd_logits", "skd", "ifvd", "cirkd", "mgd", "spectral_regularization"):
        assert found[name] > 0, name
    assert found["weight/mgd"] > 0


class Interrupt(Exception):
    """Stands for a process that dies."""


def test_resumed_it_is_the_same_to_the_bit(kdcli, teacher, same, monkeypatch):
    from kdcli.training.trainer import Trainer

    original = Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 4:
            raise Interrupt

    options = ("--teacher", teacher, *STUDENT, *DATA, *FAST, *SAME, "--output", "cut")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Interrupt):
            kdcli("distill", *options, "--checkpoint-every", "2")
    kdcli("distill", "--resume", "cut")
    files = [load_file(folder / "student" / "model.safetensors") for folder in (same[0], kdcli.cwd / "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert metrics(same[0]) == metrics(kdcli.cwd / "cut")


def test_targets_move_with_their_images(site, monkeypatch):
    """In training batches, augmentation and all: what is dark in an image as it is seen is paper in its mask."""
    monkeypatch.syspath_prepend(str(site))
    from kdcli.config.data import AugmentConfig, DataConfig
    from kdcli.data.source import Loading
    from kdcli.tasks import task_class

    data = task_class("toy_ink").open(DataConfig(name="demo:digits", train_images=64), seed=0)
    loading = Loading(32, augment=AugmentConfig(flip=0.5, pad=4, crop_scale=(0.5, 1.0)), workers=0)
    wanted = task_class("toy_ink").facts
    assert wanted.target == "pixels"
    from kdcli_toy_dense import ToyNetworks

    for batch in data.train.train_batches(loading, [ToyNetworks.preprocessing]).epoch(0):
        assert batch.targets.shape == (32, 32, 32)
        bright, known = batch.images.float().mean(dim=1), batch.targets >= 0
        clear = known & ((bright < 60) | (bright > 195))
        assert ((bright > 127) == (batch.targets == 1))[clear].float().mean() > 0.99


def test_evaluated_with_pictures(kdcli, same):
    out = kdcli("evaluate", same[0], "--show", "4", "--device", "cpu")
    assert "mean IoU" in out
    folder = same[0] / "evaluation"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["samples"] == "pixel"
    assert found["models"]["student"]["mean_iou"] == pytest.approx(metrics(same[0])["mean_iou"], abs=1e-6)
    assert found["models"]["student"]["agreement_with_teacher"] > 0.5
    assert (folder / "samples.png").stat().st_size > 5000
    assert (folder / "confusion-student.png").exists()


def test_the_run_shows_some_validation_samples(same, cross):
    run, out = same
    assert "Samples: same/samples.png" in out
    assert "](samples.png)" in (run / "README.md").read_text()
    widths = [Image.open(each[0] / "samples.png").size[0] for each in (same, cross)]
    assert widths[0] > widths[1] > 3 * 288  # image, target, student; the teacher of the same task, not a classifier
    assert "samples.png" not in json.loads((run / "result.json").read_text())["files"]


def test_a_picture_that_fails_does_not_lose_the_run(kdcli, teacher, monkeypatch):
    from kdcli_toy_dense import Ink

    def pictures(self, batch, outputs):
        raise ValueError("no ink left")

    monkeypatch.setattr(Ink, "pictures", pictures)
    out = kdcli("distill", "--teacher", "none", *STUDENT, *DATA, *FAST, "--epochs", "1", "--output", "undrawn")
    assert "samples.png and worst.png could not be drawn, all else of the run is complete: ValueError" in " ".join(
        out.split()
    )
    run = kdcli.cwd / "undrawn"
    assert not (run / "samples.png").exists()
    assert "samples.png" not in (run / "README.md").read_text()
    assert json.loads((run / "result.json").read_text())["test"]["mean_iou"] >= 0


def test_exported_it_is_a_model_like_any_other(kdcli, same):
    out = kdcli("export", same[0], "--output", "exported")
    assert "loaded back" in out
    alone = json.loads(
        kdcli("evaluate", "exported", "--task", "toy_ink", "--data", "demo:digits", "--device", "cpu", "--json")
    )
    assert alone["models"]["model"]["mean_iou"] == pytest.approx(metrics(same[0])["mean_iou"], abs=1e-6)
    card = (kdcli.cwd / "exported" / "README.md").read_text()
    assert "samples.png" not in card
    assert "pipeline_tag: image-segmentation" in card


@pytest.mark.parametrize("which", ["same", "cross"])
def test_its_projector_is_analysed(kdcli, which, request):
    run, _ = request.getfixturevalue(which)
    assert "numerical rank" in kdcli("analyze-projector", run, "--device", "cpu")
    assert (run / "analysis" / "analysis.json").exists()
