"""Detectors of transformers by the commands: a YOLOS taught by another, RT-DETR by itself, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import load_file

from kdcli.training.trainer import Trainer
from tests.models.tiny_detectors import write_config

CLASSES = ("disc", "square")
SPLITS = {"train": 16, "val": 6, "test": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of 80x64 pixels with up to three bright squares each, with COCO's json files."""
    root, random = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    for split, count in SPLITS.items():
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels = random.integers(0, 80, (64, 80, 3), dtype=np.uint8)
            for _ in range(int(random.integers(0, 4)) if number > 1 else 2):
                label, side = int(random.integers(2)), int(random.integers(12, 30))
                left, top = int(random.integers(80 - side)), int(random.integers(64 - side))
                pixels[top : top + side, left : left + side, label] = 255
                box = {"bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, **box})
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 64})
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in ("yolos", "detr", "rt_detr"):
        write_config(root / kind, kind)
    write_config(root / "wide", "yolos", hidden_size=48, image_size=[96, 96])
    write_config(root / "more", "yolos", num_detection_tokens=30)
    return root


def recipe(data, models, student, teacher=None, pairs=(), epochs=1, **train):
    methods = [{"method": "supervised"}]
    if pairs:
        level = {
            "method": "projection",
            "projector": "orthogonal",
            "reads": "maps",
            "layers": list(pairs),
            "weight": 4.0,
        }
        methods.append({**level, "normalize": "standardize", "normalize_student": "standardize"})
    role = {"name": "none"} if teacher is None else {"name": f"random:{models / teacher}", "unchecked": True}
    return {
        "task": "object-detection",
        "data": {"name": str(data)},
        "teacher": role,
        "student": {"name": str(models / student), "image_size": 64},
        "train": {"epochs": epochs, "batch_size": 8, **train},
        "methods": methods,
    }


def write(folder, content):
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def training_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (train,) = (line for line in lines if line["event"] == "train")
    return train


PAIRS = ("pooled:pooled", "detection_tokens:detection_tokens")


@pytest.fixture(scope="module")
def run(data, models, tmp_path_factory, run_cli_in):
    folder = tmp_path_factory.mktemp("run")
    file = write(folder, recipe(data, models, "yolos", "wide", PAIRS))
    outcome = run_cli_in("distill", "--recipe", file, "--output", "run", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "run"


def test_a_yolos_taught_by_another_of_another_size(run):
    train = training_of(run)
    assert train["loss"] == pytest.approx(train["supervised"] + 4 * train["projection"], rel=1e-5)
    result = json.loads((run / "result.json").read_text())
    assert {"map", "map_50", "loss"} <= result["test"].keys()
    shown = {decision["value"] for decision in json.loads((run / "plan.json").read_text())["decisions"]}
    assert "student pooled (32, 4x4) -> teacher pooled (48, 6x6)" in shown
    assert "student detection_tokens (32, 20x1) -> teacher detection_tokens (48, 20x1)" in shown


def test_export_is_transformers_own(run, data, run_cli_in):
    outcome = run_cli_in("export", "run", "--output", "out", cwd=run.parent)
    assert outcome.exit_code == 0, outcome.stderr
    assert "its outputs differ by at most 0.0e+00" in outcome.stdout
    finder = transformers.pipeline("object-detection", str(run.parent / "out"), threshold=0.0)
    found = finder(Image.open(data / "test" / "1.png"))
    assert len(found) == 20
    assert {one["label"] for one in found} <= set(CLASSES)
    assert "post_process_object_detection" in (run.parent / "out" / "README.md").read_text()


class Dead(Exception):
    """A process that dies."""


def test_a_run_cut_short_goes_on_with_the_same_denoising(data, models, tmp_path, run_cli, monkeypatch):
    file = write(tmp_path, recipe(data, models, "rt_detr", epochs=2))
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
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_two_processes_train_as_one(run, run_in_two_processes):
    """The processes have other numbers of boxes each, which the losses are divided by."""
    run_in_two_processes([("distill", "--recipe", run.parent / "recipe.yaml", "--output", run.parent / "two")])
    one, two = (load_file(run.parent / name / "student" / "model.safetensors") for name in ("run", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=5e-5)
    alone, together = (training_of(run.parent / name) for name in ("run", "two"))
    assert together["supervised"] == pytest.approx(alone["supervised"], rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "pair", "reason"),
    [
        ("yolos", "more", "detection_tokens:detection_tokens", "the student has 20 of them and the teacher 30"),
        ("yolos", "wide", "detection_tokens:pooled", "the other side has none"),
        ("yolos", "detr", "detection_tokens:detection_tokens", "tokens of yolos and of detr have nothing in common"),
        ("detr", "detr", "detection_tokens:detection_tokens", "would have to come from the teacher's weights"),
        ("rt_detr", "rt_detr", "model.decoder.layers.1:detection_tokens", "chosen anew for each image"),
        ("detr", "rt_detr", "pooled:neck.2", ""),
    ],
)
def test_tokens_are_matched_by_number_only_where_numbers_mean_something(
    data, models, tmp_path, run_cli, student, teacher, pair, reason
):
    file = write(tmp_path, recipe(data, models, student, teacher, (pair,)))
    outcome = run_cli("distill", "--recipe", file, "--output", "run", "--dry-run")
    assert outcome.exit_code == (2 if reason else 0), outcome.stderr
    assert reason in outcome.stderr
