"""Losses of generators and discriminators against loops in float64, and DiffAugment against its authors' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdcli.losses import (
    diff_augment,
    diff_augment_by,
    discriminator_loss,
    generator_loss,
    lecam,
    lecam_start,
    lecam_update,
)

GENERATOR = torch.Generator().manual_seed(0)
REAL, FAKE = (2 * torch.randn(5, 1, 3, 2, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
IMAGES = torch.rand(6, 3, 12, 10, dtype=torch.float64, generator=GENERATOR) * 2 - 1
DRAWS = torch.rand(6, 7, generator=GENERATOR)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


LOOPS = {
    "hinge": (lambda r, f: max(0, 1 - r) + max(0, 1 + f), lambda f: -f),
    "lsgan": (lambda r, f: (r - 1) ** 2 + f**2, lambda f: (f - 1) ** 2),
    "non_saturating": (
        lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
        lambda f: -math.log(sigmoid(f)),
    ),
}


def elementwise(function, *tensors):
    values = [function(*row) for row in zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)]
    return torch.tensor(values, dtype=torch.float64).view(tensors[0].shape)


@pytest.mark.parametrize("kind", LOOPS)
def test_losses_are_those_of_a_loop(kind):
    of_pair, of_fake = LOOPS[kind]
    torch.testing.assert_close(discriminator_loss(REAL, FAKE, kind=kind), elementwise(of_pair, REAL, FAKE))
    torch.testing.assert_close(generator_loss(FAKE, kind=kind), elementwise(of_fake, FAKE))
    sides = [side.clone().requires_grad_() for side in (REAL, FAKE)]
    assert torch.autograd.gradcheck(lambda r, f: discriminator_loss(r, f, kind=kind), sides)
    assert torch.autograd.gradcheck(lambda f: generator_loss(f, kind=kind), sides[1:])
    assert discriminator_loss(REAL.half(), FAKE.half(), kind=kind).dtype == torch.float32
    # What is certain in half precision neither overflows nor loses its gradient.
    certain = torch.tensor([-300.0], dtype=torch.float16, requires_grad=True)
    loss = generator_loss(certain, kind=kind)
    loss.sum().backward()
    assert loss.isfinite()
    assert certain.grad.isfinite()
    assert certain.grad < 0


def test_lecam_is_that_of_a_loop():
    """After ``k`` batches an average is ``Σ decay^(k-i) m_i / Σ decay^(k-i)``."""
    batches = [(REAL + shift, FAKE - 2 * shift) for shift in (0.0, 1.5, -0.3)]
    state = lecam_start().double()
    assert lecam(REAL, FAKE, state).eq(0).all()
    for real, fake in batches:
        before = state.clone()
        after = lecam_update(state, real.clone().requires_grad_(), fake, decay=0.8)
        assert not after.requires_grad
        assert state.equal(before)
        state = after
    weights = [0.8**2, 0.8, 1.0]
    averages = [
        sum(weight * float(batch[side].mean()) for weight, batch in zip(weights, batches, strict=True)) / sum(weights)
        for side in range(2)
    ]
    expected = elementwise(lambda r, f: max(0, r - averages[1]) ** 2 + max(0, averages[0] - f) ** 2, REAL, FAKE)
    assert expected.gt(0).any()
    torch.testing.assert_close(lecam(REAL, FAKE, state), expected)
    leaves = [side.clone().requires_grad_() for side in (REAL, FAKE)]
    assert torch.autograd.gradcheck(lambda r, f: lecam(r, f, state), leaves)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        discriminator_loss(REAL, FAKE[:1], kind="hinge")
    with pytest.raises(ValueError, match="one shape"):
        lecam(REAL, FAKE[:1], lecam_start())
    with pytest.raises(ValueError, match="must be one of hinge, lsgan, non_saturating, got 'wgan'"):
        generator_loss(FAKE, kind="wgan")
    with pytest.raises(ValueError, match="must be one of"):
        discriminator_loss(REAL, FAKE, kind="wgan")
    with pytest.raises(ValueError, match="decay"):
        lecam_update(lecam_start(), REAL, FAKE, decay=1.0)
    with pytest.raises(ValueError, match="no augmentation 'colour'"):
        diff_augment_by(IMAGES, ["colour"], DRAWS)
    with pytest.raises(ValueError, match="don't fit"):
        diff_augment_by(IMAGES, ["color"], DRAWS[:2])


def authors_color(x, draws):
    """The authors' code, with its random numbers given."""
    draws = draws.double()[..., None, None, None]
    x = x + (draws[:, 0] - 0.5)
    mean = x.mean(dim=1, keepdim=True)
    x = (x - mean) * (draws[:, 1] * 2) + mean
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * (draws[:, 2] + 0.5) + mean


