"""Image generation from end to end: planned, trained with a teacher, resumed, analysed, sampled, exported, refused."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from kdcli.models import load_saved
from tests.conftest import write_photos

STUDENT = ("--task", "image-generation", "--student", "generator:biggan32?channels=2&dim_z=8")
EXTRACTOR = ("--set", "data.eval_extractor=random:test_resnet", "--set", "data.eval_extractor_size=32")
FAST = ("--batch-size", "8", "--device", "cpu", "--set", "data.workers=0", *EXTRACTOR)
TEACHER = ("--teacher", "random:test_resnet", "--set", "teacher.image_size=32")
NAME = "untrained_test_resnet_32px"
METHOD = {
    "method": "gan",
    "diff_augment": "color,translation,cutout",
    "lecam": 0.1,
    "projector": "orthogonal",
    "normalize": "whiten",
    "kd_dlgan": 1,
    "adversary_steps": 2,
}


@pytest.fixture(scope="module")
def kdcli(tmp_path_factory, run_cli_in):
    """``kdcli(*arguments)`` in a folder with photos of classes in ``photos`` and without in ``plain``."""
    cwd = tmp_path_factory.mktemp("generation")
    counts = {
        f"{split}/{name}": count
        for split, count in (("train", 8), ("val", 5), ("test", 4))
        for name in ("apple", "sky")
    }
    write_photos(cwd / "photos", counts)
    write_photos(cwd / "plain", {"train": 16, "val": 6, "test": 6})
    (cwd / "recipe.yaml").write_text(yaml.safe_dump({"methods": [METHOD]}))

    def run(*arguments, code=0):
        outcome = run_cli_in(*arguments, cwd=cwd)
        assert outcome.exit_code == code, outcome.stdout + outcome.stderr
        return outcome.stdout if code == 0 else outcome.stderr

    run.cwd = cwd
    return run


@pytest.fixture(scope="module")
def matched(kdcli):
    out = kdcli(
        "distill", "--recipe", "recipe.yaml", *STUDENT, *TEACHER, "--data", "photos", *FAST, "--epochs", "2",
        "--set", "train.checkpoint_every=1", "--set", "train.keep_checkpoints=9", "--output", "matched",
    )  # fmt: skip
    return kdcli.cwd / "matched", out


def events(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_the_plan_the_records_and_the_metrics(matched):
    run, out = matched
    decisions = {entry["name"]: entry for entry in json.loads((run / "plan.json").read_text())["decisions"]}
    assert decisions["relation"]["value"].startswith("random")
    assert decisions["conditional"]["value"] == "2 classes"
    assert "random:timm:test_resnet" in decisions["extractor"]["value"]
    assert "whiten" in decisions["loss: gan"]["value"]
    train = events(run, "train")[-1]
    for name in ("hinge", "lecam", "features", "kd_dlgan"):
        assert np.isfinite(train[f"gan.discriminator/{name}"]), name
    assert train["feature_std/gan/images"] > 0
    assert train["loss/gan.discriminator"] > 0
    result = json.loads((run / "result.json").read_text())
    assert result["test"].keys() >= {f"{name}_{NAME}" for name in ("fid", "kid", "precision", "recall", "minus_fid")}
    assert result["last"]["step"] == result["steps"] == 4
    assert f"validation fid_{NAME}" in out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["optim"]["optimizer"], config["optim"]["betas"]) == ("adam", [0.0, 0.999])
    assert config["augment"]["crop_scale"] == [1.0, 1.0]
    assert "generator.py" in [file.name for file in (run / "student").iterdir()]


def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(kdcli, matched):
    run, _ = matched
    again = kdcli.cwd / "again"
    shutil.copytree(run, again)
    for checkpoint in (again / "checkpoints").iterdir():
        if checkpoint.is_dir() and not checkpoint.name.endswith("1"):
            shutil.rmtree(checkpoint)
    (again / "result.json").unlink()
    kdcli("distill", "--resume", "again")
    for file in ("student/model.safetensors", "projector.safetensors", "validation_samples.safetensors"):
        if (run / file).exists():
            first, second = load_file(run / file), load_file(again / file)
            assert first.keys() == second.keys()
            for name, value in first.items():
                assert torch.equal(value, second[name]), name


def test_its_projector_is_analysed(kdcli, matched):
    out = kdcli("analyze-projector", "matched", "--device", "cpu")
    assert "gan" in out
    analysis = json.loads((matched[0] / "analysis" / "analysis.json").read_text())
    assert analysis["projectors"]["gan"]["weight"] == 1


def test_images_are_made_alike_and_of_a_class(kdcli, matched, tmp_path):
    kdcli("generate", "matched", "--number", "5", "--output", tmp_path / "five")
    kdcli("generate", "matched", "--number", "3", "--output", tmp_path / "three", "--batch-size", "2")
    for number in range(3):
        first, second = (
            np.asarray(Image.open(tmp_path / k / f"{number:05d}.png")).astype(int) for k in ("five", "three")
        )
        assert first.shape == (32, 32, 3)
        assert abs(first - second).max() <= 1
    assert Image.open(tmp_path / "five" / "grid.png").size == (3 * 34 - 2, 2 * 34 - 2)
    kdcli(
        "generate", "matched", "--number", "2", "--output", tmp_path / "five", "--class", "sky", "--truncation", "0.5"
    )
    assert sorted(file.name for file in (tmp_path / "five").iterdir()) == [
        "00000.png", "00001.png", "generated.json", "grid.png"
    ]  # fmt: skip
    assert json.loads((tmp_path / "five" / "generated.json").read_text())["truncation"] == 0.5
    student = load_saved(matched[0] / "student")
    z = torch.cat(
        [student.sample(torch.arange(2), seed=seed, bound=None, classes=torch.ones(2, dtype=int)) for seed in (0, 1)]
    )
    assert not torch.equal(z[:2], z[2:])
    assert "knows no class 'plum'" in kdcli("generate", "matched", "--class", "plum", code=2)
    (tmp_path / "three" / "mine.txt").write_text("mine")
    assert "not of kdcli generate" in kdcli("generate", "matched", "--output", tmp_path / "three", code=2)


def test_an_export_needs_no_kdcli(kdcli, matched):
    assert "differ by at most" in kdcli("export", "matched")
    folder = matched[0] / "export"
    spec = importlib.util.spec_from_file_location("alone", folder / "generator.py")
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    inputs = load_saved(matched[0] / "student").example(3)
    with torch.no_grad():
        made = alone.load(folder)(**inputs)
        own = load_saved(matched[0] / "student")(inputs).heads["image"]
    torch.testing.assert_close(made, own)
    assert list(alone.classes_of(folder)) == ["apple", "sky"]
    assert "kdcli" not in (folder / "generator.py").read_text().replace("without kdcli", "")
    assert "takes random numbers" in kdcli("export", "matched", "--format", "onnx", code=2)


def test_without_classes_and_without_a_teacher(kdcli):
    kdcli("distill", *STUDENT, "--teacher", "none", "--data", "plain", *FAST, "--epochs", "1", "--output", "plain_run")
    run = kdcli.cwd / "plain_run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["methods"][0]["diff_augment"] == ["translation", "cutout"]
    assert load_saved(run / "student").facts.num_classes == 0
    assert "knows no classes" in kdcli("generate", "plain_run", "--class", "0", code=2)
    kdcli("generate", "plain_run", "--number", "1")
    assert (run / "generated" / "grid.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--student", "generator:biggan32?conditional=true", "--data", "plain"), "plain has no labels"),
        (("--set", "student.image_size=48", "--data", "photos"), "makes images of 32x32 pixels"),
        (("--projector", "orthogonal", "--data", "photos"), "--projector orthogonal needs a teacher"),
        (("--recipe", "recipe.yaml", "--data", "photos"), "gan needs a teacher, and teacher is none"),
        (("--student", "test_resnet", "--data", "photos"), "the task is image-generation"),
        (("--student", "generator:resnet6", "--data", "photos"), "image-generation"),
        (("--set", "methods=[{method: gan, normalize: whiten, matched: real}]", "--data", "photos"), "no projector"),
        (("--set", "methods=[{method: supervised}]", "--data", "photos"), "supervised"),
        (("--set", "augment.mixup=0.2", "--data", "photos"), "can't be mixed"),
        (("--set", "data.eval_extractor=no_such_model", "--data", "photos"), "extractor of features"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_before_anything_is_written(kdcli, arguments, message):
    student = () if "--student" in arguments else STUDENT[2:]
    error = kdcli(
        "distill", *STUDENT[:2], *student, "--teacher", "none", *FAST, *arguments, "--output", "refused", code=2
    )
    assert message in " ".join(error.split())
    assert not (kdcli.cwd / "refused").exists()


def test_methods_on_layers_and_generators_as_teachers_are_refused(kdcli, matched):
    options = (*STUDENT, "--data", "photos", *FAST, "--output", "refused")
    both = "methods=[{method: gan}, {method: projection, projector: linear}]"
    assert "a generator is given none" in " ".join(kdcli("distill", *options, *TEACHER, "--set", both, code=2).split())
    error = kdcli("distill", *options, "--teacher", "matched", code=2)
    assert "it reads no images" in " ".join(error.split())


def test_it_is_measured_as_in_its_training(kdcli, matched):
    out = kdcli("evaluate", "matched", "--device", "cpu", "--batch-size", "3")
    result = json.loads((matched[0] / "result.json").read_text())
    told = json.loads((matched[0] / "evaluation" / "evaluation.json").read_text())
    assert (told["split"], told["num_images"], told["class_counts"]) == ("test", 8, [4, 4])
    assert list(told["models"]) == ["student"]  # no teacher makes images
    student = told["models"]["student"]
    for name in ("fid", "kid", "precision", "recall"):
        key = f"{name}_{NAME}"
        assert student[key] == pytest.approx(result["test"][key], rel=1e-4, abs=1e-5), key
        label = name.upper() if name in ("fid", "kid") else name
        assert f"{student[key]:.4f}" in next(line for line in out.splitlines() if line.startswith(f"| {label} "))
    assert "agreement" not in out
    assert "random:timm:test_resnet" in " ".join(out.split())
    # its export beside it, on validation
    kdcli("export", "matched", "--output", "exported")
    both = ("evaluate", "matched", "--against", "exported", "--split", "validation", "--device", "cpu", "--json")
    models = json.loads(kdcli(*both))["models"]
    for name, value in result["validation"].items():
        if name in models["student"]:
            assert models["student"][name] == models["against-1"][name] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert models["against-1"]["agreement_with_teacher"] is None


def test_what_can_not_be_measured_on_images_is_refused(kdcli, matched):
    error = " ".join(kdcli("evaluate", "matched", "--data", "plain", "--device", "cpu", code=2).split())
    assert "makes images of the classes apple, sky, and the data have none" in error
    options = ("--task", "image-generation", "--data", "photos", "--device", "cpu")
    assert "neither a run nor a model that was saved" in kdcli("evaluate", "generator:biggan32", *options, code=2)
