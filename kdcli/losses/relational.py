"""Losses on the relations between the samples of a batch: student and teacher may have different widths and shapes.

Features have the shape ``(B, ...)``, a map being one vector of all its elements. Each is a statistic of the batch, and
so a scalar: a sample's value depends on all others.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdcli.losses.common import (
    MAX_ELEMENTS,
    nothing,
    off_diagonal,
    pairwise_distances,
    require_positive,
    same_batch,
    unit,
    without_autocast,
)


@without_autocast
def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise RKD, the mean over ordered pairs ``i ≠ j`` of ``l_δ(ψ_D(s_i, s_j), ψ_D(t_i, t_j))``.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, Sec. 3.2.1.
    ``ψ_D(x_i, x_j) = ‖x_i − x_j‖ / μ`` with ``μ`` the mean distance over the same pairs, and ``l_δ`` is the Huber loss
    with ``δ = 1``. The paper sums over pairs; the authors' code takes the mean over all ``B²``, the diagonal
    counted, which is ``(B − 1)/B`` of ours, and leaves distances of zero out of ``μ``. The value doesn't change when
    either side is shifted, rotated or scaled. Features that all coincide have distances of 0.

    Args:
        student: ``(B, ...)``.
        teacher: ``(B, ...)``.
    """
    student, teacher = same_batch(student, teacher)
    if len(student) < 2:
        return nothing(student)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(features: Tensor) -> Tensor:
    """Return the distances between different samples over their mean, ``(B, B − 1)``."""
    distances = off_diagonal(pairwise_distances(features))
    mean = distances.mean()
    return distances / torch.where(mean == 0, 1, mean)


@without_autocast
def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Angle-wise RKD, the mean over triples of different samples of ``l_δ(ψ_A(s_i, s_j, s_k), ψ_A(t_i, t_j, t_k))``.

    Park et al., CVPR 2019, arXiv 1904.05068, Sec. 3.2.2. ``ψ_A(x_i, x_j, x_k)`` is the cosine of the angle at ``x_j``
    between ``x_i`` and ``x_k``, and ``l_δ`` is the Huber loss with ``δ = 1``. The paper sums over triples; the authors'
    code takes the mean over all ``B³``. The value doesn't change when either side is shifted, rotated or scaled. The
    angle at a sample that coincides with another has cosine 0. Vertices are taken in chunks and recomputed in the
    backward: no tensor has more than ``max(2²², B · max(B, d))`` elements.

    Args:
        student: ``(B, ...)``.
        teacher: ``(B, ...)``.
    """
    student, teacher = same_batch(student, teacher)
    size = len(student)
    if size < 3:
        return nothing(student)
    num_vertices = max(1, MAX_ELEMENTS // (size * max(size, student.shape[1], teacher.shape[1])))
    total = nothing(student)
    for vertices in torch.arange(size, device=student.device).split(num_vertices):
        total = total + checkpoint(
            _angle_errors, student, teacher, vertices, use_reentrant=False, preserve_rng_state=False
        )
    return total / (size * (size - 1) * (size - 2))


def _angle_errors(student: Tensor, teacher: Tensor, vertices: Tensor) -> Tensor:
    """Return the sum of the errors of the angles at ``vertices``."""
    errors = F.smooth_l1_loss(_angles(student, vertices), _angles(teacher, vertices), reduction="none")
    return (errors * ~torch.eye(len(student), dtype=torch.bool, device=student.device)).sum()


def _angles(features: Tensor, vertices: Tensor) -> Tensor:
    """Return the cosines of the angles at ``vertices`` between all samples, ``(len(vertices), B, B)``."""
    edges = unit(features - features[vertices, None])
    return edges @ edges.mT


@without_autocast
def pkt(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer, ``KL(p_t(·|i) ‖ p_s(·|i))``, mean over samples ``i``.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv
    1803.10837. ``p(j|i) = K_ij / Σ_{k≠i} K_ik`` for ``j ≠ i`` with the cosine kernel
    ``K_ij = (cos(x_i, x_j) + 1) / 2``. The paper sums over samples. The authors' code counts ``j = i`` too and takes
    the mean over all ``B²``, so that its weight is ``B`` times that of a mean over samples. The value doesn't change
    when a sample's features are scaled, or either side is rotated. ``eps`` is added to the kernel.

    Args:
        student: ``(B, ...)``.
        teacher: ``(B, ...)``.
        eps: positive.
    """
    student, teacher = same_batch(student, teacher)
    require_positive("eps", eps)
    if len(student) < 2:
        return nothing(student)
    student_log_probs, teacher_log_probs = _log_affinities(student, eps), _log_affinities(teacher, eps)
    return F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)


def _log_affinities(features: Tensor, eps: float) -> Tensor:
    """Return ``log p(j|i)`` over the other samples, ``(B, B − 1)``."""
    kernel = off_diagonal((_cosines(features).clamp(-1, 1) + 1) / 2) + eps
    return kernel.log() - kernel.sum(dim=1, keepdim=True).log()


def _cosines(features: Tensor) -> Tensor:
    """Return the cosine similarities between samples, ``(B, B)``."""
    directions = unit(features)
    return directions @ directions.T


@without_autocast
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation, ``‖G_t − G_s‖_F² / B²``.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682. ``G`` is ``F Fᵀ``
    with every row divided by its Euclidean length, ``F`` ``(B, d)`` being the features. The value doesn't change when
    either side is rotated or scaled.

    Args:
        student: ``(B, ...)``.
        teacher: ``(B, ...)``.
    """
    student, teacher = same_batch(student, teacher)
    return F.mse_loss(unit(student @ student.T), unit(teacher @ teacher.T))


@without_autocast
def correlation_congruence(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence, ``‖ψ(t) − ψ(s)‖_F² / B²``, with a Gaussian kernel as its Taylor polynomial.

    Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802.
    ``ψ_ij = Σ_{p≤P} exp(−2γ) (2γ)^p / p! (x_i · x_j)^p`` of the features at length one, which tends to
    ``exp(−γ ‖x_i − x_j‖²)``. The value doesn't change when a sample's features are scaled, or either side is rotated.

    Args:
        student: ``(B, ...)``.
        teacher: ``(B, ...)``.
        gamma: ``γ``, the kernel's inverse width; positive. 0.4 in the paper.
        order: ``P``, the polynomial's degree, at least 1. 2 in the paper.
    """
    student, teacher = same_batch(student, teacher)
    require_positive("gamma", gamma)
    require_positive("order", order)
    return F.mse_loss(_taylor_kernel(_cosines(student), gamma, order), _taylor_kernel(_cosines(teacher), gamma, order))


def _taylor_kernel(cosines: Tensor, gamma: float, order: int) -> Tensor:
    kernel = torch.zeros_like(cosines)
    for power in range(order + 1):
        kernel = kernel + math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power) * cosines**power
    return kernel