def authors_translation(x, draws, ratio=0.125):
    """The authors' code, with its random numbers given: it indexes a padded image."""
    height, width = x.shape[2:]
    reach_y, reach_x = int(height * ratio + 0.5), int(width * ratio + 0.5)
    dy = torch.tensor([math.floor(draw * (2 * reach_y + 1)) - reach_y for draw in draws[:, 3].tolist()])
    dx = torch.tensor([math.floor(draw * (2 * reach_x + 1)) - reach_x for draw in draws[:, 4].tolist()])
    batch, rows, columns = torch.meshgrid(*(torch.arange(n) for n in (len(x), height, width)), indexing="ij")
    rows = torch.clamp(rows + dy[:, None, None] + 1, 0, height + 1)
    columns = torch.clamp(columns + dx[:, None, None] + 1, 0, width + 1)
    padded = F.pad(x, [1, 1, 1, 1, 0, 0, 0, 0])
    return padded.permute(0, 2, 3, 1).contiguous()[batch, rows, columns].permute(0, 3, 1, 2)


def authors_cutout(x, draws, ratio=0.5):
    """The authors' code, with its random numbers given: it sets what a clamped grid points at to 0."""
    sides = x.shape[2:]
    sizes = [int(side * ratio + 0.5) for side in sides]
    grid = torch.meshgrid(torch.arange(len(x)), *(torch.arange(size) for size in sizes), indexing="ij")
    places = []
    for axis in range(2):
        choices = sides[axis] + (1 - sizes[axis] % 2)
        offset = torch.tensor([math.floor(draw * choices) for draw in draws[:, 5 + axis].tolist()])
        place = grid[1 + axis] + offset[:, None, None] - sizes[axis] // 2
        places.append(torch.clamp(place, min=0, max=sides[axis] - 1))
    mask = torch.ones(len(x), *sides, dtype=x.dtype)
    mask[grid[0], places[0], places[1]] = 0
    return x * mask.unsqueeze(1)


@pytest.mark.parametrize("sides", [(12, 10), (9, 6), (1, 4)])
def test_diff_augment_is_what_its_authors_wrote(sides):
    images = IMAGES[:, :, : sides[0], : sides[1]]
    extreme = torch.cat([DRAWS[:4], torch.zeros(1, 7), torch.full((1, 7), 1 - 2**-24)])
    for draws in (DRAWS, extreme):
        for name, authors in (
            ("color", authors_color),
            ("translation", authors_translation),
            ("cutout", authors_cutout),
        ):
            found = diff_augment_by(images, [name], draws)
            torch.testing.assert_close(found, authors(images, draws))
            assert name == "cutout" or sides[0] == 1 or not found.equal(images)
        expected = authors_color(authors_cutout(authors_translation(images, draws), draws), draws)
        torch.testing.assert_close(diff_augment_by(images, ["translation", "cutout", "color"], draws), expected)


def test_diff_augment_is_differentiable_and_a_function_of_its_generator():
    policy = ["color", "translation", "cutout"]
    small = IMAGES[:2, :, :5, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda images: diff_augment_by(images, policy, DRAWS[:2]), small)
    first, again, other = (diff_augment(IMAGES, policy, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)
    draws = torch.rand(len(IMAGES), 7, generator=torch.Generator().manual_seed(3))
    assert first.equal(diff_augment_by(IMAGES, policy, draws))
    # Each on its own: a share of the images with its share of the draws.
    torch.testing.assert_close(first[2:4], diff_augment_by(IMAGES[2:4], policy, draws[2:4]))
    assert diff_augment(IMAGES.half(), policy, torch.Generator()).dtype == torch.float16
    assert diff_augment(IMAGES, [], torch.Generator()) is IMAGES
