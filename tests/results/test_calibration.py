"""Temperature scaling: the fit, what it changes in predictions and exports, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
import statistics

import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from kdcli.models import load_saved
from kdcli.results.calibration import fit_temperature, fold_temperature, gain_of_temperature
from kdcli.runs.folder import RunFolder


def test_the_temperature_of_sampled_labels_is_found():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.05)
    found = fit_temperature(logits, labels)
    grid = [float(F.cross_entropy(logits.double() / (found * scale), labels)) for scale in (0.98, 1, 1.02)]
    assert min(grid) == grid[1]


def labels_of(logits, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


def test_the_gain_is_that_of_samples_that_were_not_fitted_on():
    logits = 3 * torch.randn(500, 5, generator=torch.Generator().manual_seed(1))
    targets = labels_of(logits, 2)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    gains = []
    for part in range(5):
        held = order[part::5]
        others = [number for number in range(500) if number not in held.tolist()]
        temperature = fit_temperature(2 * logits[others], targets[others])
        gains += [
            float(F.cross_entropy(2 * logits[n].double(), targets[n]))
            - float(F.cross_entropy(2 * logits[n].double() / temperature, targets[n]))
            for n in held.tolist()
        ]
    interval = scipy.stats.t.interval(0.95, 499, loc=statistics.mean(gains), scale=scipy.stats.sem(gains))
    found = gain_of_temperature(2 * logits, targets)
    assert found == pytest.approx((statistics.mean(gains), *interval), rel=1e-6)
    assert found[1] > 0


def test_a_calibrated_student_has_no_clear_gain():
    clear = 0
    for seed in range(20):
        logits = 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(seed))
        found = gain_of_temperature(logits, labels_of(logits, 100 + seed))
        clear += found[1] > 0
    assert clear == 0
    assert gain_of_temperature(logits[:9], labels_of(logits[:9], 0)) is None


def test_a_gain_within_noise_leaves_the_temperature_as_it_is(calibrated):
    """Of so few validation samples."""
    found = calibrated[3]
    assert found["temperature"] == 1
    assert found["fitted"] != 1
    assert all(values["before"] == values["after"] for values in found["splits"].values())
    assert any("The temperature stays 1" in note for note in found["notes"])


@pytest.fixture(scope="module")
def calibrated(same_run, run_cli_in, tmp_path_factory):
    folder = shutil.copytree(same_run, tmp_path_factory.mktemp("calibrated") / "run")
    before = run_cli_in("predict", "run", "photo.jpg", "--json", "--device", "cpu", cwd=_with_photo(folder.parent))
    outcome = run_cli_in("calibrate", "run", "--device", "cpu", "--json", cwd=folder.parent)
    assert outcome.exit_code == 0, outcome.stderr
    said = json.loads(outcome.stdout)
    found = said | {"temperature": 2.0}  # as if it had a clear gain
    (folder / "calibration.json").write_text(json.dumps(found))
    return folder, found, json.loads(before.stdout), said


def _with_photo(folder):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(folder / "photo.jpg")
    return folder


def test_predictions_are_calibrated_and_the_choice_of_classes_stays(calibrated, run_cli_in):
    folder, found, before, _ = calibrated
    assert set(found["splits"]) == {"validation", "test"}
    outcome = run_cli_in("predict", "run", "photo.jpg", "--json", "--device", "cpu", cwd=folder.parent)
    after = json.loads(outcome.stdout)
    told = [list(_records(content)) for content in (before, after)]
    assert [record["label"] for record in told[0]] == [record["label"] for record in told[1]]
    raised = [record["probability"] ** (1 / found["temperature"]) for record in told[0]]
    assert [r["probability"] for r in told[1]] == pytest.approx([value / sum(raised) for value in raised], rel=1e-6)


def _records(content):
    """Every record with a probability, however deep."""
    if isinstance(content, dict):
        if "probability" in content:
            yield content
        for value in content.values():
            yield from _records(value)
    elif isinstance(content, list):
        for value in content:
            yield from _records(value)


@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_exports_have_divided_logits(calibrated, run_cli_in, form):
    folder, found, *_ = calibrated
    outcome = run_cli_in("export", "run", "--format", form, "--output", form, cwd=folder.parent)
    assert outcome.exit_code == 0, outcome.stderr
    assert "Calibrated: the last layer is divided" in outcome.stdout
    student = load_saved(RunFolder(folder).student)
    images = student.example(3, seed=5)
    with torch.inference_mode():
        expected = student(images).heads["logits"] / found["temperature"]
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder.parent / form / "model.onnx"))
        logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    else:
        import timm

        module = timm.create_model(f"local-dir:{folder.parent / form}", pretrained=True).eval()
        with torch.inference_mode():
            logits = module(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_temperature_of_another_student_is_refused(calibrated, run_cli_in):
    folder, found, *_ = calibrated
    copy = shutil.copytree(folder, folder.parent / "other")
    (copy / "calibration.json").write_text(json.dumps(found | {"student": "0" * 64}))
    for command in (("predict", "other", "photo.jpg"), ("export", "other")):
        outcome = run_cli_in(*command, cwd=folder.parent)
        assert (outcome.exit_code, "is of another student" in outcome.stderr) == (2, True)
    outcome = run_cli_in("calibrate", "photo.jpg", cwd=folder.parent)
    assert outcome.exit_code == 2


def test_folding_changes_nothing_else(same_run):
    student = load_saved(RunFolder(same_run).student)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    fold_temperature(student, 2.0)
    changed = [name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed
    assert all(tensor.shape[0] == student.facts.num_classes for tensor in map(before.__getitem__, changed))
    assert math.isclose(
        float(student.state_dict()[changed[0]].sum() * 2), float(before[changed[0]].sum()), rel_tol=1e-5
    )
