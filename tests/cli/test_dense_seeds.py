"""Seeds of a dense task side by side: ``kdcli sweep`` and ``kdcli compare`` of a segmenter, and what ``models`` tells of it."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
import yaml
from PIL import Image

from kdcli.config.data import DataConfig
from kdcli.data import open_dense

pytest.importorskip("segmentation_models_pytorch")

STUDENT = "smp:linknet/mobilenetv3_small_050?encoder_depth=3"
RECIPE = {
    "task": "semantic-segmentation",
    "teacher": "none",
    "student": {"name": STUDENT, "image_size": 32},
    "data": {"workers": 0},
    "train": {"epochs": 1, "batch_size": 4, "device": "cpu"},
}
LOSSES = {"alone": "cross_entropy", "overlap": {"cross_entropy": 1, "dice": 1}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, run_cli_in):
    """Two losses with two seeds each, on scenes at 32 pixels; and what was printed. Not to be changed."""
    folder = tmp_path_factory.mktemp("seeds")
    draw_few(folder)
    (folder / "recipes").mkdir()
    for name, loss in LOSSES.items():
        values = RECIPE | {"methods": [{"method": "supervised", "loss": loss}]}
        values["data"] = values["data"] | {"name": str(folder / "scenes")}
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    outcome = run_cli_in("sweep", "recipes", "--seeds", "2", "--baseline", "alone", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    return folder, outcome.stdout


def draw_few(folder):
    """The first scenes of ``demo:scenes`` as files: its own splits are too large for a quick test."""
    data = open_dense(DataConfig(name="demo:scenes"), "pixels", seed=0)
    for split, source, count in (("train", data.train, 8), ("val", data.validation, 4), ("test", data.test, 4)):
        for kind in ("images", "masks"):
            (folder / "scenes" / split / kind).mkdir(parents=True)
        for index in range(count):
            image, mask = source.load(index)
            image.save(folder / "scenes" / split / "images" / f"{index}.png")
            Image.fromarray(mask.numpy().astype(np.uint8)).save(folder / "scenes" / split / "masks" / f"{index}.png")


def cell(stdout, row, column):
    """Return a cell of the table whose rows are methods."""
    (line,) = (line for line in stdout.splitlines() if line.startswith(f"| {row} ") and "%" not in line)
    return line.strip("|").split("|")[column].strip()


def mean_iou_of(run):
    return json.loads((run / "result.json").read_text())["test"]["mean_iou"]


def test_a_sweep_of_segmenters_tells_their_paired_difference(swept):
    folder, stdout = swept
    root = folder / "runs" / "sweeps" / "recipes"
    alone, overlap = ([mean_iou_of(root / name / f"seed-{seed}") for seed in (0, 1)] for name in LOSSES)
    for name, values in zip(LOSSES, (alone, overlap), strict=True):
        assert all(0 < value < 1 for value in values)
        expected = f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"
        assert cell(stdout, name, 3) == expected
    difference = statistics.mean(ours - theirs for ours, theirs in zip(overlap, alone, strict=True))
    assert cell(stdout, "overlap", 4).startswith(f"{100 * difference:+.2f} [")


def test_two_runs_are_compared_by_their_images(swept, run_cli_in):
    folder, _ = swept
    runs = [f"runs/sweeps/recipes/{name}/seed-0" for name in LOSSES]
    outcome = run_cli_in("compare", *runs, "--baseline", runs[0], cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    difference = mean_iou_of(folder / runs[1]) - mean_iou_of(folder / runs[0])
    assert cell(outcome.stdout, "overlap", 4).startswith(f"{100 * difference:+.2f}")


def test_layers_of_a_segmenter_are_listed_and_probing_one_is_refused(swept, run_cli_in):
    folder, _ = swept
    run = folder / "runs" / "sweeps" / "recipes" / "alone" / "seed-0"
    outcome = run_cli_in("models", "layers", str(run), "--json", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["image_size"] == [32, 32]
    assert any(layer["grid"] == [4, 4] for layer in found["layers"])
    asked = ("--task", "semantic-segmentation", "--data", "demo:scenes")
    outcome = run_cli_in("models", "probe", "--teacher", str(run), *asked, cwd=folder)
    assert outcome.exit_code == 2
    assert "--task can't be" in outcome.stderr
