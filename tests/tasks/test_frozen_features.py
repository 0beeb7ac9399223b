"""Classifiers on frozen features."""

import numpy as np
import pytest

from kdcli.tasks.features.frozen import STRENGTHS, frozen_accuracies, linear_classifier


def blobs(count, seed, *, noise):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centers = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    return centers[labels] + generator.normal(0, noise, (count, 4)), labels.astype(np.int64)


def test_classes_apart_are_told_apart():
    train, test = blobs(30, 0, noise=0.05), blobs(12, 1, noise=0.05)
    assert frozen_accuracies(*train, *test, seed=0) == {"knn_accuracy": 1.0, "linear_probe_accuracy": 1.0}


def test_the_penalty_is_chosen_on_training_samples_alone():
    """The features are noise with a hint: the accuracy is that of the strength which cross-validation finds best."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    generator = np.random.default_rng(3)
    labels = np.arange(60) % 2
    features = generator.normal(0, 1, (60, 40))
    features[:, 0] += labels
    train, test = (features[:40], labels[:40]), (features[40:], labels[40:])
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    scores = [cross_val_score(linear_classifier(c), *train, cv=folds).mean() for c in STRENGTHS]
    best = STRENGTHS[int(np.argmax(scores))]
    assert max(scores) > min(scores)
    expected = linear_classifier(best).fit(*train).score(*test)
    assert frozen_accuracies(*train, *test, seed=0)["linear_probe_accuracy"] == pytest.approx(expected)


def test_few_samples_are_no_obstacle():
    features, labels = np.eye(3), np.array([0, 1, 2])
    assert frozen_accuracies(features, labels, features, labels, seed=0)["linear_probe_accuracy"] == 1.0
