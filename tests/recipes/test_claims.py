"""The recipes of ``recipes/claims/``: they differ in what the claim is about, cost the same, and run."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes, load_recipe
from kdcli.config.run import RunConfig

RECIPES = {
    recipe.name: recipe.path
    for recipe in list_recipes()
    if recipe.name.startswith("claims/")
    and not {"generation", "translation"} & set(recipe.name.split("/"))  # tested apart
}
ARMS = sorted(name for name in RECIPES if "/teachers/" not in name and not name.endswith(("alone", "alone-half")))
TEACHERS = sorted(name for name in RECIPES if "/teachers/" in name)
DENSE = [name for name in (*ARMS, *TEACHERS) if "/dense/" in name]


def config_of(name: str) -> RunConfig:
    return parse_config(load_recipe(RECIPES[name]), source=name)


def total_epochs(config: RunConfig) -> int:
    return config.train.epochs + (config.embedding.epochs if config.embedding is not None else 0)


def alone_for(name: str) -> str:
    beside = f"{name.rpartition('/')[0]}/alone"
    return beside if beside in RECIPES else "claims/alone"


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_differs_from_the_student_alone_in_the_teacher_and_the_losses(name):
    arm, alone = config_of(name), config_of(alone_for(name))
    free = {"teacher", "methods", "embedding", "description"}
    assert arm.model_dump(exclude=free | {"train"}) == alone.model_dump(exclude=free | {"train"})
    assert arm.train.model_copy(update={"epochs": 1}) == alone.train.model_copy(update={"epochs": 1})
    assert total_epochs(arm) == total_epochs(alone)
    assert arm.methods != alone.methods or arm.embedding is not None
    assert arm.methods[0] == alone.methods[0], "the labels' loss"


@pytest.mark.parametrize("name", ARMS)
def test_a_teacher_that_is_a_run_has_its_recipe(name):
    teacher = config_of(name).teacher.name
    if teacher.startswith("runs/"):
        maker = config_of(teacher.removeprefix("runs/"))
        assert maker.teacher.name == "none"
        assert maker.data.name == config_of(name).data.name


def test_arms_of_other_classes_share_no_class_with_their_teacher():
    arm = config_of("claims/other-classes/rkd")
    assert arm.teacher.name == "runs/claims/teachers/fashion-first-half"
    assert (config_of("claims/teachers/fashion-first-half").data.classes, arm.data.classes) == (
        ("part:1/2",),
        ("part:2/2",),
    )


@pytest.mark.parametrize("name", DENSE)
def test_recipe_of_a_dense_task_is_planned_on_stand_ins(name, run_cli):
    config = config_of(name)
    options = ["--data", "demo:scenes", "--set", "data.ignore_label=null", "--device", "cpu", "--dry-run"]
    if config.teacher.name.startswith("runs/"):
        options += ["--teacher", f"random:{config_of(config.teacher.name.removeprefix('runs/')).student.name}"]
    outcome = run_cli("distill", "--recipe", RECIPES[name], *options)
    if name.endswith("predictions"):  # of a teacher that has to be trained, which stand-ins are not
        assert outcome.exit_code == 2
        assert re.search("is untrained|weights are untrained", outcome.stderr)
        return
    assert outcome.exit_code == 0, outcome.stderr
    for options in config.methods:
        assert f"loss: {options.method.replace('_', ' ')}"[:20] in outcome.stdout


OTHERS = [name for name in (*ARMS, *TEACHERS) if name not in DENSE]


@pytest.mark.parametrize("name", [*OTHERS, "claims/alone", "claims/refilled-small/alone-half"])
def test_recipe_runs_on_stand_ins(name, run_cli, tmp_path, photos, trained_teacher):
    config = config_of(name)
    options = ["--set", "train.batch_size=16", "--set", "data.train_images=16", "--epochs", "1", "--device", "cpu"]
    options += ["--set", "data.validation_fraction=0.3", "--set", "data.classes=null", "--set", "data.workers=0"]
    if config.embedding is not None:
        options += ["--set", "embedding.epochs=1"]
    teacher = config.teacher.name
    if teacher not in ("none",) and not teacher.startswith("random:"):
        options += ["--teacher", trained_teacher]
    outcome = run_cli("distill", "--recipe", RECIPES[name], "--data", photos, "--output", "run", *options)
    assert outcome.exit_code == 0, outcome.stderr
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert [options["method"] for options in written["methods"]] == [options.method for options in config.methods]
    assert (tmp_path / "run" / "embedding" / "result.json").is_file() == (config.embedding is not None)
    assert 0 <= json.loads((tmp_path / "run" / "result.json").read_text())["test"]["accuracy"] <= 1
