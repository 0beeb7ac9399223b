"""Translation from end to end: a same-task teacher, a student of it, evaluation, predictions, export, two kinds of images."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

NET = "generator:resnet6?channels=4&num_blocks=1"
SMALL = ("--student", NET, "--set", "student.image_size=32")
FAST = ("--batch-size", "8", "--lr", "0.005", "--device", "cpu", "--set", "data.workers=0")
TASK = ("--task", "image-translation")
EXTRACTOR = ("--set", "data.eval_extractor=random:test_resnet", "--set", "data.eval_extractor_size=32")


@pytest.fixture(scope="module")
def kdcli(tmp_path_factory, run_cli_in):
    """``kdcli(*arguments)`` in a folder with pairs in ``pairs``, whose targets are negatives, and two kinds in ``kinds``."""
    cwd = tmp_path_factory.mktemp("translation")
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6), ("test", 6)):
        for number in range(count):
            pixels = np.kron(generator.integers(0, 256, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            for side, shown in (("A", pixels), ("B", 255 - pixels)):
                for path in (cwd / "pairs" / split / side, cwd / "kinds" / f"{split}{side}"):
                    path.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(shown).save(path / f"{number}.png")

    def run(*arguments, code=0):
        outcome = run_cli_in(*arguments, cwd=cwd)
        assert outcome.exit_code == code, outcome.stdout + outcome.stderr
        return outcome.stdout if code == 0 else outcome.stderr

    run.cwd = cwd
    return run


@pytest.fixture(scope="module")
def runs(kdcli):
    """A teacher, and its student, which both learn to turn an image into its negative."""
    data = (*TASK, "--data", "pairs", *SMALL, *FAST)
    kdcli("distill", *data, "--teacher", "none", "--epochs", "8", "--output", "teacher")
    kdcli("distill", *data, "--teacher", "teacher", "--epochs", "4", "--output", "run")
    return kdcli.cwd


def test_a_student_learns_from_targets_features_and_images(runs):
    result = json.loads((runs / "run" / "result.json").read_text())
    plan = json.loads((runs / "run" / "plan.json").read_text())
    told = {entry["name"]: entry for entry in plan["decisions"]}
    assert plan["relation"] == "same"
    assert "loss: image regression" in told
    assert {"ssim", "psnr", "l1", "loss"} <= result["test"].keys()
    assert result["validation"]["ssim"] > 0.2
    for name in ("samples.png", "student/generator.py"):
        assert (runs / "run" / name).is_file()


def test_it_is_evaluated_beside_its_teacher_and_drawn(kdcli, runs):
    shown = kdcli("evaluate", "run", "--show", "2", "--output", "shown", "--device", "cpu")
    evaluation = json.loads((runs / "shown" / "evaluation.json").read_text())
    assert {"SSIM", "PSNR", "L1"} <= {*shown.split()}
    assert len(evaluation["models"]) == 2
    assert (runs / "shown" / "samples.png").is_file()


def test_it_translates_images_of_another_size(kdcli, runs):
    Image.new("RGB", (50, 30), (250, 250, 250)).save(runs / "light.png")
    kdcli("predict", "run", "light.png", "--output", "made", "--device", "cpu")
    made = np.asarray(Image.open(runs / "made" / "light_made.png"))
    assert made.shape == (30, 50, 3)
    assert (runs / "made" / "light.png").is_file()


def test_it_is_exported_with_the_code_that_loads_it(kdcli, runs):
    kdcli("export", "run", "--output", "exported")
    snippet = (runs / "exported" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = snippet.replace("PATH", str(runs / "exported")).replace("IMAGE", str(runs / "pairs/test/A/0.png"))
    code = "import sys\nsys.modules['kdcli'] = None\n" + code
    subprocess.run([sys.executable, "-c", code], cwd=runs, check=True, timeout=240)
    assert Image.open(runs / "made.png").size == (32, 32)


def test_it_is_exported_to_onnx(kdcli, runs):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    kdcli("export", "run", "--format", "onnx", "--output", "onnx")
    assert (runs / "onnx" / "model.onnx").is_file()


def test_two_kinds_of_images(kdcli):
    data = (*TASK, "--data", "kinds", *SMALL, *FAST, *EXTRACTOR)
    kdcli("distill", *data, "--teacher", "none", "--method", "none", "--epochs", "1", "--output", "two")
    result = json.loads((kdcli.cwd / "two" / "result.json").read_text())
    assert result["test"]["fid_untrained_test_resnet_32px"] > 0
    shown = kdcli("evaluate", "two", "--output", "seen", "--device", "cpu")
    assert "FID" in shown


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--set", "augment.mixup=0.2"), "samples of the task image-translation can't be mixed"),
        (("--set", "student.image_size=30"), "multiples of 4"),
        (("--set", "methods=[{method: supervised, loss: ssim}]"), "has no loss 'ssim'"),
        (("--student", "resnet18"), "Name a model with a head for image-translation"),
    ],
)
def test_what_can_t_be_is_refused_before_training(kdcli, options, told):
    error = kdcli(
        "distill", *TASK, "--data", "pairs", "--teacher", "none", *SMALL, *FAST, *options, "--dry-run", code=2
    )
    assert told in " ".join(error.split())
