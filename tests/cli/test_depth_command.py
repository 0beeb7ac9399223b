"""Depth from end to end: planned, trained with a teacher of depth, resumed, evaluated, exported, measured after a fit."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

STUDENT = (
    "hf:glpn?hidden_sizes=[8,8,16,16]&depths=[1,1,1,1]&num_attention_heads=[1,1,1,1]&decoder_hidden_size=8"
    "&drop_path_rate=0.0"
)
SMALL = ("--student", STUDENT, "--set", "student.image_size=32", "--set", "data.max_depth=8")
FAST = ("--batch-size", "8", "--lr", "0.003", "--device", "cpu", "--set", "data.workers=0")


def draw_rooms(folder, count, seed):
    """A ball before a wall: the nearer, the larger and the brighter."""
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :48]
    for number in range(count):
        distance, wall = generator.uniform(1, 4), generator.uniform(5, 7)
        y, x = generator.uniform(12, 28), generator.uniform(12, 36)
        ball = (rows - y) ** 2 + (columns - x) ** 2 < (24 / distance) ** 2
        depth = np.where(ball, distance, wall).astype(np.float32)
        depth[:4] = 0.0  # not measured
        pixels = np.repeat((255 / np.where(ball, distance, wall))[..., None], 3, axis=2) + generator.normal(
            0, 4, (40, 48, 3)
        )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        np.save(folder / "depth" / f"{number}.npy", depth)


@pytest.fixture(scope="module")
def kdcli(tmp_path_factory, run_cli_in):
    """``kdcli(*arguments)`` in a folder with data in ``rooms``."""
    cwd = tmp_path_factory.mktemp("depth")
    for seed, (split, count) in enumerate((("train", 24), ("val", 8), ("test", 8))):
        draw_rooms(cwd / "rooms" / split, count, seed)

    def run(*arguments, code=0):
        outcome = run_cli_in(*arguments, cwd=cwd)
        assert outcome.exit_code == code, outcome.stdout + outcome.stderr
        return outcome.stdout if code == 0 else outcome.stderr

    run.cwd = cwd
    return run


DATA = ("--task", "depth-estimation", "--data", "rooms")


@pytest.fixture(scope="module")
def teacher(kdcli):
    kdcli("distill", "--teacher", "none", *SMALL, *DATA, *FAST, "--epochs", "3", "--output", "teacher")
    return "teacher"


@pytest.fixture(scope="module")
def same(kdcli, teacher):
    options = (*SMALL, *DATA, *FAST, "--epochs", "2", "--unchecked-teacher", "--output", "same")
    return kdcli.cwd / "same", kdcli("distill", "--teacher", teacher, *options)


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "test"][-1]


def test_the_plan_and_what_comes_of_it(same):
    run, out = same
    assert json.loads((run / "plan.json").read_text())["relation"] == "same"
    methods = yaml.safe_load((run / "config.yaml").read_text())["methods"]
    assert [method["method"] for method in methods] == ["supervised", "dense_regression"]
    assert methods[0]["loss"] == {"silog": 1.0}
    assert methods[0]["label_smoothing"] == 0
    assert "0.001 to 8 m" in out
    decisions = {entry["name"]: entry for entry in json.loads((run / "plan.json").read_text())["decisions"]}
    assert decisions["loss: supervised"]["value"] == "weight 1, loss silog", "no smoothing, which depth has none of"
    found = metrics(run)
    assert 0 < found["delta1"] <= found["delta2"] <= found["delta3"] <= 1
    assert found["rmse"] > 0


def test_what_was_measured_of_the_teacher_goes_by_what_counts(kdcli, teacher):
    """It is kept for the next run, and other depths count then."""

    def measured(*settings):
        options = (*SMALL, *DATA, *FAST, "--unchecked-teacher", "--dry-run", "--log-format", "json", *settings)
        return json.loads(kdcli("distill", "--teacher", teacher, *options))["teacher_metrics"]

    crop, fit = ("--set", "data.depth_crop=garg"), ("--set", "data.depth_alignment=median")
    found = [measured(), measured(*crop), measured(*fit), measured()]
    assert found[0] == found[3]
    assert len({metrics["rmse"] for metrics in found}) == 3


def test_a_split_without_depth_is_refused_before_anything_is_written(kdcli, tmp_path):
    shutil.copytree(kdcli.cwd / "rooms", tmp_path / "rooms")
    for file in (tmp_path / "rooms" / "test" / "depth").iterdir():
        np.save(file, np.full((40, 48), 9, np.float32))  # beyond data.max_depth
    options = ("--task", "depth-estimation", "--data", tmp_path / "rooms", *SMALL, *FAST, "--output", tmp_path / "run")
    error = kdcli("distill", "--teacher", "none", *options, code=2)
    assert "No depth from 0.001 to 8 m was measured in the test split" in error
    assert not (tmp_path / "run").exists()


class Interrupt(Exception):
    """Stands for a process that dies."""


def test_resumed_it_is_the_same_to_the_bit(kdcli, teacher, same, monkeypatch):
    from kdcli.training.trainer import Trainer

    original = Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 4:
            raise Interrupt

    options = ("--teacher", teacher, *SMALL, *DATA, *FAST, "--epochs", "2", "--unchecked-teacher", "--output", "cut")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Interrupt):
            kdcli("distill", *options, "--checkpoint-every", "2")
    kdcli("distill", "--resume", "cut")
    files = [load_file(folder / "student" / "model.safetensors") for folder in (same[0], kdcli.cwd / "cut")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert metrics(same[0]) == metrics(kdcli.cwd / "cut")


def test_evaluated_with_pictures(kdcli, same):
    out = kdcli("evaluate", same[0], "--show", "2", "--device", "cpu")
    assert "AbsRel" in out
    found = json.loads((same[0] / "evaluation" / "evaluation.json").read_text())
    assert found["models"]["student"]["abs_rel"] == pytest.approx(metrics(same[0])["abs_rel"], rel=1e-5)
    assert found["models"]["student"]["agreement_with_teacher"] > 0.3
    assert "Depth from 0.001 to 8 m; each image counts alike." in found["notes"]
    assert (same[0] / "evaluation" / "samples.png").stat().st_size > 5000


def test_evaluated_on_other_rooms_by_the_depths_that_counted_in_training(kdcli, same):
    for seed, split in enumerate(("train", "val", "test"), 3):
        draw_rooms(kdcli.cwd / "others" / split, 6, seed)
    options = ("--data", "others", "--no-teacher", "--json", "--device", "cpu")
    found = json.loads(kdcli("evaluate", same[0], *options))
    assert "Depth from 0.001 to 8 m; each image counts alike." in found["notes"]
    assert found["num_images"] == 6
    assert 0 < found["models"]["student"]["abs_rel"] != metrics(same[0])["abs_rel"]
    near = ("--set", "data.max_depth=5", "--set", "data.depth_alignment=median")
    set_for_run, set_for_model = (
        json.loads(kdcli("evaluate", name, *options, *near, *more))
        for name, more in ((same[0], ()), (same[0] / "student", ("--task", "depth-estimation")))
    )
    assert "Depth from 0.001 to 5 m; each image counts alike." in set_for_run["notes"]
    errors = [found["models"][role]["abs_rel"] for found, role in ((set_for_run, "student"), (set_for_model, "model"))]
    assert errors[0] == pytest.approx(errors[1])
    assert errors[0] != found["models"]["student"]["abs_rel"]


@pytest.mark.parametrize(
    ("setting", "data", "message"),
    [
        ("optim.lr=1", "others", "is no key of data, and nothing else is read here"),
        ("data={name: photos}", "others", "is no key of data, and nothing else is read here"),
        ("data.max_dept=5", "others", "Did you mean max_depth"),
        ("data.ignore_label=5", "others", "its labels are no classes of pixels"),
        ("data.labelled_images=5", "others", "it is about what is trained on"),
        ("data.name=x", "others", "--data names the data"),
        ("data.max_depth=5", "rooms", "those of a run are read as they were in training"),
    ],
)
def test_settings_of_data_that_evaluate_refuses(kdcli, same, setting, data, message):
    error = kdcli("evaluate", same[0], "--data", data, "--set", setting, "--device", "cpu", code=2)
    assert message in " ".join(error.split())


def test_exported_it_gives_metres_without_kdcli(kdcli, same):
    kdcli("export", same[0], "--output", "exported")
    folder = kdcli.cwd / "exported"
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    image = Image.open(kdcli.cwd / "rooms" / "test" / "images" / "0.png")
    with torch.inference_mode():
        outputs = model(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_depth_estimation(outputs, target_sizes=[image.size[::-1]])
    assert found["predicted_depth"].shape == (40, 48)
    assert 0 < found["predicted_depth"].min() < found["predicted_depth"].max() < 8
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: depth-estimation" in card
    assert "post_process_depth_estimation" in card


def test_a_relative_teacher(kdcli):
    """A Depth Anything as published: its depth is inverse, up to scale and shift."""
    vit = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model(
        "depth_anything",
        backbone_config={**vit, "model_type": "dinov2", "mlp_ratio": 2, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False},
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8, reassemble_hidden_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForDepthEstimation.from_config(config).save_pretrained(kdcli.cwd / "relative")
    options = (*SMALL, *DATA, *FAST, "--epochs", "1", "--unchecked-teacher", "--output", "relative-run")
    out = " ".join(kdcli("distill", "--teacher", "./relative", *options).replace("│", " ").split())
    assert "is relative: inverse, up to scale and shift" in out
    methods = yaml.safe_load((kdcli.cwd / "relative-run" / "config.yaml").read_text())["methods"]
    assert methods[-1]["loss"] == "scale_shift_invariant"


def test_logits_of_depth_are_refused_before_anything_is_written(kdcli, teacher):
    options = (*SMALL, *DATA, *FAST, "--output", "refused", "--method", "logit_kd")
    assert "depth has one channel" in kdcli("distill", "--teacher", teacher, *options, code=2)
    assert not (kdcli.cwd / "refused").exists()
