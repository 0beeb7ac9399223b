"""Semantic segmentation by the commands: trained, distilled, resumed, evaluated, compared and exported."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("segmentation_models_pytorch")

CLASSES = "[paper,ink,dot]"
FAST = (
    "--task",
    "semantic-segmentation",
    "--batch-size",
    "16",
    "--lr",
    "0.005",
    "--device",
    "cpu",
    "--set",
    "data.workers=0",
)
SMALL = "--student", "smp:linknet/mobilenetv3_small_050?encoder_depth=3", "--set", "student.image_size=32"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rectangles of ink on paper, some with a dot, beside one another in folders; a margin has no label."""
    folder = tmp_path_factory.mktemp("rectangles")
    generator = np.random.default_rng(0)
    for split, number in (("train", 48), ("val", 16), ("test", 16)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for index in range(number):
            mask = np.zeros((32, 40), np.uint8)
            top, left = generator.integers(2, 16, 2)
            mask[top : top + 12, left : left + 14] = 1
            if index % 2:
                mask[top + 3 : top + 9, left + 3 : left + 9] = 2
            image = np.array([[220, 220, 200], [30, 40, 120], [220, 30, 30]])[mask] + generator.normal(
                0, 12, (32, 40, 1)
            )
            mask[:2] = 255
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def kdcli(data, tmp_path_factory, run_cli_in):
    cwd = tmp_path_factory.mktemp("segmentation")

    def run(command, *arguments, fails=False):
        if command == "distill" and "--resume" not in arguments:
            arguments = (*FAST, "--data", str(data), "--set", f"data.class_names={CLASSES}", *arguments)
        outcome = run_cli_in(command, *arguments, cwd=cwd)
        assert (outcome.exit_code == 2) if fails else (outcome.exit_code == 0), outcome.stderr
        return outcome.stderr if fails else outcome.stdout

    run.cwd = cwd
    return run


@pytest.fixture(scope="module")
def teacher(kdcli):
    """Of another stride and size than the student's."""
    recipe = kdcli.cwd / "teacher.yaml"
    recipe.write_text(
        yaml.safe_dump({"methods": [{"method": "supervised", "loss": {"cross_entropy": 1, "dice": 0.5}}]})
    )
    student = ("--student", "smp:fpn/mobilenetv3_small_050?upsampling=1", "--set", "student.image_size=64")
    out = kdcli(
        "distill", "--recipe", str(recipe), "--teacher", "none", *student, "--epochs", "5", "--output", "teacher"
    )
    assert "cross_entropy + 0.5 dice" in out
    return "teacher"


@pytest.fixture(scope="module")
def distilled(kdcli, teacher):
    options = ("--teacher", teacher, *SMALL, "--epochs", "2", "--baseline", "--output", "distilled")
    return kdcli.cwd / "distilled", kdcli("distill", *options)


def metrics(run, event="test"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event][-1]


def test_a_teacher_of_the_same_task_is_aligned(kdcli, distilled):
    run, out = distilled
    assert metrics(kdcli.cwd / "teacher")["mean_iou"] > 0.4
    assert json.loads((run / "plan.json").read_text())["relation"] == "same"
    methods = yaml.safe_load((run / "config.yaml").read_text())["methods"]
    assert [method["method"] for method in methods] == ["supervised", "logit_kd"]
    assert methods[0]["loss"] == {"cross_entropy": 1.0}
    decisions = {entry["name"]: entry for entry in json.loads((run / "plan.json").read_text())["decisions"]}
    assert decisions["mean IoU"]["value"] == "at 32x32 pixels"
    assert "label_smoothing 0" in decisions["loss: supervised"]["value"]
    assert metrics(run)["pixel_accuracy"] > 0.3
    assert "student alone" in out


def test_resumed_it_is_the_same_to_the_bit(kdcli, teacher, distilled, monkeypatch):
    from kdcli.training.trainer import Trainer

    class Interrupt(Exception):
        pass

    original = Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 4:
            raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Interrupt):
            kdcli(
                "distill", "--teacher", teacher, *SMALL, "--epochs", "2", "--output", "cut", "--checkpoint-every", "2"
            )
    kdcli("distill", "--resume", "cut")
    files = [load_file(run / "student" / "model.safetensors") for run in (distilled[0], kdcli.cwd / "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_evaluated_with_pictures_of_every_model(kdcli, distilled):
    out = kdcli("evaluate", "distilled", "--show", "3", "--device", "cpu")
    assert "mean IoU" in out
    assert f"data: {16 * 30 * 32} test pixels in 16 images of" in out
    folder = distilled[0] / "evaluation"
    found = json.loads((folder / "evaluation.json").read_text())
    student = found["models"]["student"]
    assert student["mean_iou"] == pytest.approx(metrics(distilled[0])["mean_iou"], abs=1e-6)
    assert student["mean_iou"] == pytest.approx(np.mean([iou for iou in student["iou"] if iou is not None]))
    assert 0.3 < student["agreement_with_teacher"] <= 1
    assert sum(found["class_counts"]) == 16 * 30 * 32, "the margin has no labels"
    assert any("masks of 32x32 pixels" in note for note in found["notes"])
    assert Image.open(folder / "samples.png").width > 500


def test_compared_with_intervals_over_images(kdcli, distilled):
    out = json.loads(kdcli("compare", "distilled", "--json"))
    text = json.dumps(out)
    assert "mean_iou" in text
    assert "pixel_accuracy" in text


def test_exported_it_is_loaded_by_its_library(kdcli, distilled):
    import segmentation_models_pytorch as smp

    out = kdcli("export", "distilled", "--output", "exported")
    assert "loaded back" in out
    assert "Loading weights" not in out, "what huggingface_hub prints"
    folder = kdcli.cwd / "exported"
    assert json.loads((folder / "config.json").read_text())["_label_names"] == ["paper", "ink", "dot"]
    assert smp.from_pretrained(str(folder)).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "smp.from_pretrained" in card
    assert "# linknet/mobilenetv3_small_050?encoder_depth=3, distilled with kdcli" in card
    assert "library_name: segmentation-models-pytorch\n" in card


def test_exported_to_onnx(kdcli, distilled):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert "loaded back" in kdcli("export", "distilled", "--format", "onnx", "--output", "onnx")


def test_a_teacher_that_takes_everything_for_one_class_is_refused(kdcli, teacher):
    folder = kdcli.cwd / "paper"
    shutil.copytree(kdcli.cwd / teacher / "student", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["segmentation_head.0.bias"][0] += 1000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    command = ("--teacher", str(folder), *SMALL, "--output", "taught", "--dry-run")
    error = kdcli("distill", *command, fails=True)
    assert "does no better than guessing: mean_iou 0." in error
    assert "guessing gives a mean IoU of 0." in error
    assert "it is taken all the same" in kdcli("distill", *command, "--unchecked-teacher")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_of_ignored_pixels_is_refused_before_anything_is_written(kdcli, data, split):
    folder = kdcli.cwd / f"without {split}"
    shutil.copytree(data, folder)
    for mask in (folder / split / "masks").iterdir():
        Image.fromarray(np.full((32, 40), 255, np.uint8)).save(mask)
    options = ("--teacher", "none", *SMALL, "--data", str(folder), "--output", "unlabelled")
    error = kdcli("distill", *options, fails=True)
    assert f"no labelled pixels to evaluate on in the {'validation' if split == 'val' else split} split" in error
    assert not (kdcli.cwd / "unlabelled").exists()
    if split == "test":
        assert "Plan: smp:linknet" in kdcli("distill", *options, "--set", "test=false", "--dry-run")


def test_a_loss_of_another_name_is_refused_before_anything_is_written(kdcli):
    recipe = kdcli.cwd / "wrong.yaml"
    recipe.write_text(yaml.safe_dump({"methods": [{"method": "supervised", "loss": "dise"}]}))
    error = kdcli("distill", "--recipe", str(recipe), "--teacher", "none", *SMALL, "--output", "wrong", fails=True)
    assert "semantic-segmentation has no loss 'dise'. Did you mean dice" in error
    assert not (kdcli.cwd / "wrong").exists()
