"""``kdcli analyze-projector``: its numbers against a computation of their own, from the run's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

pytestmark = pytest.mark.usefixtures("few_points")


@pytest.fixture(scope="module")
def analyzed(few_points, random_run, same_run, run_cli_in, tmp_path_factory) -> dict[str, tuple[Path, str]]:
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
    (line,) = (line for line in stdout.splitlines() if line.startswith(f"| {row} "))
    return line.strip("|").split("|")[column].strip()


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


def validation_features(folder):
    """Return the features (N, d) of the saved student and of the teacher, float64, and the labels."""
    import torch

    from kdcli.base.reads import Reads
    from kdcli.data import prepare
    from kdcli.runs.folder import RunFolder
    from kdcli.training.prepare import reopen_job

    job = reopen_job(RunFolder.open(folder))
    ours, theirs = job.student.facts.preprocessing, job.teacher.facts.preprocessing
    canvas = ours.at(tuple(map(max, ours.image_size, theirs.image_size)))
    features, labels = {}, []
    method = job.distiller.methods["projection"]
    for name, model, tap in (
        ("student", job.student.eval(), method.student_reads.features[0]),
        ("teacher", job.teacher, method.teacher_reads.features[0]),
    ):
        parts = []
        for batch in job.eval_loader(job.data.validation, canvas):
            with torch.inference_mode():
                output = model(prepare(batch.images, model.facts.preprocessing), Reads((tap,)))
            parts.append(output.features[tap].double().numpy())
            labels += batch.targets.tolist() if name == "student" else []
        features[name] = np.concatenate(parts)
    return features["student"], features["teacher"], labels


def standardize(values):
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)


def test_decomposition_adds_up_to_the_projection_loss(case):
    """Features, normalisation and distance are recomputed here from the saved student and the teacher."""
    kind, folder, stdout, analysis, matrix = case
    student, teacher, _ = validation_features(folder)
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


def smooth_l1(x, y):
    difference = np.abs(x - y)
    return np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()


def test_landscape_has_the_loss_of_the_images_in_its_middle(case):
    """All six validation images are in it. Without normalisation the same projector meets the features as they are."""
    kind, folder, stdout, analysis, matrix = case
    student, teacher, _ = validation_features(folder)
    (landscape,) = analysis["landscapes"].values()
    side = len(landscape["positions"])
    assert landscape["positions"][0] == -landscape["positions"][-1] == -1
    assert landscape["positions"][side // 2] == 0
    if kind == "inverted":
        normalized = ((standardize(student) - standardize(teacher) @ matrix) ** 2).mean()
        plain = ((student - teacher @ matrix) ** 2).mean()
    else:
        centred = teacher - teacher.mean(1, keepdims=True)
        normalized = smooth_l1(student @ matrix, centred / np.sqrt(teacher.var(1, keepdims=True) + 1e-5))
        plain = smooth_l1(student @ matrix, teacher)
    assert landscape["num_images"] == 6
    for name, expected in (("normalized", normalized), ("plain", plain)):
        panel = landscape["panels"][name]
        losses = np.array(panel["losses"])
        assert losses.shape == (side, side)
        assert panel["loss"] == losses[side // 2, side // 2] == pytest.approx(expected, rel=2e-3)
        assert panel["relative_range"] == pytest.approx((losses.max() - losses.min()) / panel["loss"], rel=1e-9)
        assert losses.std() > 0
        assert panel["relative_curvature"] > 0
    assert cell(stdout, "without normalisation", 1) == f"{landscape['panels']['plain']['loss']:.4g}"


def test_neighbours_of_the_side_that_the_projector_acts_on(case):
    kind, folder, stdout, analysis, matrix = case
    student, teacher, labels = validation_features(folder)
    found = analysis["projectors"]["projection"]["tsne"]
    assert found["features_of"] == {"inverted": "teacher", "orthogonal": "student"}[kind]
    assert (found["num_samples"], found["neighbours"]) == (6, 5)
    source = standardize(teacher) if kind == "inverted" else student
    assert found["knn_accuracy"].keys() == {"raw", "trained", "random_linear", "random_orthogonal"}
    # With six images all the others vote, each class having two: the vote is always for another class.
    assert sorted(labels) == [0, 0, 1, 1, 2, 2]
    assert set(found["knn_accuracy"].values()) == {0}
    assert source.shape[1] == matrix.shape[0]
    assert cell(stdout, "under the trained projector", 1) == "0.0%"


def test_pictures_show_something(case):
    _, folder, stdout, _, _ = case
    pictures = sorted((folder / "analysis").glob("*.png"))
    kinds = {"spectrum", "evolution", "decomposition", "tsne", "landscape"}
    assert {file.name for file in pictures} == {f"{kind}-projection.png" for kind in kinds}
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


# --- where projectors started -----------------------------------------------------------------------------------------


def test_a_projector_that_was_not_trained_has_not_moved(run_cli, tmp_path, photos, tiny):
    """Three in one run, all drawn from the run's seed once more; each has its own pictures."""
    options = ("linear, normalize: none", "inverted", "orthogonal, orthogonal_map: cayley")
    methods = ", ".join(f"{{method: projection, projector: {projector}}}" for projector in options)
    outcome = run_cli(
        *(
            "distill",
            "--data",
            photos,
            *tiny,
            "--output",
            "run",
            "--teacher",
            "random:test_vit",
            "--student",
            "test_resnet",
        ),
        *("--epochs", "0", "--set", f"methods=[{{method: supervised}}, {methods}]"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    outcome = run_cli("analyze-projector", "run")
    assert outcome.exit_code == 0, outcome.stderr
    projectors = json.loads((tmp_path / "run" / "analysis" / "analysis.json").read_text())["projectors"]
    assert {result["kind"]: result["moved"] for result in projectors.values()} == {
        "linear": 0,
        "inverted": 0,
        "orthogonal": pytest.approx(0, abs=1e-6),
    }
    assert outcome.stdout.count("the projector hardly moved, by 0.0% of its norm, in 0 steps") == 2
    assert "It keeps every direction by construction" in outcome.stdout
    pictures = {file.name for file in (tmp_path / "run" / "analysis").glob("*.png")}
    assert {f"{kind}-projection-{number}.png" for kind in ("tsne", "landscape") for number in (2, 3)} <= pictures
    landscapes = json.loads((tmp_path / "run" / "analysis" / "analysis.json").read_text())["landscapes"]
    assert [list(landscape["panels"]) for landscape in landscapes.values()] == [
        ["plain"],
        *[["normalized", "plain"]] * 2,
    ]


def test_a_trained_projector_has_moved(case):
    kind, _, stdout, analysis, _ = case
    result = analysis["projectors"]["projection"]
    assert 1e-5 < result["moved"] < 2
    assert result["conclusion"] in stdout
    assert analysis["relation"] == {"inverted": "random", "orthogonal": "same"}[kind]


def test_a_projector_of_another_start_is_not_said_to_have_moved():
    import torch

    from kdcli.results.analyze import _moved

    start = torch.diag(torch.tensor([3.0, 1.0]))
    assert _moved(start, 2 * start, torch.tensor([3.0, 1.0])) == pytest.approx(1)
    assert _moved(start, 2 * start, torch.tensor([3.0, 2.0])) is None


# --- several runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, random_run, same_run, alone_run):
    """A folder as ``kdcli sweep`` leaves it: three recipes of one seed, one without a projector."""
    for run in (random_run, same_run, alone_run):
        shutil.copytree(run, tmp_path / "sweep" / run.name / "seed-0")
    return tmp_path / "sweep"


def test_several_runs_side_by_side(run_cli, tmp_path, sweep, analyzed):
    outcome = run_cli("analyze-projector", "sweep", "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    summaries = json.loads((tmp_path / "out" / "ranks.json").read_text())
    assert [summary["run"] for summary in summaries] == ["inverted/seed-0", "orthogonal/seed-0"]
    assert [summary["relation"] for summary in summaries] == ["random", "same"]
    for summary, (folder, _) in zip(summaries, analyzed.values(), strict=True):
        alone = json.loads((folder / "analysis" / "analysis.json").read_text())
        evolution = alone["projectors"]["projection"]["evolution"]
        assert summary["effective"] == [evolution["effective"][0], evolution["effective"][-1]]
        together = json.loads((sweep / summary["run"] / "analysis" / "analysis.json").read_text())
        assert together == alone, "each is analysed as if it were alone"
        assert f"{summary['run']}: {summary['conclusion']}" in outcome.stdout
        assert cell(outcome.stdout, summary["run"], 5) == " → ".join(f"{rank:.1f}" for rank in summary["effective"])
    assert f"Left out, without a projector that is a matrix: {Path('sweep', 'alone', 'seed-0')}" in outcome.stdout
    pixels = np.asarray(Image.open(tmp_path / "out" / "ranks.png").convert("L"), dtype=np.float64)
    assert pixels.std() > 5
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"ranks.json", "ranks.png"}


def test_several_runs_that_can_not_be_put_side_by_side(run_cli, tmp_path, random_run, same_run, alone_run, monkeypatch):
    def refused(*arguments):
        outcome = run_cli("analyze-projector", *arguments)
        assert outcome.exit_code == 2, outcome.stdout
        assert "Traceback" not in outcome.stderr
        return outcome.stderr

    assert "is given 2 times" in refused(random_run, same_run, random_run)
    assert "--output is for several runs" in refused(random_run, "--output", "out")
    other = shutil.copytree(alone_run, tmp_path / "other")
    assert "None of the 2 runs has a projector with a matrix" in refused(alone_run, other)
    (tmp_path / "file").write_text("a file")
    assert "Can't write to file" in refused(random_run, same_run, "--output", "file")
    monkeypatch.setattr("kdcli.results.analyze.MAX_RUNS", 1)
    assert "2 runs have projectors, and at most 1" in refused(random_run, same_run, "--output", "out")
    assert not (tmp_path / "out").exists()
