"""Classifiers on frozen features: what the features of a model tell of classes that it was not trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline

NEIGHBOURS = 5
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the linear probe's L2 penalty that are tried, scikit-learn's C."""
_FOLDS = 3


def knn_classifier(num_train: int) -> KNeighborsClassifier:
    """Return the vote of the nearest neighbours by cosine distance: five, or all of ``num_train``."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(min(NEIGHBOURS, num_train), metric="cosine")


def linear_classifier(strength: float = 1.0) -> Pipeline:
    """Return a logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def ridge_classifier() -> Pipeline:
    """Return a ridge regression of the classes on standardised features; the penalty is chosen by leave-one-out."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 5, 6)))


def frozen_accuracies(
    train: NDArray[np.float64],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float64],
    test_labels: NDArray[np.int64],
    *,
    seed: int,
) -> dict[str, float]:
    """Return the accuracies of both classifiers.

    The linear probe's penalty is the best of ``STRENGTHS`` by stratified cross-validation over the training samples;
    1 where there are no two classes with two samples each.

    Args:
        train: features (N, d).
        train_labels: classes (N,), at least two different ones.
        test: features (M, d).
        test_labels: (M,).
        seed: of the folds.

    Returns:
        ``knn_accuracy`` and ``linear_probe_accuracy``.
    """
    neighbours = knn_classifier(len(train)).fit(train, train_labels)
    linear = linear_classifier(_best_strength(train, train_labels, seed)).fit(train, train_labels)
    return {
        "knn_accuracy": float(neighbours.score(test, test_labels)),
        "linear_probe_accuracy": float(linear.score(test, test_labels)),
    }


def _best_strength(features: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> float:
    classes, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, classes[counts > 1])
    if np.count_nonzero(counts > 1) < 2:
        return 1.0
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = StratifiedKFold(min(_FOLDS, int(counts[counts > 1].min())), shuffle=True, random_state=seed)
    grid = {"logisticregression__C": STRENGTHS}
    search = GridSearchCV(linear_classifier(), grid, cv=folds, refit=False).fit(features[kept], labels[kept])
    return float(search.best_params_["logisticregression__C"])
