"""Random parts of a split as scikit-learn's ``train_test_split`` draws them, without the second that its import takes.

The same samples for the same seed, whatever version of scikit-learn is there: runs of before keep their splits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def draw_part(count: int, size: int, *, seed: int) -> Indices:
    """Return ``size`` of ``count`` places, drawn by ``seed``, in no order.

    Source: ``ShuffleSplit`` of scikit-learn.
    """
    return np.random.RandomState(seed).permutation(count)[:size]


def draw_stratified(labels: NDArray[np.integer], size: int, *, seed: int) -> Indices:
    """Return ``size`` places of ``labels``, every class in proportion, drawn by ``seed``, in no order.

    Source: ``StratifiedShuffleSplit`` of scikit-learn.

    Args:
        labels: (N,); each class at least twice.
        size: at least the number of classes, and at most N less it.
        seed: decides which.

    Raises:
        ValueError: a class is there once only, or one of the two parts would be smaller than the number of classes.
    """
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < 2 or min(size, len(labels) - size) < len(counts):
        raise ValueError(f"{size} of {len(labels)} samples of {len(counts)} classes can't be drawn in proportion")
    members = np.split(np.argsort(places, kind="stable"), np.cumsum(counts)[:-1])
    random = np.random.RandomState(seed)
    kept = _in_proportion(counts, len(labels) - size, random)
    drawn = _in_proportion(counts - kept, size, random)
    rest, part = [], []
    for own, stay, go in zip(members, kept, drawn, strict=True):
        shuffled = own[random.permutation(len(own))]
        rest.append(shuffled[:stay])
        part.append(shuffled[stay : stay + go])
    random.permutation(np.concatenate(rest))
    return random.permutation(np.concatenate(part))


def _in_proportion(counts: Indices, size: int, random: np.random.RandomState) -> Indices:
    """Return how many of each class make ``size``: rounded down, and one more where most was lost, ties by chance."""
    exact = counts / counts.sum() * size
    whole = np.floor(exact)
    lacking = int(size - whole.sum())
    lost = exact - whole
    for value in np.unique(lost)[::-1]:
        if lacking <= 0:
            break
        tied = np.flatnonzero(lost == value)
        add = min(len(tied), lacking)
        whole[random.choice(tied, size=add, replace=False)] += 1
        lacking -= add
    return whole.astype(np.int64)
