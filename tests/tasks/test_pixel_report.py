"""What is kept of a segmenter's guesses: enough for the agreement of two models, and little for each image."""

import pytest
import torch
from torch.nn import functional as F

from kdcli.data import Batch
from kdcli.tasks.dense.segmentation import PixelReport


def report(classes, *, targets):
    """Of guesses (B, h, w) over 3 classes, measured at the size of ``targets``."""
    images = torch.zeros(len(targets), 3, *targets.shape[1:], dtype=torch.uint8)
    batch = Batch(images=images, targets=targets, samples=torch.arange(len(targets)))
    made = PixelReport(3)
    made.update(10 * F.one_hot(classes, 3).movedim(-1, 1).float(), batch)
    return made


def test_large_masks_are_compared_on_a_grid():
    targets = torch.randint(3, (2, 200, 300), generator=torch.Generator().manual_seed(0))
    halves = torch.zeros(2, 200, 300, dtype=torch.int64)
    halves[:, :, 150:] = 1
    first, second = report(torch.zeros_like(halves), targets=targets), report(halves, targets=targets)
    assert [tuple(guess.shape) for guess in first._guesses] == [(64, 64)] * 2
    assert first.agreement(first) == 1
    assert first.agreement(second) == second.agreement(first) == pytest.approx(0.5)
    assert first.notes("it") == ["it is measured on masks of 200x300 pixels."]
    small = report(halves[:, ::10, ::10], targets=targets[:, ::10, ::10])
    assert (small.agreement(second), first.agreement(small)) == (1, pytest.approx(0.5))
