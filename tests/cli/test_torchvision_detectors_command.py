"""torchvision's detectors by the commands: one taught by another of another size, resumed, shown, exported, refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from kdcli.training.trainer import Trainer

CLASSES = ("disc", "square")
SPLITS = {"train": 16, "val": 6, "test": 6}
STUDENT, TEACHER = "torchvision:ssdlite/mobilenet_v3_small", "random:torchvision:ssdlite/mobilenet_v3_large"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of 80x64 pixels with up to three bright squares each, the first always two, as Pascal VOC has them."""
    root, random = tmp_path_factory.mktemp("voc"), np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, count in SPLITS.items():
        names = [f"{split}{number}" for number in range(count)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels, objects = random.integers(0, 80, (64, 80, 3), dtype=np.uint8), ""
            for place in range(int(random.integers(0, 4)) if name[-1] != "0" else 2):
                label, side = place % 2, int(random.integers(16, 40))
                left, top = int(random.integers(80 - side)), int(random.integers(64 - side))
                pixels[top : top + side, left : left + side, label] = 255
                edges = zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, left + side, top + side), strict=True)
                box = "".join(f"<{key}>{value}</{key}>" for key, value in edges)
                objects += f"<object><name>{CLASSES[label]}</name><bndbox>{box}</bndbox></object>"
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
            size = "<size><width>80</width><height>64</height><depth>3</depth></size>"
            text = f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def recipe(data, *more, epochs=1, teacher=True, **supervised):
    role = {"name": TEACHER, "image_size": 96, "unchecked": True} if teacher else {"name": "none"}
    return {
        "task": "object-detection",
        "data": {"name": str(data)},
        "teacher": role,
        "student": {"name": STUDENT, "image_size": 64},
        "train": {"epochs": epochs, "batch_size": 8},
        "methods": [{"method": "supervised", **supervised}, *more],
    }


LEVELS = {
    "method": "projection", "projector": "orthogonal", "reads": "maps", "layers": ["neck.0:neck.0", "neck.1:neck.1"],
    "normalize": "standardize", "normalize_student": "standardize", "weight": 4.0,
}  # fmt: skip


def write(folder, content):
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def run(data, tmp_path_factory, run_cli_in):
    folder = tmp_path_factory.mktemp("run")
    file = write(folder, recipe(data, LEVELS))
    outcome = run_cli_in("distill", "--recipe", file, "--output", "run", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "run"


def test_neck_maps_of_a_teacher_of_another_size_are_distilled(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (train,) = (line for line in lines if line["event"] == "train")
    assert train["loss"] == pytest.approx(train["supervised"] + 4 * train["projection"], rel=1e-5)
    result = json.loads((run / "result.json").read_text())
    assert {"map", "map_50", "map_75", "loss"} <= result["test"].keys()
    shown = {decision["value"] for decision in json.loads((run / "plan.json").read_text())["decisions"]}
    assert {"bbox_regression + classification", "at 64x64 pixels"} <= shown
    assert "student neck.0 (288, 4x4) -> teacher neck.0 (672, 6x6)" in shown


def test_it_is_measured_and_drawn(run, run_cli_in):
    outcome = run_cli_in("evaluate", "run", "--no-teacher", "--show", "2", cwd=run.parent)
    assert outcome.exit_code == 0, outcome.stderr
    assert "mAP at IoU 0.5" in outcome.stdout
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())
    (model,) = evaluation["models"].values()
    assert len(model["average_precision"]) == len(CLASSES)
    assert Image.open(run / "evaluation" / "samples.png").width > 300


def test_it_is_exported_for_torchvision_alone_and_not_to_onnx(run, run_cli_in):
    outcome = run_cli_in("export", "run", "--output", "out", cwd=run.parent)
    assert outcome.exit_code == 0, outcome.stderr
    card = (run.parent / "out" / "README.md").read_text()
    assert "SSD(_mobilenet_extractor(" in card
    assert "library_name: torchvision\n" in card
    assert "# ssdlite/mobilenet_v3_small" in card
    outcome = run_cli_in("export", "run", "--format", "onnx", "--output", "onnx", cwd=run.parent)
    assert outcome.exit_code == 2
    assert "another number of boxes for every image" in outcome.stderr


class Dead(Exception):
    """A process that dies."""


def test_a_run_cut_short_goes_on_bit_for_bit(data, tmp_path, run_cli, monkeypatch):
    file = write(tmp_path, recipe(data, LEVELS, epochs=2, loss={"classification": 1.0, "bbox_regression": 0.5}))
    command = ("distill", "--recipe", file, "--checkpoint-every", 1, "--output")
    assert run_cli(*command, "whole").exit_code == 0
    original = Trainer.train_step

    def dies(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 3:
            raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dies)
        with pytest.raises(Dead):
            run_cli(*command, "cut")
    outcome = run_cli("distill", "--resume", "cut")
    assert outcome.exit_code == 0, outcome.stderr
    whole, cut = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "cut"))
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_one_image_a_step_is_refused_before_anything_is_written(data, tmp_path, run_cli):
    """SSDLite's last level is one position: of one image a batch normalisation gets one value a channel."""
    file = write(tmp_path, recipe(data, teacher=False))
    outcome = run_cli("distill", "--recipe", file, "--set", "data.train_images=1", "--output", "one")
    assert outcome.exit_code == 2, outcome.stderr
    said = " ".join(outcome.stderr.split())
    assert "can't be trained on one image at a time: its batch normalisation" in said
    assert "a batch of 2" in said
    assert not (tmp_path / "one").exists()


def test_a_split_without_boxes_is_refused_before_anything_is_written(data, tmp_path, run_cli):
    shutil.copytree(data, tmp_path / "voc")
    for file in (tmp_path / "voc" / "Annotations").glob("test*.xml"):
        text = file.read_text().replace("<object>", "<object><difficult>1</difficult>")
        file.write_text(text)
    file = write(tmp_path, recipe(tmp_path / "voc", teacher=False))
    outcome = run_cli("distill", "--recipe", file, "--output", "empty")
    assert outcome.exit_code == 2, outcome.stderr
    assert "There are no boxes to evaluate on in the test split" in outcome.stderr
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"more": ({"method": "logit_kd"},)},
            "logit_kd compares the logits of one thing by two models, and a detector's are of boxes",
        ),
        ({"loss": {"bbox_regresion": 1.0}}, "has no loss 'bbox_regresion'. Did you mean bbox_regression"),
        ({"label_smoothing": 0.1}, "label_smoothing is for classes, and the labels are boxes"),
    ],
)
def test_what_is_refused(data, tmp_path, run_cli, content, message):
    content = dict(content)
    file = write(tmp_path, recipe(data, *content.pop("more", ()), **content))
    if len(yaml.safe_load(file.read_text())["methods"]) == 1:
        file = write(tmp_path, recipe(data, teacher=False, **content))
    outcome = run_cli("distill", "--recipe", file, "--output", "run")
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.stderr.split())
