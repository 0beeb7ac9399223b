"""LogME: how well frozen features explain labels, before anything is trained on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcli.projectors.spectra import as_matrix

_MAX_ITERATIONS = 200
_CONVERGED = 1e-6
"""Relative change of the precisions' ratio at which the evidence's fixed-point iteration ends."""
_STABLE = 1e-5
"""Added to the denominators of the iteration, as in the authors' code: features may fit the targets exactly."""


def log_me(features: Tensor, labels: Tensor) -> float:
    """LogME of ``features`` ``(N, d)`` for class indices ``labels`` ``(N,)``: the larger, the better they explain them.

    For every class the targets ``y`` are 1 and 0, modelled as ``y ~ N(F w, 1/β)`` with ``w ~ N(0, 1/α)``. With
    ``A = αI + βFᵀF`` and ``m = βA⁻¹Fᵀy`` the log evidence is

    ``L(α, β) = N/2 log β + d/2 log α - N/2 log 2π - β/2 ‖Fm - y‖² - α/2 ‖m‖² - 1/2 log|A|``.

    It is maximised by the fixed-point iteration ``α = γ/‖m‖²``, ``β = (N - γ)/‖Fm - y‖²``, ``γ = Σ βσ/(α + βσ)`` over
    the eigenvalues ``σ`` of ``FᵀF``; the result is the mean of ``L/N`` over the classes.

    You, Liu, Wang, Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021.

    Raises:
        ValueError: ``features`` aren't a finite, non-empty matrix, or there is not one label for each row.
    """
    matrix = as_matrix(features, "features")
    if labels.shape != matrix.shape[:1]:
        raise ValueError(f"labels must have shape ({len(matrix)},), got {tuple(labels.shape)}")
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    evidences = [
        maximise_evidence(left, values.square(), (labels.cpu() == label).double(), width=matrix.shape[1])[0]
        for label in labels.unique()
    ]
    return sum(evidences) / len(evidences) / len(matrix)


def maximise_evidence(left: Tensor, squares: Tensor, targets: Tensor, *, width: int) -> tuple[float, float, float]:
    """Return the largest log evidence of :func:`log_me` for one class, and the ``α`` and ``β`` at which it is reached.

    Args:
        left: left singular vectors of the features ``(N, r)``, float64.
        squares: squared singular values ``(r,)``.
        targets: ``(N,)``.
        width: ``d``.
    """
    num = len(targets)
    projected = (left.T @ targets).square()
    outside = max(float(targets.square().sum() - projected.sum()), 0.0)
    alpha = beta = 1.0

    def moments(alpha: float, beta: float) -> tuple[float, float]:
        ratio = alpha / beta
        norm = float((squares * projected / (squares + ratio).square()).sum())
        return norm, float((projected * (ratio / (squares + ratio)).square()).sum()) + outside

    for _ in range(_MAX_ITERATIONS):
        before = alpha / beta
        norm, residual = moments(alpha, beta)
        gamma = float((squares / (squares + before)).sum())
        alpha, beta = gamma / (norm + _STABLE), (num - gamma) / (residual + _STABLE)
        if abs(alpha / beta - before) <= _CONVERGED * before:
            break
    norm, residual = moments(alpha, beta)
    determinant = float((alpha + beta * squares).log().sum()) + (width - len(squares)) * math.log(alpha)
    evidence = num * math.log(beta) + width * math.log(alpha) - num * math.log(2 * math.pi)
    return (evidence - beta * residual - alpha * norm - determinant) / 2, alpha, beta
