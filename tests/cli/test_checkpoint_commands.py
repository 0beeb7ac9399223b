"""Checkpoints of training scripts on the command line: distill, evaluate and models probe."""

import json
import shutil
from argparse import Namespace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config


@pytest.fixture
def checkpoint(tmp_path, trained_teacher):
    """What timm's training script writes, run with --img-size 48 --mean 0.5 --std 0.25 --crop-pct 0.9."""
    arguments = Namespace(
        model="test_resnet", img_size=48, mean=[0.5], std=[0.25], crop_pct=0.9, interpolation="bilinear"
    )
    state = load_file(trained_teacher / "model.safetensors")
    torch.save({"arch": "test_resnet", "args": arguments, "state_dict": state}, tmp_path / "best.pth.tar")
    model = timm.create_model("test_resnet", num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    return arguments, model.eval()


def test_evaluate_gives_the_predictions_of_timms_own_preprocessing(run_cli, photos, checkpoint, tmp_path):
    arguments, model = checkpoint
    transform = create_transform(**resolve_data_config(vars(arguments), model=model))
    for split in ("train", "val", "test"):
        shutil.copytree(photos, tmp_path / "split" / split)
    kinds = sorted(folder.name for folder in photos.iterdir())
    counts = torch.zeros(len(kinds), len(kinds), dtype=torch.int64)
    for label, kind in enumerate(kinds):
        for file in sorted((photos / kind).iterdir()):
            with torch.no_grad(), Image.open(file) as image:
                counts[label, model(transform(image.convert("RGB"))[None]).argmax()] += 1
    names = [
        ("best.pth.tar",),
        ("test_resnet", "--teacher-weights", "best.pth.tar"),
        ("test_resnet?weights=best.pth.tar",),
    ]
    for name in names:
        exit_code, stdout, stderr = run_cli("evaluate", *name, "--data", "split", "--device", "cpu", "--json")
        assert exit_code == 0, stderr
        evaluation = json.loads(stdout)
        assert evaluation["models"]["model"]["confusion"] == counts.tolist()
        assert any("read from the file: 48x48 pixels" in note for note in evaluation["notes"])


def test_a_run_has_its_own_weights(run_cli, same_run):
    exit_code, _, stderr = run_cli("evaluate", same_run, "--teacher-weights", "x.pth")
    assert exit_code == 2
    assert "is a run: it has weights of its own" in stderr


def test_probe_takes_a_file_for_each_teacher(run_cli, photos, checkpoint):
    probe = ("models", "probe", "--data", photos, "--device", "cpu")
    first, second = "test_resnet?weights=best.pth.tar", "test_vit"
    exit_code, stdout, stderr = run_cli(*probe, "--teacher", first, "--teacher", "random:test_resnet", "--json")
    assert exit_code == 0, stderr
    found = {entry["teacher"]: entry for entry in json.loads(stdout)["teachers"]}
    assert "read from the file: 48x48 pixels" in found[first]["weights"]
    assert found["random:test_resnet"]["weights"] == "untrained"
    exit_code, _, stderr = run_cli(*probe, "--teacher", first, "--teacher", second, "--teacher-weights", "best.pth.tar")
    assert exit_code == 2
    assert "--teacher 'NAME?weights=FILE'" in stderr
