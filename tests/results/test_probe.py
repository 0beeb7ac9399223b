"""Probing teachers: LogME against the formula, accuracies against what the features are made of, and the sample."""

import math

import numpy as np
import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data.images.sources import ArraySource
from kdcli.results import probe
from kdcli.tasks.features.log_me import log_me, maximise_evidence


def evidence_by_loops(features, targets, alpha, beta):
    """The log evidence as it stands in the paper: explicit matrices, sums by loops."""
    num, width = len(features), len(features[0])
    a = [
        [alpha * (i == j) + beta * sum(row[i] * row[j] for row in features) for j in range(width)] for i in range(width)
    ]
    right = [beta * sum(row[i] * y for row, y in zip(features, targets, strict=True)) for i in range(width)]
    mean = np.linalg.solve(np.array(a), np.array(right))
    residual = sum(
        (sum(w * x for w, x in zip(mean, row, strict=True)) - y) ** 2 for row, y in zip(features, targets, strict=True)
    )
    norm = sum(w * w for w in mean)
    return (
        num / 2 * math.log(beta)
        + width / 2 * math.log(alpha)
        - num / 2 * math.log(2 * math.pi)
        - beta / 2 * residual
        - alpha / 2 * norm
        - np.linalg.slogdet(np.array(a))[1] / 2
    )


@pytest.mark.parametrize("shape", [(30, 4), (8, 12)], ids=["tall", "wide"])
def test_log_me_is_the_largest_evidence(shape):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(shape[0]) % 3
    features[:, :3] += 2 * torch.nn.functional.one_hot(labels)  # else the best weights of some class are none
    left, values, _ = torch.linalg.svd(features, full_matrices=False)
    total = 0.0
    for label in range(3):
        targets = (labels == label).double()
        evidence, alpha, beta = maximise_evidence(left, values.square(), targets, width=shape[1])
        rows, y = features.tolist(), targets.tolist()
        assert evidence == pytest.approx(evidence_by_loops(rows, y, alpha, beta), rel=1e-8)
        if shape[0] > shape[1]:  # else features can fit the targets exactly, and the iteration is stopped from that
            for a, b in ((1.2, 1), (1 / 1.2, 1), (1, 1.2), (1, 1 / 1.2)):
                assert evidence_by_loops(rows, y, alpha * a, beta * b) < evidence
        total += evidence
    assert log_me(features, labels) == pytest.approx(total / 3 / shape[0], rel=1e-10)


def test_log_me_prefers_features_that_know_the_classes():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(90) % 3
    noise = torch.randn(90, 8, generator=generator)
    informed = noise + 2 * torch.nn.functional.one_hot(labels, 8)
    assert log_me(informed, labels) > log_me(noise, labels) + 0.1


def test_log_me_refuses():
    with pytest.raises(ValueError, match="finite"):
        log_me(torch.full((4, 2), torch.nan), torch.zeros(4))
    with pytest.raises(ValueError, match="labels"):
        log_me(torch.ones(4, 2), torch.zeros(3))


def test_scores_of_made_up_features():
    labels = np.arange(60) % 3
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(60, 6, generator=generator)
    apart = noise + 20 * torch.nn.functional.one_hot(torch.from_numpy(labels), 6)
    scores = probe._scores("apart", apart, labels, folds=5, seed=0)
    assert (scores["linear_probe"], scores["knn"]) == (1, 1)
    assert 1 < scores["effective_rank"] < 6
    chance = probe._scores("noise", noise, labels, folds=5, seed=0)
    assert max(chance["linear_probe"], chance["knn"]) < 0.6
    assert chance["effective_rank"] > scores["effective_rank"], "two directions hold nearly all of the other's variance"
    with pytest.raises(UserError, match="can't be probed"):
        probe._scores("nan", torch.full((60, 6), torch.nan), labels, folds=5, seed=0)


def source(labels):
    return ArraySource(np.zeros((len(labels), 4, 4, 3), dtype=np.uint8), labels, split="train")


def test_the_sample_is_in_proportion():
    labels = [0] * 60 + [1] * 30 + [2] * 10 + [UNLABELLED] * 50
    sample, dropped = probe.sample_by_class(source(labels), "abc", 20, 0)
    assert np.bincount(sample.labels).tolist() == [12, 6, 2]
    assert dropped == []
    again, _ = probe.sample_by_class(source(labels), "abc", 20, 0)
    other, _ = probe.sample_by_class(source(labels), "abc", 20, 1)
    assert sample.indices == again.indices != other.indices
    whole, _ = probe.sample_by_class(source(labels), "abc", 1000, 0)
    assert len(whole) == 100


def test_rare_classes():
    labels = [0] * 20 + [1] * 20 + [2] + [3] * 20
    sample, dropped = probe.sample_by_class(source(labels), ("a", "b", "c", "d"), 1000, 0)
    assert (set(sample.labels), dropped) == ({0, 1, 3}, ["c"])
    with pytest.raises(UserError, match="fewer than two classes"):
        probe.sample_by_class(source([0] * 20 + [1]), ("a", "b"), 1000, 0)
