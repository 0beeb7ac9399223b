"""A run on images of four channels: trained, drawn, exported, asked, and measured beside one for colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import kdcli.models.timm.kdcli_networks  # noqa: F401

SETTINGS = ("--student", "cifar:resnet8", "--epochs", "1", "--batch-size", "8", "--set", "data.workers=0")
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in the fourth channel alone."""
    root = tmp_path_factory.mktemp("four")
    noise = np.random.default_rng(0)
    for number in range(40):
        place = root / "images" / ("low", "high")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (32, 32, 4), dtype=np.uint8)
        pixels[..., 3] = 40 + 170 * (number % 2)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(folder: Path, run_cli_in: Callable[..., Any]) -> Path:
    outcome = run_cli_in(
        *("distill", "--data", "images", "--set", "data.channels=4", "--teacher", "random:cifar:resnet8"),
        *("--method", "projection", *SETTINGS, "--output", "run"),
        cwd=folder,
    )
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "run"


def test_the_export_alone_gives_what_predict_says(folder: Path, run: Path, run_cli: Callable[..., Any]) -> None:
    assert (run / "samples.png").is_file()
    assert "4 channels, 32x32" in (run / "plan.json").read_text()
    outcome = run_cli("export", run, "--output", "export", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    assert "(B, 4, H, W)" in (folder / "export" / "README.md").read_text()
    module = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
    image = folder / "images" / "high" / "1.png"
    mean, std = (torch.tensor(module.pretrained_cfg[key]).view(4, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        logits = module(((torch.tensor(np.array(Image.open(image))).permute(2, 0, 1) / 255 - mean) / std)[None])
    expected = dict(zip(module.pretrained_cfg["label_names"], logits.softmax(1)[0].tolist(), strict=True))
    told = run_cli("predict", run, image, "--json", *CPU)
    assert told.exit_code == 0, told.stderr
    (answer,) = json.loads(told.stdout)["predictions"]
    found = {entry["label"]: entry["probability"] for entry in answer["answers"]["student"]}
    assert found == pytest.approx(expected, abs=1e-5)


def test_each_model_is_measured_in_its_own_channels(folder: Path, run: Path, run_cli: Callable[..., Any]) -> None:
    other = run_cli("distill", "--data", "images", "--teacher", "none", *SETTINGS, "--output", "colours", cwd=folder)
    assert other.exit_code == 0, other.stderr
    found = run_cli("evaluate", run, "--against", folder / "colours", "--json", *CPU)
    assert found.exit_code == 0, found.stderr
    written = json.loads(found.stdout)
    assert f"{run}: it reads images with all four channels of their files." in written["notes"]
    image = folder / "grey.png"
    Image.open(folder / "images" / "low" / "0.png").convert("L").save(image)
    refused = run_cli("predict", run, image, *CPU)
    assert refused.exit_code == 2
    assert "it has no fourth channel: PIL reads it as L" in refused.stderr
    refused = run_cli("predict", run, "--against", folder / "colours", image, *CPU)
    assert refused.exit_code == 2
    assert f"1 of 1 images looked at has no fourth channel, and {run} reads 4" in refused.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--teacher", "run"), "has weights for images of 4 channels, and the data are read with 3 channels"),
        (("--teacher", "none", "--set", "data.channels=2"), "data.channels: 2 is not one of 1, 3 or 4"),
        (
            ("--teacher", "none", "--set", "data.channels=4", "--set", "augment.policy=rand"),
            "augment.policy is set, and data.channels is 4",
        ),
        (
            ("--teacher", "package:hed", "--task", "image-translation", "--set", "data.channels=1"),
            "data.channels is set, but the task is image-translation",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, run: Path, run_cli: Callable[..., Any], settings: tuple[str, ...], message: str
) -> None:
    outcome = run_cli("distill", "--data", "images", *settings, *SETTINGS, "--output", "refused", cwd=folder)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert "Hint: " in outcome.stderr
    assert not (folder / "refused").exists()
