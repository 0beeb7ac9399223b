"""Means by class against plain loops, and their classifier against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.machine.team import ALONE, Team
from kdcli.tasks.features.class_means import class_means, nearest_class_mean_accuracy

WIDTH = 7


def batches(count, *, seed, classes=(0, 1, 3), unlabelled=0):
    """Features around a centre of each class, in batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(99))
    targets = torch.tensor(classes)[torch.randint(len(classes), (count,), generator=generator)]
    features = centres[targets] + 3 * torch.randn(count, WIDTH, generator=generator)
    targets[:unlabelled] = UNLABELLED
    return features, targets, list(zip(features.split(16), targets.split(16), strict=True))


def test_means_by_loops():
    features, targets, split = batches(100, seed=0, unlabelled=20)
    means, counts = class_means(split, 5, WIDTH, ALONE)
    assert means.dtype == torch.float64
    for label in range(5):
        members = [row.double() for row, target in zip(features, targets, strict=True) if target == label]
        assert counts[label] == len(members)
        expected = sum(members) / len(members) if members else torch.zeros(WIDTH, dtype=torch.float64)
        torch.testing.assert_close(means[label], expected)


def test_means_are_summed_over_processes():
    _, _, split = batches(100, seed=0)
    whole, counts = class_means(split, 5, WIDTH, ALONE)
    sums = []
    for rank in range(2):
        team = Team(rank, 2)
        team.sum = lambda values: sums.append(values) or values
        class_means(team.share(split), 5, WIDTH, team)
    team.sum = lambda _: sums[0] + sums[1]
    both, both_counts = class_means(split[::2], 5, WIDTH, team)
    torch.testing.assert_close(both, whole)
    torch.testing.assert_close(both_counts, counts)


@pytest.mark.parametrize("seed", range(5))
def test_nearest_means_are_those_of_scikit_learn(seed):
    """Classes 2 and 4 have no training sample; class 4 occurs among the others and is never right."""
    features, targets, training = batches(90, seed=seed)
    held, labels, held_out = batches(70, seed=seed + 100, classes=(0, 1, 3, 4))
    reference = NearestCentroid().fit(normalize(features.double().numpy()), targets.numpy())
    expected = np.mean(reference.predict(normalize(held.double().numpy())) == labels.numpy())
    unlabelled = (torch.randn(8, WIDTH), torch.full((8,), UNLABELLED))
    assert 0.3 < expected < 0.95
    assert nearest_class_mean_accuracy([*training, unlabelled], held_out, 5, WIDTH) == pytest.approx(expected)


def test_nothing_to_evaluate_on_is_a_user_error():
    _, _, split = batches(32, seed=0)
    with pytest.raises(UserError, match="None of the evaluation images"):
        nearest_class_mean_accuracy(split, [], 5, WIDTH)
    with pytest.raises(UserError, match="None of the labelled training images"):
        nearest_class_mean_accuracy([], split, 5, WIDTH)
