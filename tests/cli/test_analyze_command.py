"""``kdcli analyze-projector``: its numbers against a computation of their own, from the run's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file


@pytest.fixture(scope="session")
def analyzed(random_run, same_run, run_cli_in, tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """Both runs, analysed once: name -> (folder, what was printed)."""
    results = {}
    for run in (random_run, same_run):
        folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("analyzed") / run.name))
        outcome = run_cli_in("analyze-projector", folder, cwd=folder.parent)
        assert outcome.exit_code == 0, outcome.stderr
        results[run.name] = (folder, outcome.stdout)
    return results


@pytest.fixture(params=["inverted", "orthogonal"])
def case(request, analyzed):
    folder, stdout = analyzed[request.param]
    analysis = json.loads((folder / "analysis" / "analysis.json").read_text())
    (tensors,) = load_file(folder / "projector.safetensors").values()
    return request.param, folder, stdout, analysis, tensors.astype(np.float64)


def cell(stdout: str, row: str, column: int) -> str:
    (line,) = (line for line in stdout.splitlines() if line.startswith(f"│ {row} "))
    return line.strip("│").split("│")[column].strip()


def test_spectrum(case):
    kind, _, stdout, analysis, matrix = case
    assert analysis["projectors"].keys() == {"projection"}
    result = analysis["projectors"]["projection"]
    spectrum = result["spectrum"]
    assert result["kind"] == kind
    assert result["direction"] == {"inverted": "teacher_to_student", "orthogonal": "student_to_teacher"}[kind]
    assert tuple(spectrum["shape"]) == matrix.shape == (64, 96)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(result["singular_values"], values, rtol=1e-5)
    assert spectrum["largest"] == pytest.approx(values[0], rel=1e-5)
    assert spectrum["smallest"] == pytest.approx(values[-1], rel=1e-5)
    assert spectrum["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)
    shares = values / values.sum()
    effective = np.exp(-(shares * np.log(shares)).sum())
    assert spectrum["effective_rank"] == pytest.approx(effective, rel=1e-5)
    assert spectrum["rank"] == 64
    error = np.abs(matrix @ matrix.T - np.eye(64)).max()
    assert spectrum["orthogonality_error"] == pytest.approx(error, rel=1e-3, abs=1e-7)
    assert cell(stdout, "numerical rank", 2) == "64"
    assert cell(stdout, "effective rank", 2) == f"{effective:.1f}"
    assert cell(stdout, "largest singular value", 2) == f"{values[0]:.4g}"
    assert (error <= 1e-5) == (kind == "orthogonal")


def test_evolution_is_what_the_run_recorded(case):
    _, folder, stdout, analysis, _ = case
    evolution = analysis["projectors"]["projection"]["evolution"]
    spectra = load_file(folder / "spectra.safetensors")
    assert evolution["steps"] == spectra["steps"].tolist() == [0, 3, 6]
    history = spectra["projection"].astype(np.float64)
    assert history.shape == (3, 64)
    stable = (history**2).sum(axis=1) / history.max(axis=1) ** 2
    np.testing.assert_allclose(evolution["stable"], stable, rtol=1e-5)
    assert cell(stdout, "stable rank", 1) == f"{stable[0]:.1f}"


def test_decomposition_adds_up_to_the_projection_loss(case):
    """Features, normalisation and distance are recomputed here from the saved student and the teacher."""
    kind, folder, stdout, analysis, matrix = case
    import torch

    from kdcli.data import prepare
    from kdcli.job import reopen_job
    from kdcli.run_folder import RunFolder

    job = reopen_job(RunFolder.open(folder))
    ours, theirs = job.student.facts.preprocessing, job.teacher.facts.preprocessing
    canvas = ours.at(tuple(map(max, ours.image_size, theirs.image_size)))
    features = {}
    method = job.distiller.methods["projection"]
    for name, model, tap in (
        ("student", job.student.eval(), method.student_taps[0]),
        ("teacher", job.teacher, method.teacher_taps[0]),
    ):
        parts = []
        for batch in job.eval_loader(job.data.validation, canvas):
            with torch.inference_mode():
                output = model(prepare(batch.images, model.facts.preprocessing), taps=(tap,), logits=False)
            parts.append(output.features[tap].double().numpy())
        features[name] = np.concatenate(parts)

    def standardize(values):
        return (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)

    student, teacher = features["student"], features["teacher"]
    if kind == "inverted":
        source, target = standardize(teacher), standardize(student)
    else:
        centred = teacher - teacher.mean(1, keepdims=True)
        source, target = student, centred / np.sqrt(teacher.var(1, keepdims=True) + 1e-5)
    total = ((target - source @ matrix) ** 2).sum() / len(student)
    parts = analysis["projectors"]["projection"]["decomposition"]
    assert parts["total_per_sample"] == pytest.approx(total, rel=2e-3)
    assert parts["transfer_per_sample"] + parts["spectral_per_sample"] == pytest.approx(total, rel=2e-3)
    assert parts["transfer_share"] + parts["spectral_share"] == pytest.approx(1, abs=1e-6)
    assert analysis["num_samples"] == len(student) == 6
    assert cell(stdout, "total", 1) == f"{parts['total_per_sample']:.4g}"

    def cka(x, y):
        x, y = x - x.mean(0), y - y.mean(0)
        return ((x.T @ y) ** 2).sum() / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))

    similarity = analysis["projectors"]["projection"]["linear_cka"]
    assert similarity["student_and_teacher"] == pytest.approx(cka(student, teacher), rel=1e-3)
    projected = "student_and_projected_teacher" if kind == "inverted" else "projected_student_and_teacher"
    assert similarity[projected] == pytest.approx(cka(target, source @ matrix), rel=1e-3)


def test_pictures_show_something(case):
    _, folder, stdout, _, _ = case
    pictures = sorted((folder / "analysis").glob("*.png"))
    assert {file.name.partition("-")[0] for file in pictures} == {"spectrum", "evolution", "decomposition"}
    for file in pictures:
        assert str(file) in stdout
        pixels = np.asarray(Image.open(file).convert("L"), dtype=np.float64)
        assert min(pixels.shape) >= 200
        assert pixels.std() > 5, f"{file.name} is blank"
        assert len(np.unique(pixels)) > 20
    names = {file.name for file in (folder / "analysis").iterdir()}
    assert names == {"analysis.json", *(file.name for file in pictures)}


def test_on_the_test_split(run_cli, tmp_path, same_run):
    run = shutil.copytree(same_run, tmp_path / "run")
    outcome = run_cli("analyze-projector", run, "--split", "test", "--device", "cpu")
    assert outcome.exit_code == 0, outcome.stderr
    assert "14 test images" in outcome.stdout
    analysis = json.loads((tmp_path / "run" / "analysis" / "analysis.json").read_text())
    assert analysis["split"] == "test"
    assert analysis["num_samples"] == 14


def test_a_second_time_gives_the_same(run_cli, analyzed, tmp_path):
    folder, stdout = analyzed["inverted"]
    before = (folder / "analysis" / "analysis.json").read_text()
    outcome = run_cli("analyze-projector", folder)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout == stdout
    assert (folder / "analysis" / "analysis.json").read_text() == before


@pytest.mark.parametrize("change", [lambda t: t.astype(np.int8), lambda t: t / 0], ids=["int8", "inf"])
def test_a_projector_of_numbers_that_are_none_is_refused(random_run, run_cli_in, tmp_path, change):
    folder = Path(shutil.copytree(random_run, tmp_path / "run"))
    with np.errstate(all="ignore"):
        tensors = {name: change(tensor) for name, tensor in load_file(folder / "projector.safetensors").items()}
    save_file(tensors, folder / "projector.safetensors")
    outcome = run_cli_in("analyze-projector", folder, cwd=tmp_path)
    assert outcome.exit_code == 2
    assert "projector.safetensors" in outcome.stderr
