"""The recipes of ``recipes/image-translation/`` and ``recipes/claims/translation/``: valid, and planned on stand-ins."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kdcli.base.facts import DataFacts
from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes, load_recipe
from kdcli.tasks.translation.task import ImageTranslation

RECIPES = {
    recipe.name: recipe.path
    for recipe in list_recipes()
    if recipe.name.startswith(("image-translation/", "claims/translation/"))
}
KINDS = ("paired", "unpaired")


def config_of(name):
    return parse_config(load_recipe(RECIPES[name]), source=name)


@pytest.mark.parametrize("kind", KINDS)
def test_arms_of_a_claim_differ_in_the_teacher_and_what_it_is_for(kind):
    arms = [config_of(name) for name in RECIPES if f"/{kind}/" in name]
    assert len(arms) == 6
    free = {"teacher", "methods", "description"}
    assert len({arm.model_dump_json(exclude=free) for arm in arms}) == 1
    assert len({(arm.methods, arm.teacher) for arm in arms}) == 6
    assert len({arm.methods[0] for arm in arms}) == 1
    assert {len(arm.methods) for arm in arms} == {1, 2}
    if kind == "unpaired":
        assert arms[0].methods[0].adversary_lr == arms[0].optim.lr


def test_horse2zebra_has_the_settings_of_cyclegan():
    config = config_of("image-translation/horse2zebra")
    options, optim = config.methods[0], config.optim
    assert (options.loss, options.cycle, options.identity, options.pool) == ("lsgan", 10, 0.5, 50)
    assert (options.discriminator_channels, options.discriminator_layers) == (64, 3)
    assert (options.adversary_lr, options.adversary_betas) == (optim.lr, optim.betas) == (2e-4, (0.5, 0.999))
    assert (optim.optimizer, optim.schedule, optim.hold, optim.warmup, optim.min_lr_ratio) == (
        "adam",
        "linear",
        0.5,
        0,
        0,
    )
    assert (config.train.epochs, config.train.batch_size, config.student.name) == (200, 2, "generator:resnet9")
    other = config_of("image-translation/horse2zebra-imagenet")
    assert other.methods[0] == options
    assert other.optim == optim


@pytest.mark.parametrize(
    ("kind", "asked", "changed"),
    [
        (
            "unpaired",
            {},
            {"optimizer", "lr", "betas", "weight_decay", "schedule", "hold", "warmup", "min_lr_ratio", "clip_grad"},
        ),
        ("unpaired", {"lr": 1e-3, "schedule": "constant"}, {"optimizer", "betas", "weight_decay", "clip_grad"}),
        ("unpaired", {"optimizer": "adamw"}, set()),
        ("image", {}, set()),
    ],
)
def test_its_optimiser_is_that_of_images_without_pairs_where_none_is_asked_for(kind, asked, changed):
    """So a run that was begun before, whose config names its optimiser, goes on as it was."""
    given = {"task": "image-translation", "teacher": "none", "student": "generator:mobile", "data": "x", "optim": asked}
    before = parse_config(given, source="a test")
    facts = DataFacts("x", "image-translation", (), 2, 2, 2, 2, label_kind=kind)
    after, recipe = ImageTranslation.with_usual(before, facts), config_of("image-translation/horse2zebra")
    for key, value in dict(before.optim).items():
        expected = getattr(recipe.optim, key) if key in changed else value
        assert getattr(after.optim, key) == expected, key
    assert after.model_copy(update={"optim": before.optim}) == before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few images of every form that the recipes name."""
    root = tmp_path_factory.mktemp("data")

    def save(path, number, mode="RGB"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (64, 96, 3) if mode == "RGB" else (64, 96)
        high = 256 if mode == "RGB" else 12
        values = np.random.default_rng(number).integers(0, high, shape)
        Image.fromarray(values.astype(np.uint8)).save(path)

    for split in ("train", "val", "test"):
        for number in range(3):
            save(root / "camvid" / split / "images" / f"{number}.jpg", number)
            save(root / "camvid" / split / "masks" / f"{number}.png", number, "L")
    for folder in ("trainA", "trainB", "testA", "testB"):
        for number in range(4):
            save(root / "horse2zebra" / folder / f"{number}.jpg", number)
    for name in ("horse", "deer", "ship"):
        for number in range(12):
            save(root / "cifar10" / name / f"{number}.jpg", number)
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_planned_on_stand_ins(name, data, run_cli):
    config = config_of(name)
    folder = data / {"torchvision:CIFAR10": "cifar10"}.get(config.data.name, config.data.name)
    options = [
        "--student",
        "generator:resnet6?channels=2&num_blocks=1",
        "--data",
        folder,
        "--device",
        "cpu",
        "--dry-run",
    ]
    if config.teacher.name != "none":
        options += ["--teacher", "random:test_resnet", "--set", "teacher.image_size=32"]
        options += ["--set", "methods.1.layers=[pooled:layer2]"]
    options += ["--set", "data.eval_extractor=random:test_resnet", "--set", "data.eval_extractor_size=32"]
    options += ["--set", "student.image_size=64"]
    outcome = run_cli("distill", "--recipe", RECIPES[name], *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert f"loss: {config.methods[0].method.replace('_', ' ')}" in outcome.stdout
