"""``--method``: every method by name and in a recipe, with its own layers or others; what can't work is refused."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdcli.config.methods import METHODS, MethodName

ALONE = {"none", "spectral_regularization"}
OF_IMAGES = {"adversarial", "cycle_gan", "image_regression"}
"""They want images that are made: tests/methods/test_image_methods.py."""
DENSE = {"cirkd", "cwd", "cwd_logits", "dense_regression", "fgd", "ifvd", "pkd", "skd"}
"""They want labels of pixels, depths or boxes, equal widths, or maps of more than one position."""
WITH_TEACHER = sorted(set(typing.get_args(MethodName)) - ALONE - DENSE - OF_IMAGES - {"refilled"})
ALONE_DEIT = ("--student", "deit_tiny_distilled_patch16_224", "--set", "methods=[{method: deit}]")
QUICK = ("--set", "optim.lr=1e-4", "--batch-size", "24")


@pytest.fixture
def distil(run_cli, photos, tiny, trained_teacher):
    """``distil(*options)`` on the photos, from the teacher that knows their labels, into ``run``."""

    def run(*options: str | Path, teacher: str | Path = trained_teacher, student: str = "test_convnext"):
        command = ("distill", "--data", photos, "--teacher", teacher, "--student", student, *tiny, *QUICK)
        return run_cli(*command, *options, "--output", "run")

    return run


def student_of(method: str) -> str:
    return "deit_tiny_distilled_patch16_224" if method == "deit" else "test_convnext"


def methods_of(run: Path) -> list[dict[str, typing.Any]]:
    return yaml.safe_load((run / "config.yaml").read_text())["methods"]


def train_events(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "train"]


def test_the_option_knows_every_method():
    parts = {"supervised", "stochastic_triplet_kl", "local_classifier_kl", "gan"}  # the last is what its task takes
    assert set(typing.get_args(MethodName)) == (set(METHODS) - parts) | {"none", "log_sum", "refilled"}


@pytest.mark.parametrize("method", sorted(DENSE | OF_IMAGES))
def test_what_small_maps_and_classes_are_not_for_is_refused(distil, method):
    outcome = distil("--method", method, "--dry-run")
    assert outcome.exit_code == 2
    assert method in outcome.stderr
    assert "Hint:" in outcome.stderr


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_every_method_trains_by_its_name(distil, tmp_path, method):
    outcome = distil("--method", method, student=student_of(method))
    assert outcome.exit_code == 0, outcome.stderr
    run = tmp_path / "run"
    supervised, chosen = methods_of(run)
    kind = "projection" if method == "log_sum" else method
    assert (supervised["method"], chosen["method"]) == ("supervised", kind)
    (event,) = train_events(run)
    assert {"supervised", kind} <= event.keys()
    weight = event.get(f"weight/{kind}", chosen["weight"])
    # Of a balanced one it is a mean over steps, as the losses are: the product of means is not quite the mean of products.
    exact = chosen["weighting"] == "loss"
    assert event["loss"] == pytest.approx(event["supervised"] + weight * event[kind], rel=1e-4 if exact else 0.05)
    assert f"loss: {kind.replace('_', ' ')}" in outcome.stdout
    kept = load_file(run / "projector.safetensors")
    assert all(key.startswith(f"{kind}.") and value.isfinite().all() for key, value in kept.items())
    with_modules = {"projection", "fitnet", "vid", "review_kd", "crd", "mgd"}
    assert bool(kept) == (kind in with_modules)


def test_the_projection_is_the_plans_and_log_sum_a_linear_one(distil, run_cli, tmp_path):
    outcome = distil("--method", "projection", "--projector", "inverted", "--normalize", "whiten")
    assert outcome.exit_code == 0, outcome.stderr
    chosen = methods_of(tmp_path / "run")[1]
    assert (chosen["projector"], chosen["normalize"], chosen["distance"]) == ("inverted", "whiten", "mse")
    outcome = run_cli("distill", "--recipe", "run/config.yaml", "--set", "output=again")
    assert outcome.exit_code == 0, outcome.stderr
    assert methods_of(tmp_path / "again") == methods_of(tmp_path / "run")


def test_log_sum_normalises_both_sides(distil):
    outcome = distil("--method", "log_sum", "--dry-run")
    (line,) = [line for line in outcome.stdout.splitlines() if "loss: projection" in line]
    for setting in ("linear", "log_sum", "log_sum_alpha 4", "normalize standardize", "normalize_student standardize"):
        assert setting in line


@pytest.mark.parametrize("method", ["none", "spectral_regularization"])
def test_methods_without_a_teacher(distil, tmp_path, method):
    outcome = distil("--method", method, teacher="none")
    assert outcome.exit_code == 0, outcome.stderr
    names = [options["method"] for options in methods_of(tmp_path / "run")]
    assert names == ["supervised"] + [method] * (method != "none")
    (event,) = train_events(tmp_path / "run")
    assert ("spectral_regularization" in event) == (method != "none")


def test_layers_and_weight_are_the_methods(distil, tmp_path):
    layers = ("--feature-layers", "stages.2:layer3", "--feature-layers", "stages.3:layer4")
    outcome = distil("--method", "attention_transfer", *layers, "--feature-weight", "7")
    assert outcome.exit_code == 0, outcome.stderr
    chosen = methods_of(tmp_path / "run")[1]
    assert chosen["weight"] == 7
    pairs = [(pair["student"], pair["teacher"]) for pair in chosen["layers"]]
    assert pairs == [("stages.2", "layer3"), ("stages.3", "layer4")]
    assert "student stages.2 (48, 2x2) -> teacher layer3 (192, 2x2)" in outcome.stdout
    assert "up to layer3, layer4" in outcome.stdout


def test_review_kd_takes_the_stages(distil):
    outcome = distil("--method", "review_kd", "--dry-run")
    assert outcome.exit_code == 0, outcome.stderr
    for number in range(4):
        assert f"student stages.{number} " in outcome.stdout
        assert f"-> teacher layer{number + 1} " in outcome.stdout


def test_a_recipe_may_hold_any_of_them(run_cli, photos, tiny, tmp_path, hf_folder):
    """From a transformers model with a ViT's tokens to a CNN; a second method of a kind has a number."""
    methods = [
        {"method": "supervised"},
        {"method": "dkd"},
        {"method": "fitnet", "layers": ["stages.2:pooled"]},
        {"method": "fitnet", "regressor": "linear", "layers": [{"student": "pooled", "teacher": "pooled"}]},
        {"method": "rkd_angle", "layers": ["embedding:embedding"]},
        {"method": "crd", "negatives": 8},
    ]
    values = {"teacher": str(hf_folder), "student": "test_convnext", "data": str(photos), "methods": methods}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    outcome = run_cli("distill", "--recipe", "mine.yaml", *tiny, *QUICK, "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    (event,) = train_events(tmp_path / "run")
    assert {"dkd", "fitnet", "fitnet-2", "rkd_angle", "crd"} <= event.keys()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "supervised, dkd, fitnet, fitnet, rkd_angle, crd" in card


def test_few_labels_and_a_baseline(distil, tmp_path):
    """The bank of CRD is over the images, however often a labelled one is repeated; the baseline has labels alone."""
    outcome = distil("--method", "crd", "--set", "data.labels_per_class=2", "--baseline")
    assert outcome.exit_code == 0, outcome.stderr
    memory = load_file(tmp_path / "run" / "projector.safetensors")["crd.contrasts.0.student_memory"]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    data = next(d["value"] for d in plan["decisions"] if d["name"] == "data")
    assert f"{len(memory)} train" in data
    assert [options["method"] for options in methods_of(tmp_path / "run" / "baseline")] == ["supervised"]


def test_the_memory_of_crd_goes_on_bit_for_bit(distil, run_cli, tmp_path, monkeypatch):
    """Five epochs of two or three steps, cut after the second checkpoint."""
    import kdcli.training.trainer

    command = ("--method", "crd", "--epochs", "3", "--checkpoint-every", "1")
    outcome = distil(*command)
    assert outcome.exit_code == 0, outcome.stderr
    (tmp_path / "run").rename(tmp_path / "whole")

    class Cut(Exception):
        pass

    original = kdcli.training.trainer.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 4:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, "train_step", train_step)
        with pytest.raises(Cut):
            distil(*command)
    assert run_cli("distill", "--resume", "run").exit_code == 0
    for file in ("student/model.safetensors", "projector.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / file), load_file(tmp_path / "run" / file)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert int(whole["crd.contrasts.0.steps"]) >= 4


@pytest.mark.parametrize(
    ("options", "teacher", "problem", "hint"),
    [
        (("--method", "dkdd"), None, "'dkdd' is not one of", "recipes show"),
        (("--method", "dkd"), "random:test_vit", "dkd needs teacher and student to have the same labels", "projection"),
        (("--method", "deit"), None, "needs a student with a distillation token", "deit_tiny_distilled"),
        (("--method", "nst"), "none", "--method nst needs a teacher", "--teacher"),
        (("--method", "none"), None, "--method none uses no teacher", "--teacher none"),
        (("--method", "dkd", "--projector", "linear"), None, "--projector linear has no effect", "such as projection"),
        (("--method", "log_sum", "--normalize", "whiten"), None, "--normalize whiten has no effect", "projection"),
        (("--method", "dist", "--feature-layers", "pooled:pooled"), None, "reads no layers", "--feature-layers"),
        (("--method", "logit_kd", "--feature-weight", "2"), None, "reads no layers", "--feature-weight"),
        (("--method", "vid", "--feature-layers", "embedding:pooled"), None, "'embedding' of", "another layer"),
        (("--method", "nst", "--feature-layers", "pooled:fc"), None, "'fc' of", "another layer"),
        (("--method", "pkt", "--feature-layers", "stages.9:pooled"), None, "no layer 'stages.9'", "outermost"),
        (("--method", "dkd", "--set", "augment.mixup=0.2"), None, "mixup or cutmix is on", "augment.mixup=0"),
        (("--method", "crd", "--set", "augment.cutmix=1"), None, "mixup or cutmix is on", "augment.cutmix=0"),
        (("--method", "pkt", "--set", "methods=[{method: supervised}]"), None, "writes out its own methods", "drop"),
        (("--set", "methods=[{method: supervised}, {method: vid, layers: []}]"), None, "methods.1.layers", "recipes"),
        (
            ("--set", "methods=[{method: deit}]"),
            None,
            "needs a student with a distillation token",
            "deit_tiny_distilled",
        ),
        (ALONE_DEIT, None, "nothing trains the student's classifier", "supervised"),
    ],
)
def test_what_can_not_work_is_refused(distil, tmp_path, options, teacher, problem, hint):
    outcome = distil(*options, **({} if teacher is None else {"teacher": teacher}))
    assert outcome.exit_code == 2
    assert problem in outcome.stderr
    assert hint in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()
