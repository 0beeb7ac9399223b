"""The recipes of ``recipes/semantic-segmentation/`` and ``recipes/depth-estimation/``: valid, and planned on stand-ins.

Methods, augmentation and optimiser are the recipes' own; data are a few small images in the very form that is asked for,
models are small and untrained, images are of 64 pixels.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes, load_recipe
from tests.data import dense_forms as forms

TASKS = ("semantic-segmentation", "depth-estimation")
RECIPES = {recipe.name: recipe for recipe in list_recipes() if recipe.name.partition("/")[0] in TASKS}
SIZE = (64, 96)
STAND_INS = {
    "smp:deeplabv3/mobilenet_v2": "smp:deeplabv3/tu-mobilenetv3_small_050?decoder_channels=16&encoder_depth=3",
    "smp:deeplabv3/resnet101": "smp:deeplabv3/resnet18?decoder_channels=16&encoder_depth=3",
    "smp:unet/mobilenet_v2": "smp:unet/tu-mobilenetv3_small_050",
    "torchvision:fasterrcnn_resnet50_fpn_v2": "torchvision:ssdlite/mobilenet_v3_small",
}
"""A recipe's model -> a small one; SegFormers are small configs."""
RUNS = {"runs/cityscapes-deeplabv3-resnet101": "semantic-segmentation/cityscapes-deeplabv3-resnet101"}


def config_of(name):
    return parse_config(load_recipe(RECIPES[name].path), source=name)


def write_ade20k(root):
    """Images of the two splits beside masks with 0 where there is no class and 1 to 150 elsewhere."""
    for split, start in (("training", 0), ("validation", 100)):
        for number in range(start, start + 4):
            forms.save(root / "images" / split / f"ADE_{split}_{number:08}.jpg", forms.picture(number, SIZE[::-1]))
            values = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 151
            forms.save(root / "annotations" / split / f"ADE_{split}_{number:08}.png", values.astype(np.uint8))
    return root


DATA = {"cityscapes": forms.cityscapes, "nyu": forms.nyu, "ADEChallengeData2016": write_ade20k}


def stand_in(name, folder, *, width):
    """Return a small model in place of ``name``."""
    if not name.startswith("hf:"):
        return STAND_INS[name]
    assert name.startswith("hf:nvidia/")
    from tests.models.tiny_dense import small_config

    (folder / "config.json").parent.mkdir(parents=True)
    config = small_config("segformer", num_labels=150)
    config.decoder_hidden_size = width
    config.save_pretrained(folder)
    return str(folder)


def save_teacher(folder, config):
    """Save an untrained model of the data's classes, as if it were the trained one that the recipe names."""
    from kdcli.config.models import StudentConfig
    from kdcli.models.loading import build_student
    from kdcli.tasks.registry import task_class

    name = config.teacher.name
    name = config_of(RUNS[name]).student.name if name in RUNS else name
    data = task_class(config.task).open(config.data.model_copy(update={"name": str(folder / config.data.name)}), seed=0)
    small = StudentConfig(name=stand_in(name, folder / "config", width=24), image_size=SIZE)
    (folder / "teacher").mkdir()
    build_student(small, data.facts, seed=0).save(folder / "teacher")
    return str(folder / "teacher")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_says_what_it_is_for(name):
    config = config_of(name)
    assert config.task == name.partition("/")[0]
    assert 20 <= len(config.description) <= 120
    assert "after " in config.description.lower()
    assert config.output is None
    assert config.data.name in DATA
    assert config.teacher.name in ("none", *STAND_INS, *RUNS) or config.teacher.name.startswith("hf:")
    text = " ".join(RECIPES[name].path.read_text().replace("#", " ").split())
    assert "not as published" in text
    assert "Not run at full scale by us." in text


def test_recipes_of_cityscapes_are_of_one_bench():
    """They differ in their methods, and the teacher is trained as they are."""
    students = [name for name in RECIPES if "cityscapes-" in name and name not in RUNS.values()]
    assert len(students) == 3
    alike = [config_of(name).model_dump(exclude={"methods", "description"}) for name in students]
    assert alike[0] == alike[1] == alike[2]
    for run, maker in RUNS.items():
        assert alike[0]["teacher"]["name"] == run
        theirs = config_of(maker).model_dump()
        assert all(theirs[section] == alike[0][section] for section in ("data", "augment", "optim", "train"))
    assert (alike[0]["optim"]["schedule"], alike[0]["optim"]["power"]) == ("poly", 0.9)


def test_networks_exist_and_have_the_weights_that_are_asked_for():
    smp = pytest.importorskip("segmentation_models_pytorch")
    from kdcli.models.torchvision_detection.networks import NETWORKS

    for name in STAND_INS:
        library, _, network = name.partition(":")
        if library == "torchvision":
            assert NETWORKS[network].is_published
        else:
            architecture, _, encoder = network.partition("/")
            assert architecture in smp.MODEL_ARCHITECTURES_MAPPING
            assert "imagenet" in smp.encoders.encoders[encoder]["pretrained_settings"]


def test_ade20k_has_its_150_classes_in_the_teacher_s_order():
    config = config_of("semantic-segmentation/ade20k-segformer-b0")
    names = config.data.class_names
    assert (len(names), names[0], names[-1]) == (150, "wall", "flag")
    assert config.teacher.label_names == names


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_planned_on_stand_ins(name, tmp_path, run_cli):
    pytest.importorskip("segmentation_models_pytorch")
    original = load_recipe(RECIPES[name].path)
    config = parse_config(original, source=name)
    DATA[config.data.name](tmp_path / config.data.name)
    options = [
        "--recipe",
        RECIPES[name].path,
        "--student",
        stand_in(config.student.name, tmp_path / "student", width=16),
    ]
    options += ["--set", "student.pretrained=false", "--set", f"student.image_size={[*SIZE]}", "--batch-size", "4"]
    if config.teacher.name != "none":
        values = original["teacher"] | {"image_size": [*SIZE], "unchecked": True}
        is_same = config.teacher.name not in STAND_INS
        values["name"] = save_teacher(tmp_path, config) if is_same else f"random:{STAND_INS[config.teacher.name]}"
        options[1] = tmp_path / "recipe.yaml"
        options[1].write_text(yaml.safe_dump(original | {"teacher": values}))
    outcome = run_cli("distill", *options, "--device", "cpu", "--dry-run", "--log-format", "json")
    assert outcome.exit_code == 0, outcome.stderr
    plan = json.loads(outcome.stdout)
    told = {decision["name"] for decision in plan["decisions"]}
    assert {f"loss: {options.method.replace('_', ' ')}" for options in config.methods} <= told
    assert plan["relation"] == ("none" if config.teacher.name == "none" else "same" if is_same else "random")
