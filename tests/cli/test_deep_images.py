"""A run on images of more than 8 bits, and what its student is evaluated on."""

from __future__ import annotations

import json

import numpy as np
import yaml
from PIL import Image


def write(root, *, brightest):
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(20):
            values = generator.integers(0, brightest // 2, (16, 16)) + label * brightest // 2
            values[0, 0] = brightest if label else 0
            Image.fromarray(values.astype(np.uint16)).save(root / name / f"{number}.png")
    return root


def test_the_range_of_training_is_that_of_evaluation(run_cli, tmp_path, tiny):
    write(tmp_path / "bright", brightest=4000)
    write(tmp_path / "dim", brightest=200)
    outcome = run_cli(
        "distill", "--teacher", "none", "--student", "test_resnet", "--data", "bright", *tiny, "--output", "run"
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "Deep images: 0 is black, 4095 is white, as 32 of them reach from 0 to 4000" in outcome.stdout
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["deep_range"] == [0, 4095]
    found = json.loads(run_cli("evaluate", "run", "--data", "dim", "--json", "--device", "cpu").stdout)
    assert any("0 is black, 4095 is white, as data.deep_range says" in note for note in found["data_notes"])
    refused = run_cli(
        "distill", "--data", "bright", "--student", "test_resnet", "--teacher", "none", "--set", "data.deep_range=[9,0]"
    )
    assert (refused.exit_code, "goes up, from black to white" in refused.stderr) == (2, True)
