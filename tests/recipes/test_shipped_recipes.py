"""Every recipe under ``recipes/`` is valid, and trains on small stand-ins for its models and data."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdcli.config import parse_config
from kdcli.progress import SilentReporter
from kdcli.recipes import list_recipes, load_recipe

RECIPES = {recipe.name: recipe for recipe in list_recipes()}
OWN_LABELS = {"imagenet"}
"""Data of recipes whose teacher was trained on just these data: its stand-in knows the stand-in's labels."""
FAMILIES = {
    r"deit_.*": "test_vit",
    r"mobilenetv3_.*": "test_efficientnet",
    r"resnet\d+.*": "test_resnet",
    r"regnety_.*": "test_resnet",
    r"tf_efficientnet_.*": "test_efficientnet",
}
"""Architecture of a recipe -> the small one of the same kind that stands in for it."""
SIZE = 32


class Told(SilentReporter):
    """A reporter that remembers."""

    def __init__(self):
        self.losses = []

    def started(self, *, total_steps, steps_per_epoch, step):
        self.total = total_steps

    def stepped(self, step):
        self.steps = step

    def logged(self, values):
        self.losses.append(values)

    def skipped(self, name):
        raise AssertionError(name)


def stand_in(name: str) -> str:
    architecture = name.removeprefix("timm:").partition(".")[0]
    found = [small for pattern, small in FAMILIES.items() if re.fullmatch(pattern, architecture)]
    assert len(found) == 1, f"FAMILIES has {len(found)} stand-ins for {name}"
    return found[0]


@pytest.fixture
def make_teacher(tmp_path):
    """Write an untrained model of timm as if it were trained, on these labels."""
    import timm
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    def make(architecture: str, labels: tuple[str, ...]):
        folder = tmp_path / "teacher"
        folder.mkdir()
        torch.manual_seed(0)
        module = timm.create_model(architecture, num_classes=len(labels))
        save_file(module.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        save_config_for_hf(
            module,
            str(folder / "config.json"),
            model_config={"num_classes": len(labels), "label_names": list(labels)},
        )
        return folder

    return make


@pytest.fixture
def shrunk(make_teacher, photos):
    """Return a recipe's values with stand-ins for models and data; methods, augmentation and optimiser as they are."""

    def shrink(name: str) -> tuple[dict, dict]:
        values = load_recipe(RECIPES[name].path)
        original = parse_config(values, source=name)
        labels = tuple(folder.name for folder in sorted(photos.iterdir()))
        if original.data.name not in OWN_LABELS:
            labels = ("hammer", "saw", "nail", "screw")
        teacher = make_teacher(stand_in(original.teacher.name), labels)
        student = values["student"] if isinstance(values["student"], dict) else {}
        small = values | {
            "teacher": {"name": str(teacher), "image_size": SIZE},
            "student": student | {"name": stand_in(original.student.name), "image_size": SIZE, "pretrained": False},
            "data": {"name": str(photos), "workers": 0}
            | ({"labels_per_class": 3} if original.data.labels_per_class else {}),
            "train": values.get("train", {}) | {"epochs": 1, "batch_size": 16, "device": "cpu"},
            "baseline": False,
        }
        return values, small

    return shrink


def test_the_folder_is_the_registry():
    assert {"quickstart", "image-classification/vkd-deit-ti"} <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_says_what_it_is_for(name):
    config = parse_config(load_recipe(RECIPES[name].path), source=name)
    assert config.task == "image-classification"
    assert 20 <= len(config.description) <= 120
    assert config.output is None, "a recipe belongs to no place"


@pytest.mark.parametrize("name", RECIPES)
def test_models_of_a_recipe_exist(name):
    """Real names: misspelt ones would only be found by whoever downloads them."""
    import timm

    config = parse_config(load_recipe(RECIPES[name].path), source=name)
    for model in (config.teacher.name, config.student.name):
        known = timm.list_models(include_tags=True) + timm.list_models()
        assert model in known
    if config.student.pretrained or config.teacher.weights is None:
        pretrained = {full.partition(".")[0] for full in timm.list_pretrained()} | set(timm.list_pretrained())
        asked = ([config.student.name] if config.student.pretrained else []) + [config.teacher.name]
        assert set(asked) <= pretrained


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_for_two_steps(name, shrunk, tmp_path):
    from kdcli.devices import make_accelerator
    from kdcli.job import prepare_job
    from kdcli.run_folder import RunFolder
    from kdcli.trainer import Trainer

    original, values = shrunk(name)
    # 24 of the 72 photos are enough for two steps of 16 with their validation and test splits taken.
    values["data"]["validation_fraction"] = 0.38
    if "methods" in original:
        assert values["methods"] == original["methods"]
    assert values.get("augment") == original.get("augment")
    assert values.get("optim") == original.get("optim")
    config = parse_config(values, source=name)
    accelerator = make_accelerator(config.train)
    job = prepare_job(config, mixed_precision=accelerator.mixed_precision)
    before = {key: value.clone() for key, value in job.distiller.state_dict().items()}
    run = RunFolder.create(tmp_path / "run")
    run.write_config(job.config)
    run.write_plan(job.plan, command="kdcli distill")
    told = Told()
    result = Trainer(job, run, accelerator, told).fit()
    assert result.steps == told.steps == told.total == 2
    assert all(math.isfinite(value) for values in told.losses for value in values.values())

    expected = {options["method"] for options in original.get("methods", [])}
    methods = {options.method for options in job.config.methods}
    if expected:
        assert methods == expected
    assert "projection" in methods
    assert methods <= told.losses[-1].keys()
    projection = next(options for options in job.config.methods if options.method == "projection")
    assert (job.plan.relation, projection.projector) == (
        ("same", "orthogonal") if str(original["data"]) in OWN_LABELS else ("cross", "inverted")
    )
    after = job.distiller.state_dict()
    trained = {name for name, parameter in job.distiller.named_parameters() if parameter.requires_grad}
    moved = {key for key in trained if not torch.equal(before[key], after[key].cpu())}
    assert {key.partition(".")[0] for key in moved} == {"student", "methods"}
    assert len(moved) > 0.9 * len(trained), sorted(trained - moved)

    assert yaml.safe_load((run.path / "config.yaml").read_text())["augment"] == job.config.augment.model_dump(
        mode="json"
    )
    (matrix,) = load_file(run.path / "projector.safetensors").values()
    if projection.projector == "orthogonal" and matrix.shape[0] <= matrix.shape[1]:
        gram = matrix.double() @ matrix.double().T
        assert (gram - torch.eye(len(gram))).abs().max() <= 1e-5
    events = [json.loads(line)["event"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert events == ["train", "validation", "test"]
