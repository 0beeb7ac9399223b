"""Losses on the classes of pixels against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdcli.losses import dice, focal
from kdcli.statistics.intervals import bootstrap_differences, metric_of

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=GENERATOR)
TARGETS = torch.randint(-1, 4, (3, 5, 6), generator=GENERATOR)
TARGETS[2] = -1
TARGETS[1][TARGETS[1] == 3] = 0


def loop_focal(row, target, gamma):
    if target == -1:
        return 0.0
    total = sum(math.exp(value) for value in row)
    p = math.exp(row[target]) / total
    return -((1 - p) ** gamma) * math.log(p)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_focal_is_that_of_a_loop(gamma):
    rows, targets = LOGITS.movedim(1, -1).flatten(0, 2), TARGETS.flatten()
    expected = [loop_focal(row, target, gamma) for row, target in zip(rows.tolist(), targets.tolist(), strict=True)]
    torch.testing.assert_close(focal(rows, targets, gamma=gamma), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_of_what_is_certain_has_a_gradient(gamma):
    rows = torch.tensor([[100.0, -100.0], [-100.0, 100.0], [3.0, -3.0]], requires_grad=True)
    focal(rows, torch.tensor([0, -1, 0]), gamma=gamma).sum().backward()
    assert rows.grad.isfinite().all()
    assert rows.grad[:2].eq(0).all()
    assert rows.grad[2].ne(0).all()


def loop_dice(logits, target, smooth):
    losses = []
    for label in range(len(logits)):
        common = guessed = true = 0.0
        for y, row in enumerate(target.tolist()):
            for x, of_pixel in enumerate(row):
                if of_pixel != -1:
                    p = float(logits[:, y, x].exp()[label] / logits[:, y, x].exp().sum())
                    common, guessed, true = common + p * (of_pixel == label), guessed + p, true + (of_pixel == label)
        if true:
            losses.append(1 - (2 * common + smooth) / (guessed + true + smooth))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice_is_that_of_a_loop(smooth):
    """The second image lacks a class, and the third has no labels."""
    expected = [loop_dice(*pair, smooth) for pair in zip(LOGITS, TARGETS, strict=True)]
    assert expected[2] == 0
    found = dice(LOGITS, TARGETS, smooth=smooth)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_what_is_right_costs_nothing_and_gradients_are_right():
    target = TARGETS.clamp(min=0)
    sure = 100.0 * F.one_hot(target, 4).movedim(-1, 1).double()
    assert dice(sure, target).abs().max() < 1e-9
    assert focal(sure.movedim(1, -1).flatten(0, 2), target.flatten()).abs().max() < 1e-9
    small = LOGITS[:2, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: dice(logits, TARGETS[:2, :2, :2]), small)
    rows = LOGITS.movedim(1, -1).flatten(0, 2)[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: focal(logits, TARGETS.flatten()[:6]), rows)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="don't fit"):
        dice(LOGITS, TARGETS[:, :4])
    with pytest.raises(ValueError, match="don't fit"):
        focal(LOGITS, TARGETS)


def test_overlaps_of_resampled_images():
    """Of right, true and predicted pixels of three classes, of which one is nowhere."""
    ours = torch.tensor([[4, 1, 0, 5, 3, 0, 6, 2, 0], [2, 2, 0, 4, 4, 0, 4, 4, 0]] * 20).double().numpy()
    theirs = ours - [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert metric_of("mean_iou", ours[0]) == pytest.approx((4 / 7 + 1 / 4) / 2)
    assert math.isnan(metric_of("mean_iou", ours[0] * 0))
    found = bootstrap_differences({"mean_iou": ours}, {"mean_iou": theirs}, seed=0)["mean_iou"]
    difference = metric_of("mean_iou", ours.sum(axis=0)) - metric_of("mean_iou", theirs.sum(axis=0))
    assert found[0] < difference < found[1]
    assert found[1] - found[0] < difference
