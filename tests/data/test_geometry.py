"""A picture of its own coordinates, through the real loaders and two models' preprocessing: the same place is the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdcli.base.facts import Preprocessing
from kdcli.config.data import AugmentConfig
from kdcli.data import EvalLoader, Loading, Mix, TrainLoader, prepare
from kdcli.data.images.sources import ArraySource

HEIGHT, WIDTH = 240, 320
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def resized(share, *sides):
    """Return the size to which an image is resized so that ``sides`` are this share of it."""
    return tuple(int(side / share) for side in sides)


MODELS = {
    "32": Preprocessing((32, 32), *IMAGENET, "bilinear", resized(0.875, 32, 32)),
    "96": Preprocessing((96, 96), *HALF, "bicubic"),
    "45": Preprocessing((45, 45), *UNIT, "bicubic", resized(0.9, 45, 45)),
    "224": Preprocessing((224, 224), *IMAGENET, "bicubic", resized(0.95, 224, 224), kernels="torchvision"),
    "64 nearest": Preprocessing((64, 64), *HALF, "nearest", resized(0.95, 64, 64)),
    "48x80": Preprocessing((48, 80), *IMAGENET, "bilinear", resized(0.875, 48, 80)),
    "64 BGR": Preprocessing((64, 64), *UNIT, "bilinear", resized(0.9, 64, 64), channels="BGR"),
    "56 squashed": Preprocessing((56, 56), *HALF, "lanczos", (64, 64), "squash", kernels="torchvision"),
    "56 bordered": Preprocessing((56, 56), *HALF, "bicubic", (64, 64), "border"),
}
PAIRS = list(itertools.combinations(MODELS, 2))
AUGMENTS = {
    "crop and flip": AugmentConfig(),
    "squashed": AugmentConfig(crop_scale=(1.0, 1.0), flip=1.0),
    "padded": AugmentConfig(crop_scale=(1.0, 1.0), pad=4),
    "turned and sheared": AugmentConfig(policy="rand"),
}


@pytest.fixture(scope="module")
def coordinates():
    """Six copies of a picture whose red is x and whose green is y, from 25 to 230; blue is 128."""
    x, y = np.linspace(25, 230, WIDTH), np.linspace(25, 230, HEIGHT)
    picture = np.stack([*np.meshgrid(x, y), np.full((HEIGHT, WIDTH), 128.0)], axis=2).round().astype(np.uint8)
    return ArraySource(np.repeat(picture[None], 6, axis=0), [0] * 6, split="train")


def shown(batch, model):
    """Return what a model's input shows, (B, 3, H, W) in [0, 255], red first."""
    inputs = prepare(batch.images, model)
    assert inputs.shape[2:] == model.image_size
    inputs = inputs.flip(1) if model.channels == "BGR" else inputs
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
    return (inputs * std + mean) * 255


def at_places(images, count=17):
    """Return what is at the same places, of the width and the height, in images of any size."""
    places = torch.linspace(-0.8, 0.8, count)
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def assert_aligned(batch, first, second, *, levels_per_picture, level_noise=1.5, pixels=0.6):
    """Red and green differ by less than what they change over a part of a pixel of the coarser model."""
    ours, theirs = (at_places(shown(batch, model)) for model in (first, second))
    for channel, axis in ((0, 1), (1, 0)):
        side = min(model.image_size[axis] for model in (first, second))
        off = (ours - theirs)[:, channel].abs().max().item()
        assert off < pixels * levels_per_picture / side + level_noise, (channel, off)
    assert (ours - theirs)[:, 2].abs().max() < level_noise


def train_batch(source, augment, models, *, epoch=0):
    canvas = tuple(max(sides) for sides in zip(*(model.image_size for model in models), strict=True))
    loader = TrainLoader(source, Loading(6, 3, augment, workers=0, strict=True), canvas=canvas)
    return next(iter(loader.epoch(epoch)))


@pytest.mark.parametrize("augment", ["crop and flip", "squashed"])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_training(coordinates, one, other, augment):
    models = (MODELS[one], MODELS[other])
    batch = train_batch(coordinates, AUGMENTS[augment], models)
    assert_aligned(batch, *models, levels_per_picture=205)


@pytest.mark.parametrize("augment", ["padded", "turned and sheared"])
@pytest.mark.parametrize(("one", "other"), [("32", "224"), ("96", "45"), ("64 BGR", "96")])
def test_training_with_edges(coordinates, one, other, augment):
    """Padding, rotation and shear leave black borders, which are smeared by the coarser model: most places agree."""
    models = (MODELS[one], MODELS[other])
    batch = train_batch(coordinates, AUGMENTS[augment], models)
    ours, theirs = (at_places(shown(batch, model))[:, :2] for model in models)
    off = (ours - theirs).abs().flatten()
    allowed = 205 / min(models[0].image_size + models[1].image_size) + 1.5
    assert off.quantile(0.9) < allowed


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_evaluation_of_both_on_one_canvas(coordinates, one, other):
    """As 'analyze-projector' has it: fitted once, as the one model wants it, at the larger size."""
    models = (MODELS[one], MODELS[other])
    loader = EvalLoader(coordinates, Loading(6, workers=0, strict=True), preprocessing=models[0])
    (batch,) = loader
    assert_aligned(batch, *models, levels_per_picture=205)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_shows_the_middle(coordinates, name):
    """Each model alone sees the crop that its own settings say, in the same place of the picture whatever its size."""
    model = MODELS[name]
    (batch,) = EvalLoader(coordinates, Loading(6, workers=0, strict=True), preprocessing=model)
    images = shown(batch, model)
    height, width = model.image_size
    scales = (model.resize[1] / WIDTH, model.resize[0] / HEIGHT)  # pixels of the input for one of the picture
    if model.geometry != "squash":
        scales = (max(scales) if model.geometry == "crop" else min(scales),) * 2
    seen = (width / scales[0] / WIDTH, height / scales[1] / HEIGHT)
    for channel, part, side in ((0, seen[0], width), (1, seen[1], height)):
        expected = 127.5 + 205 * part * torch.linspace(-0.4, 0.4, 17)
        found = at_places(images)[0, channel]
        found = found[0] if channel == 0 else found[:, 0]
        assert (found - expected).abs().max() < 0.75 * 205 * part / side + 2, (channel, found, expected)


def test_mixing_leaves_both_models_the_same_picture(coordinates):
    models = (MODELS["32"], MODELS["96"])
    augment = AugmentConfig(mixup=1.0)
    batch = Mix(augment, 2, 0)(train_batch(coordinates, augment, models), 0, 0)
    assert_aligned(batch, *models, levels_per_picture=205)


def test_the_measure_sees_a_shift(coordinates):
    """Of one pixel and a half, of the canvas that both models share."""
    models = (MODELS["96"], MODELS["45"])
    batch = train_batch(coordinates, AUGMENTS["squashed"], models)
    moved = replace(batch, images=batch.images.roll(3, dims=3))
    ours, theirs = at_places(shown(batch, models[0])), at_places(shown(moved, models[1]))
    assert (ours - theirs)[:, 0].abs().max() > 0.6 * 205 / 45 + 1.5
