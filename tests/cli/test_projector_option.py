"""``--projector`` with ``--method``, and ``projector`` in a recipe: whole runs, their analysis, resuming and export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdcli.base.reads import Reads
from kdcli.config.methods import METHODS, LayerOptions

WITH_LAYERS = sorted(
    {name for name, section in METHODS.items() if issubclass(section, LayerOptions)}
    - {"cirkd", "cwd", "fgd", "ifvd", "skd"}  # of maps with more than one position, or of boxes and pixels
)
MODELS = ("--teacher", "random:test_efficientnet", "--student", "test_resnet")
QUICK = ("--epochs", "1", "--batch-size", "32", "--device", "cpu", "--set", "optim.lr=1e-3")
SMALL = (
    *("--set", "teacher.image_size=32", "--set", "student.image_size=32"),
    *("--set", "data.workers=0", "--set", "data.train_images=96"),
)
pytestmark = pytest.mark.usefixtures("few_digits", "few_points")


@pytest.fixture
def distil(run_cli):
    """``distil(*options)``: a few steps on 96 of the digits, from an untrained teacher, into ``run``."""

    def run(*options: str | Path):
        command = ("distill", "--data", "demo:digits", *MODELS, *QUICK, *SMALL)
        return run_cli(*command, *options, "--output", "run")

    return run


def methods_of(run: Path) -> list[dict]:
    return yaml.safe_load((run / "config.yaml").read_text())["methods"]


@pytest.mark.parametrize("method", WITH_LAYERS)
def test_every_method_trains_with_an_inverted_projector(distil, tmp_path, method):
    negatives = ("--set", "train.batch_size=16") if method == "crd" else ()
    outcome = distil("--method", method, "--projector", "inverted", *negatives)
    assert outcome.exit_code == 0, outcome.stderr
    run = tmp_path / "run"
    chosen = methods_of(run)[1]
    assert (chosen["method"], chosen["projector"], chosen["lr_scale"]) == (method, "inverted", 0.01)
    (line,) = [line for line in outcome.stdout.splitlines() if f"loss: {method.replace('_', ' ')}" in line]
    assert "projector inverted" in line
    assert "teacher to student" in line
    kept = load_file(run / "projector.safetensors")
    matrices = {key: value for key, value in kept.items() if key.endswith(".projector.weight")}
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(event[f"weight/{method}"] > 0 for event in events if event["event"] == "train")
    spectra = load_file(run / "spectra.safetensors")
    names = spectra.keys() - {"steps"}
    assert names == ({method} if len(matrices) == 1 else {f"{method}.{number}" for number in range(len(matrices))})
    for number, matrix in enumerate(matrices.values()):
        name = method if len(matrices) == 1 else f"{method}.{number}"
        # Singular values are 1 at the start; the last record is of the last student, which is the best here.
        torch.testing.assert_close(spectra[name][0], torch.ones(min(matrix.shape)), rtol=0, atol=1e-4)
        assert not torch.allclose(spectra[name][0], spectra[name][-1], rtol=0, atol=1e-7)
    card = (run / "README.md").read_text()
    assert f"inverted, in {method}, both sides standardised" in card


@pytest.mark.parametrize("projector", ["linear", "mlp", "orthogonal", "inverted"])
def test_every_projector_by_option_and_in_a_recipe(distil, run_cli, tmp_path, projector):
    outcome = distil("--method", "rkd_distance", "--projector", projector)
    assert outcome.exit_code == 0, outcome.stderr
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    chosen = {"method": "rkd_distance", "projector": projector, "weight": 0.1, "weighting": "gradient"}
    written = [{"method": "supervised"}, chosen]
    recipe = {key: values[key] for key in ("teacher", "student", "data", "train", "optim", "augment")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**recipe, "methods": written}))
    outcome = run_cli("distill", "--recipe", "mine.yaml", "--output", "again")
    assert outcome.exit_code == 0, outcome.stderr
    assert methods_of(tmp_path / "again") == methods_of(tmp_path / "run")
    for file in ("student/model.safetensors", "projector.safetensors"):
        one, other = load_file(tmp_path / "run" / file), load_file(tmp_path / "again" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), file


@pytest.mark.parametrize("projector", ["linear", "mlp", "orthogonal", "inverted"])
def test_log_sum_takes_another_projector(distil, tmp_path, projector):
    outcome = distil("--method", "log_sum", "--projector", projector)
    assert outcome.exit_code == 0, outcome.stderr
    chosen = methods_of(tmp_path / "run")[1]
    assert (chosen["method"], chosen["projector"], chosen["distance"]) == ("projection", projector, "log_sum")
    assert (chosen["normalize"], chosen["normalize_student"]) == ("standardize", "standardize")
    assert chosen["lr_scale"] == (0.01 if projector == "inverted" else 1.0)


def test_the_student_is_exported_without_it(distil, run_cli, tmp_path):
    """A projector and the fusion modules of ReviewKD are no part of what timm loads."""
    assert distil("--method", "review_kd", "--projector", "inverted").exit_code == 0
    outcome = run_cli("export", "run")
    assert outcome.exit_code == 0, outcome.stderr
    import timm

    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    student = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True)
    assert student.state_dict().keys() == exported.keys()
    plain = timm.create_model("test_resnet", num_classes=10)
    assert {key: value.shape for key, value in plain.state_dict().items()} == {
        key: value.shape for key, value in exported.items()
    }


class _Cut(Exception):
    pass


@pytest.mark.parametrize(("method", "projector"), [("fitnet", "inverted"), ("crd", "orthogonal")])
def test_a_run_cut_short_goes_on_bit_for_bit(distil, run_cli, tmp_path, monkeypatch, method, projector):
    import kdcli.training.trainer

    command = ("--method", method, "--projector", projector, "--epochs", "2", "--checkpoint-every", "1")
    outcome = distil(*command)
    assert outcome.exit_code == 0, outcome.stderr
    (tmp_path / "run").rename(tmp_path / "whole")
    original = kdcli.training.trainer.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 3:
            raise _Cut

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, "train_step", train_step)
        with pytest.raises(_Cut):
            distil(*command)
    assert run_cli("distill", "--resume", "run").exit_code == 0
    for file in ("student/model.safetensors", "projector.safetensors", "spectra.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / file), load_file(tmp_path / "run" / file)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items()), file


# ---- analyze-projector -----------------------------------------------------------------------------------------------


@pytest.fixture
def without_figures(monkeypatch):
    """t-SNE and the loss over the input take longest; what is asked here is in the numbers."""
    import kdcli.results.analyze

    monkeypatch.setattr(kdcli.results.analyze, "draw_tsne", lambda *_, **__: None)
    monkeypatch.setattr(kdcli.results.analyze, "draw_landscapes", lambda *_, **__: {})


def analysed(run_cli, run: Path) -> tuple[dict, str]:
    outcome = run_cli("analyze-projector", "run")
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads((run / "analysis" / "analysis.json").read_text()), outcome.stdout


def test_maps_are_analysed_position_by_position(distil, run_cli, tmp_path):
    """Both layers of FitNets: what the residual adds up to is recomputed from the maps of the saved student."""
    from kdcli.data import prepare
    from kdcli.runs.folder import RunFolder
    from kdcli.training.prepare import reopen_job

    run = tmp_path / "run"
    layers = ("--feature-layers", "layer3:blocks.3", "--feature-layers", "pooled:pooled")
    assert distil("--method", "fitnet", "--projector", "inverted", *layers).exit_code == 0
    analysis, stdout = analysed(run_cli, run)
    assert analysis["projectors"].keys() == {"fitnet.0", "fitnet.1"}
    job = reopen_job(RunFolder.open(run))
    taps, teacher_taps = ("layer3", "pooled"), ("blocks.3", "pooled")
    sides: dict[int, list] = {0: [], 1: []}
    for batch in job.eval_loader(job.data.validation, job.shared_preprocessing()):
        with torch.inference_mode():
            ours = job.student.eval()(prepare(batch.images, job.student.facts.preprocessing), Reads(maps=taps))
            theirs = job.teacher(prepare(batch.images, job.teacher.facts.preprocessing), Reads(maps=teacher_taps))
        for number, (tap, other) in enumerate(zip(taps, teacher_taps, strict=True)):
            sides[number].append((ours.maps[tap].double(), theirs.maps[other].double()))
    kept = load_file(run / "projector.safetensors")
    for number, parts in sides.items():
        student, teacher = (torch.cat(side) for side in zip(*parts, strict=True))
        grid = tuple(min(sizes) for sizes in zip(student.shape[2:], teacher.shape[2:], strict=True))
        rows = []
        for side in (student, teacher):
            pooled = torch.nn.functional.adaptive_avg_pool2d(side, grid)
            row = pooled.permute(0, 2, 3, 1).flatten(0, 2).numpy()
            rows.append((row - row.mean(0)) / np.maximum(row.std(0), 1e-6))
        matrix = kept[f"fitnet.pair_projections.{number}.projector.weight"].double().numpy()
        total = ((rows[0] - rows[1] @ matrix) ** 2).sum() / len(rows[0])
        result = analysis["projectors"][f"fitnet.{number}"]
        assert result["num_positions"] == len(rows[0]) == analysis["num_samples"] * grid[0] * grid[1]
        assert result["decomposition"]["total_per_sample"] == pytest.approx(total, rel=2e-3)
        told = " ".join(stdout.split())  # a table's title has the table's width
        assert f"{len(rows[0])} positions of {analysis['num_samples']} validation images" in told
        assert result["tsne"]["knn_accuracy"] == {}, "a position is no sample with a class"
        for kind in ("spectrum", "evolution", "decomposition", "tsne"):
            assert (run / "analysis" / f"{kind}-fitnet.{number}.png").is_file()
    assert analysis["landscapes"].keys() == {"fitnet"}
    assert (run / "analysis" / "landscape-fitnet.png").is_file()


def test_of_many_positions_some_are_taken(distil, run_cli, tmp_path, monkeypatch, without_figures):
    import kdcli.results.analyze

    run = tmp_path / "run"
    assert distil("--method", "vid", "--projector", "linear", "--feature-layers", "layer2:blocks.2").exit_code == 0
    whole, _ = analysed(run_cli, run)
    monkeypatch.setattr(kdcli.results.analyze, "_MAX_POSITIONS", 3 * whole["num_samples"])
    some, _ = analysed(run_cli, run)
    all_positions = whole["projectors"]["vid"]["num_positions"]
    assert some["projectors"]["vid"]["num_positions"] == 3 * whole["num_samples"] < all_positions
    totals = [found["projectors"]["vid"]["decomposition"]["total_per_sample"] for found in (whole, some)]
    assert totals[0] != totals[1]
    assert totals[0] == pytest.approx(totals[1], rel=0.5)


def test_relations_have_a_spectrum_and_no_residual(distil, run_cli, tmp_path):
    """What RKD compares doesn't change when one side is rotated: the features' difference says nothing."""
    run = tmp_path / "run"
    assert distil("--method", "rkd_angle", "--projector", "linear").exit_code == 0
    analysis, stdout = analysed(run_cli, run)
    result = analysis["projectors"]["rkd_angle"]
    assert result["decomposition"] is None
    assert result["kind"] == "linear"
    (matrix,) = load_file(run / "projector.safetensors").values()
    np.testing.assert_allclose(result["singular_values"], np.linalg.svd(matrix.numpy(), compute_uv=False), rtol=1e-4)
    assert 0 <= result["linear_cka"]["projected_student_and_teacher"] <= 1
    assert "Squared residual" not in stdout
    assert "numerical rank" in stdout
    assert {file.name for file in (run / "analysis").glob("*.png")} == {
        "spectrum-rkd_angle.png",
        "evolution-rkd_angle.png",
        "tsne-rkd_angle.png",
    }
    assert analysis["landscapes"] == {}


def test_fused_maps_are_analysed_too(distil, run_cli, tmp_path, without_figures):
    assert distil("--method", "review_kd", "--projector", "inverted").exit_code == 0
    analysis, _ = analysed(run_cli, tmp_path / "run")
    names = list(analysis["projectors"])
    assert names == [f"review_kd.{number}" for number in range(len(names))]
    assert analysis["projectors"]["review_kd.0"]["num_positions"] == analysis["num_samples"], "the pooled level"
    assert all(result["decomposition"]["total"] > 0 for result in analysis["projectors"].values())


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem", "hint"),
    [
        (("--method", "logit_kd", "--projector", "inverted"), "compares logits over common labels", "fitnet"),
        (("--method", "dkd", "--projector", "linear"), "compares logits over common labels", "fitnet"),
        (("--method", "dist", "--projector", "mlp"), "compares logits over common labels", "fitnet"),
        (("--method", "deit", "--projector", "mlp"), "compares logits over common labels", "fitnet"),
        (("--method", "refilled", "--projector", "inverted"), "REFILLED has no projector", "--projector"),
        (("--method", "spectral_regularization", "--projector", "inverted"), "student's features alone", "fitnet"),
        (("--method", "none", "--projector", "linear"), "reads the labels alone", "fitnet"),
        (("--method", "pkt", "--projector", "none"), "--projector none has no effect", "Drop"),
        (("--method", "projection", "--projector", "none"), "--projector none has no effect", "Drop"),
        (("--method", "log_sum", "--projector", "none"), "--projector none has no effect", "Drop"),
        (("--method", "pkt", "--projector", "unitary"), "'unitary' is not one of", "recipes"),
        (("--method", "pkt", "--projector", "inverted", "--normalize", "whiten"), "--normalize whiten", "projection"),
        (("--set", "methods=[{method: dist, projector: linear}]"), "dist has no projector: it compares", "recipes"),
        (("--set", "methods=[{method: local_classifier_kl, projector: linear}]"), "class centres", "recipes"),
        (("--set", "methods=[{method: supervised}, {method: crd, projector: mlp, width: 8}]"), "width has", "recipes"),
        (("--set", "methods=[{method: supervised}, {method: pkt, lr_scale: 0.1}]"), "there is none", "recipes"),
    ],
)
def test_what_can_not_work_is_refused(distil, tmp_path, options, problem, hint):
    outcome = distil(*options)
    assert outcome.exit_code == 2
    assert problem in outcome.stderr
    assert hint in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()
