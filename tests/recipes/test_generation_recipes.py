"""The recipes of ``recipes/image-generation/`` and ``recipes/claims/generation/``: valid, and planned on stand-ins."""

from __future__ import annotations

import pytest

from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes, load_recipe
from kdcli.tasks.generation.task import ImageGeneration
from tests.conftest import write_photos

RECIPES = {
    recipe.name: recipe.path
    for recipe in list_recipes()
    if recipe.name.startswith(("image-generation/", "claims/generation/"))
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A few images of two classes."""
    counts = {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("apple", "sky")}
    return write_photos(tmp_path_factory.mktemp("few") / "photos", counts)


def config_of(name):
    return parse_config(load_recipe(RECIPES[name]), source=name)


def test_arms_of_the_claims_differ_in_the_discriminator_and_its_teacher_alone():
    arms = [config_of(name) for name in RECIPES if name.startswith("claims/")]
    assert len(arms) == 5
    free = {"teacher", "methods", "description"}
    assert len({arm.model_dump_json(exclude=free) for arm in arms}) == 1
    assert len({(arm.methods, arm.teacher) for arm in arms}) == 5
    assert {arm.methods[0].adversary_lr for arm in arms} == {arms[0].optim.lr}


def test_students_of_part_of_the_data_have_as_many_steps_as_the_papers():
    """5,000 epochs in which each step of the generator takes four batches."""
    for name in RECIPES:
        if name.startswith("image-generation/"):
            config = config_of(name)
            batches = config.data.train_images // config.train.batch_size
            assert config.train.epochs * batches == 5000 * batches // config.methods[0].adversary_steps
            assert config.train.validate_every * batches == 4000


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith(("100-10-percent", "100-20-percent"))])
def test_it_is_planned_on_stand_ins(name, few, run_cli):
    config = config_of(name)
    options = ["--student", "generator:biggan32?channels=2&dim_z=4", "--data", few, "--device", "cpu", "--dry-run"]
    if config.teacher.name != "none":
        options += ["--teacher", "random:test_resnet", "--set", "teacher.image_size=32"]
        options += ["--set", "methods.0.teacher_tap=pooled"]
    options += ["--set", "data.eval_extractor=random:test_resnet", "--set", "data.eval_extractor_size=32"]
    outcome = run_cli("distill", "--recipe", RECIPES[name], *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert "loss: gan" in outcome.stdout


def test_an_optimiser_without_betas_is_given_none():
    given = {"task": "image-generation", "teacher": "none", "student": "generator:biggan32", "data": "x"}
    for asked, betas in (({}, (0.0, 0.999)), ({"optimizer": "adamw"}, (0.0, 0.999)), ({"optimizer": "sgd"}, None)):
        config = ImageGeneration.with_usual(parse_config(given | {"optim": asked}, source="a test"), None)
        assert config.optim.betas == betas
        assert config.optim.lr == 2e-4
