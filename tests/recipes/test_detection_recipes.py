"""The recipes of ``recipes/object-detection/`` are valid, and train on small stand-ins for their models and data."""

from __future__ import annotations

import json

import pytest
import yaml

from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes, load_recipe
from tests.models.tiny_detectors import write_config

RECIPES = {recipe.name: recipe for recipe in list_recipes() if recipe.name.startswith("object-detection/")}
HUB = {"hf:hustvl/yolos-small": {"hidden_size": 48}, "hf:hustvl/yolos-tiny": {}}
"""Models of the hub, all with 100 detection tokens, by what is different in their stand-ins."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_says_what_it_is_for(name):
    config = parse_config(load_recipe(RECIPES[name].path), source=name)
    assert config.task == "object-detection"
    assert 20 <= len(config.description) <= 120
    assert config.description.startswith("After ")
    assert {config.teacher.name, config.student.name} <= HUB.keys()
    assert config.output is None


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name, tmp_path, run_cli):
    pytest.importorskip("faster_coco_eval")
    values = load_recipe(RECIPES[name].path)
    config = parse_config(values, source=name)
    teacher = write_config(tmp_path / "teacher", "yolos", **HUB[config.teacher.name])
    student = write_config(tmp_path / "student", "yolos", **HUB[config.student.name])
    values["teacher"] = {"name": f"random:{teacher}", "image_size": 64, "unchecked": True}
    values["student"] = {"name": str(student), "image_size": 64}
    values["data"] = {"name": "demo:scenes", "train_images": 16}
    values["train"] |= {"epochs": 1, "batch_size": 8, "device": "cpu", "mixed_precision": "no"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    outcome = run_cli("distill", "--recipe", tmp_path / "recipe.yaml", "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (train,) = (line for line in lines if line["event"] == "train")
    assert train["loss"] == pytest.approx(train["supervised"] + 4 * train["projection"], rel=1e-5)
    assert [line["event"] for line in lines] == ["train", "validation", "test"]
