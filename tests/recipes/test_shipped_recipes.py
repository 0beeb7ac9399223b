"""Every recipe under ``recipes/`` is valid, and trains on small stand-ins for its models and data."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes, load_recipe
from kdcli.terminal.reporters import SilentReporter

RECIPES = {
    recipe.name: recipe
    for recipe in list_recipes()
    if not recipe.name.startswith(
        (
            "claims/",
            "text/",
            "object-detection/",
            "semantic-segmentation/",
            "depth-estimation/",
            "image-generation/",
            "image-translation/",
        )
    )
}
"""But for those of ``claims/``, texts and dense tasks, which have tests of their own."""
OWN_LABELS = {"imagenet", "torchvision:CIFAR100", "cub200"}
"""Data of recipes whose teacher was trained on just these data: its stand-in knows the stand-in's labels."""
FAMILIES = {
    r"cifar:resnet\d+(x4)?": "cifar_resnet8",
    r"cifar:wrn_\d+_\d": "cifar_wrn_16_1",
    r"vkd_deit_.*": "vkd_deit_tiny_patch16_224?depth=1&embed_dim=24&num_heads=2",
    r"mobilenetv1_.*": "test_efficientnet",
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


def maker_of(run: str) -> str:
    """Return the recipe whose run folder, by default, is ``run``."""
    return run.replace("runs/", "image-classification/", 1)


def stand_in(name: str) -> str:
    if name.startswith("runs/"):  # what the recipe of that name makes
        name = parse_config(load_recipe(RECIPES[maker_of(name)].path), source=name).student.name
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
        has_teacher = original.teacher.name != "none"
        teacher = make_teacher(stand_in(original.teacher.name), labels) if has_teacher else None
        student = values["student"] if isinstance(values["student"], dict) else {}
        small = values | {
            "teacher": {"name": str(teacher), "image_size": SIZE} if has_teacher else "none",
            "student": student | {"name": stand_in(original.student.name), "image_size": SIZE, "pretrained": False},
            "data": {"name": str(photos), "workers": 0}
            | ({"labels_per_class": 3} if original.data.labels_per_class else {}),
            "train": values.get("train", {}) | {"epochs": 1, "batch_size": 16, "device": "cpu"},
            "baseline": False,
        }
        if "embedding" in values:
            small["embedding"] = values["embedding"] | {"epochs": 1}
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

    import kdcli.models.timm.kdcli_networks  # noqa: F401  # in timm's registry from here on

    config = parse_config(load_recipe(RECIPES[name].path), source=name)
    teacher, student = config.teacher.name, config.student.name
    known = timm.list_models(include_tags=True) + timm.list_models()
    assert student.replace("cifar:", "cifar_") in known
    pretrained = {full.partition(".")[0] for full in timm.list_pretrained()} | set(timm.list_pretrained())
    if config.student.pretrained:
        assert student in pretrained
    if teacher.startswith("runs/"):
        maker = parse_config(load_recipe(RECIPES[maker_of(teacher)].path), source=name)
        assert maker.teacher.name == "none"
        assert maker.data == config.data
    elif teacher != "none":
        assert teacher in (known if config.teacher.weights else pretrained)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_for_two_steps(name, shrunk, tmp_path):
    from kdcli.machine.devices import make_accelerator
    from kdcli.runs.folder import RunFolder
    from kdcli.training.prepare import embedding_job, prepare_job
    from kdcli.training.trainer import Trainer

    original, values = shrunk(name)
    # 24 of the 72 photos are enough for two steps of 16 with their validation and test splits taken.
    values["data"]["validation_fraction"] = 0.38
    if "methods" in original:
        assert values["methods"] == original["methods"]
    assert values.get("augment") == original.get("augment")
    assert values.get("optim") == original.get("optim")
    config = parse_config(values, source=name)
    accelerator = make_accelerator(config.train)
    job = prepare_job(config)
    before = {key: value.clone() for key, value in job.distiller.state_dict().items()}
    run = RunFolder.create(tmp_path / "run")
    run.write_config(job.config)
    run.write_plan(job.plan, command="kdcli distill")
    if job.config.embedding is not None:
        stage = embedding_job(job)
        told = Told()
        Trainer(stage, RunFolder.create(tmp_path / "run" / "embedding"), accelerator, told).fit()
        assert told.steps == told.total == 2
        assert {options["method"] for options in original["embedding"]["methods"]} <= told.losses[-1].keys()
        assert all(math.isfinite(value) for values in told.losses for value in values.values())
    told = Told()
    result = Trainer(job, run, accelerator, told).fit()
    assert result.steps == told.steps == told.total == 2
    assert all(math.isfinite(value) for values in told.losses for value in values.values())

    expected = {options["method"] for options in original.get("methods", [])}
    methods = {options.method for options in job.config.methods}
    if expected:
        assert methods == expected
    assert methods <= told.losses[-1].keys()
    has_teacher, own_labels = config.teacher.name != "none", parse_config(original, source=name).data.name in OWN_LABELS
    assert job.plan.relation == ("none" if not has_teacher else "same" if own_labels else "cross")
    projection = next((options for options in job.config.methods if options.method == "projection"), None)
    asked = [options.get("projector") for options in original.get("methods", []) if options["method"] == "projection"]
    if asked:
        assert [projection.projector] == asked
    elif not expected:
        wanted = "orthogonal" if config.projector == "auto" else config.projector
        assert projection.projector == wanted
    else:
        assert projection is None
    after = job.distiller.state_dict()
    trained = {name for name, parameter in job.distiller.named_parameters() if parameter.requires_grad}
    moved = {key for key in trained if not torch.equal(before[key], after[key].cpu())}
    assert {key.partition(".")[0] for key in moved} == {"student", "methods"} if projection else {"student"}
    assert len(moved) > 0.9 * len(trained), sorted(trained - moved)

    assert yaml.safe_load((run.path / "config.yaml").read_text())["augment"] == job.config.augment.model_dump(
        mode="json"
    )
    if projection is not None and projection.projector == "orthogonal":
        (matrix,) = load_file(run.path / "projector.safetensors").values()
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        gram = matrix.double() @ matrix.double().T
        assert (gram - torch.eye(len(gram))).abs().max() <= 1e-5
    events = [json.loads(line)["event"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert events == ["train", "validation", "test"]
