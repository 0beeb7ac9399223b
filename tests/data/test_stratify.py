"""Parts are drawn as scikit-learn draws them, which is not imported for it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from kdcli.data.images.digits import read_digits
from kdcli.data.stratify import draw_part, draw_stratified


def test_the_same_samples_as_scikit_learns() -> None:
    random = np.random.default_rng(0)
    compared = 0
    for seed in range(60):
        counts = random.integers(2, 30, size=random.integers(1, 8))
        labels = random.permutation(np.repeat(random.permutation(50)[: len(counts)], counts))
        size = int(random.integers(len(counts), len(labels) - len(counts) + 1))
        places = np.arange(len(labels))
        _, expected = train_test_split(places, test_size=size, stratify=labels, random_state=seed)
        assert draw_stratified(labels, size, seed=seed).tolist() == expected.tolist()
        _, expected = train_test_split(places, test_size=size, random_state=seed)
        assert draw_part(len(labels), size, seed=seed).tolist() == expected.tolist()
        compared += len(counts) > 2
    assert compared > 30


@pytest.mark.parametrize(("labels", "size"), [([0, 0, 1], 1), ([0, 0, 1, 1], 1), ([0, 0, 1, 1], 3)])
def test_a_part_without_a_class_is_refused(labels: list[int], size: int) -> None:
    with pytest.raises(ValueError, match="in proportion"):
        draw_stratified(np.array(labels), size, seed=0)


def test_digits_are_scikit_learns() -> None:
    ours, theirs = read_digits(), load_digits()
    assert np.array_equal(ours.images, theirs.images)
    assert np.array_equal(ours.target, theirs.target)
