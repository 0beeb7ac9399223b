"""Losses on features: distances between them, and what maps, distributions and a memory bank make of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.losses.common import Reduction, require_positive, same_shape, unit, without_autocast
from kdcli.losses.normalize import full_precision

# ---- Distances between features -------------------------------------------------------------------------------------


def mse(student: Tensor, teacher: Tensor, *, reduction: Reduction = "none") -> Tensor:
    """Squared error, ``(s − t)²``, of each element. FitNets (Romero et al., ICLR 2015), up to its factor 1/2.

    Args:
        student: features of any shape.
        teacher: features of the same shape.
        reduction: ``"mean"`` for the mean over all elements.

    Returns:
        The same shape; or a scalar.
    """
    student, teacher = same_shape(student, teacher)
    return F.mse_loss(student, teacher, reduction=reduction)


def smooth_l1(student: Tensor, teacher: Tensor, *, beta: float = 1.0, reduction: Reduction = "none") -> Tensor:
    """Smooth L1 of each element, ``d²/(2β)`` where ``|d| < β`` and ``|d| − β/2`` elsewhere, ``d = s − t``.

    VkD's distance (Miles et al., CVPR 2024, arXiv 2403.06213), with β = 1.

    Args:
        student: features of any shape.
        teacher: features of the same shape.
        beta: where the square turns into the absolute value, in the features' units; positive.
        reduction: ``"mean"`` for the mean over all elements.

    Returns:
        The same shape; or a scalar.
    """
    student, teacher = same_shape(student, teacher)
    require_positive("beta", beta)
    return F.smooth_l1_loss(student, teacher, beta=beta, reduction=reduction)


def log_sum(student: Tensor, teacher: Tensor, *, alpha: float = 4.0, eps: float = 1e-5) -> Tensor:
    """Log-sum distance, ``log(Σ |s − t|^α + eps)``: one sum over all elements of the batch, one logarithm.

    Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024, with α = 4.
    The reduction is that of the authors' code for ImageNet, in which both sides are normalised by a batch norm without
    affine parameters first. ``eps`` is not in it: their DeiT code has it, in the logarithm of another sum, of powers of
    ``1 − correlation``. The logarithm makes the gradient independent of the scale of the differences: a mean in place
    of the sum would only shift the loss. ``eps`` bounds it from below, by ``log(eps)`` at ``s = t``, where the gradient
    is zero. Any finite difference gives a finite loss: the largest one is factored out.

    Args:
        student: features of any shape.
        teacher: features of the same shape.
        alpha: exponent; positive.
        eps: added to the sum; positive.

    Returns:
        A scalar: one logarithm for the batch.
    """
    student, teacher = same_shape(student, teacher)
    require_positive("alpha", alpha)
    require_positive("eps", eps)
    difference = (student - teacher).abs()
    scale = difference.detach().amax().clamp_min(1)
    # pow has an infinite slope at zero for alpha < 1: leave those elements out.
    differs = difference != 0
    powers = (torch.where(differs, difference, 1) / scale).pow(alpha) * differs
    return torch.log(powers.sum() + eps * scale.pow(-alpha)) + alpha * scale.log()


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Hint loss, ``½ ‖s − t‖²``, of each sample, summed over its elements.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, Eq. 3, ``s`` being the regressor's
    output. Its mean is that of :func:`mse` times half the number of elements of a sample; most other code uses
    :func:`mse`.

    Args:
        student: regressed features or maps, ``(B, ...)``.
        teacher: the same shape.

    Returns:
        ``(B,)``.
    """
    student, teacher = same_shape(student, teacher)
    return (student - teacher).square().flatten(start_dim=1).sum(dim=1) / 2


@without_autocast
def vid(student: Tensor, teacher: Tensor, *, raw_variance: Tensor, eps: float = 1e-5) -> Tensor:
    """Variational information distillation, ``½ ((t − μ)²/σ² + log σ²)``, of each element.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835: the negative
    log-likelihood of the teacher's features under a Gaussian of mean ``μ``, predicted from the student's, and one
    variance a channel, ``σ² = softplus(α) + ε``, without the constant. The paper sums over channels and positions; the
    mean is that of RepDistiller (Tian et al., ICLR 2020). The loss can be negative.

    Args:
        student: ``μ``, the regressor's output, ``(B, C, ...)``.
        teacher: ``t``, the same shape.
        raw_variance: ``α``, one value a channel, ``(C,)``; learned.
        eps: ``ε``, below which no variance falls; positive.

    Returns:
        The features' shape.
    """
    student, teacher = same_shape(student, teacher)
    require_positive("eps", eps)
    if student.ndim < 2 or raw_variance.shape != student.shape[1:2]:
        raise ValueError(
            "Features must have the shape (batch, channels, ...) and raw_variance one value a channel, got "
            f"{tuple(student.shape)} and {tuple(raw_variance.shape)}."
        )
    variance = F.softplus(full_precision(raw_variance)) + eps
    variance = variance.view(-1, *[1] * (student.ndim - 2))
    return ((teacher - student).square() / variance + variance.log()) / 2


# ---- Maps -----------------------------------------------------------------------------------------------------------


def common_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool whichever map is larger, height and width apart, so that both have the same grid.

    Args:
        student: ``(B, C_s, H_s, W_s)``.
        teacher: ``(B, C_t, H_t, W_t)``.

    Returns:
        Both in full precision, with the grid ``(min(H_s, H_t), min(W_s, W_t))``.
    """
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ValueError(
            "Student and teacher maps must have the shape (batch, channels, height, width) with the same batch, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    grid = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    student, teacher = full_precision(student), full_precision(teacher)
    return F.adaptive_avg_pool2d(student, grid), F.adaptive_avg_pool2d(teacher, grid)


def attention_transfer(
    student: Tensor, teacher: Tensor, *, power: float = 2.0, reduction: Reduction = "none"
) -> Tensor:
    """Activation-based attention transfer, ``(Q_s/‖Q_s‖ − Q_t/‖Q_t‖)²``, of each position.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, Sec. 3.1. ``Q`` is the
    attention map ``Σ_c |A_c|^p`` of a sample as a vector. The paper (Eq. 2) takes the norm of the difference, with
    weight β/2; its square and the mean over samples and positions, with weight 1000 for each of several stages, are
    those of RepDistiller (Tian et al., ICLR 2020) and mdistiller. Attention maps are pooled to a common grid with
    :func:`common_grid`. The value doesn't change when a sample's map is scaled.

    Args:
        student: ``(B, C_s, H_s, W_s)``.
        teacher: ``(B, C_t, H_t, W_t)``.
        power: ``p``, at least 1.
        reduction: ``"mean"`` for the mean over samples and positions.

    Returns:
        ``(B, H * W)`` of the common grid; or a scalar.
    """
    if not power >= 1:
        raise ValueError(f"power must be at least 1, got {power!r}.")
    student_map, teacher_map = common_grid(_attention(student, power), _attention(teacher, power))
    return F.mse_loss(
        unit(student_map.flatten(start_dim=1)), unit(teacher_map.flatten(start_dim=1)), reduction=reduction
    )


def _attention(maps: Tensor, power: float) -> Tensor:
    """Return ``Σ_c |A_c|^p``, ``(B, 1, H, W)``."""
    return full_precision(maps).abs().pow(power).sum(dim=1, keepdim=True)


@without_autocast
def nst(student: Tensor, teacher: Tensor, *, kernel: Literal["polynomial", "linear"] = "polynomial") -> Tensor:
    """Neuron selectivity transfer, the squared maximum mean discrepancy of the channels' maps, of each sample.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219.
    With ``f`` the channels' maps as vectors of length one,
    ``mean_{i,i'} k(f_i^t, f_i'^t) + mean_{j,j'} k(f_j^s, f_j'^s) − 2 mean_{i,j} k(f_i^t, f_j^s)``: without the paper's
    weight ``λ/2``. The kernels are ``k(x, y) = (xᵀy)²``, polynomial with the paper's ``d = 2`` and ``c = 0``, and
    ``k(x, y) = xᵀy``. The maps are pooled to a common grid with :func:`common_grid`. The value doesn't change when a
    channel is scaled by a positive factor or channels are permuted. For the polynomial kernel the smaller of the
    matrices between channels and between positions is formed, per sample.

    Args:
        student: ``(B, C_s, H_s, W_s)``.
        teacher: ``(B, C_t, H_t, W_t)``.
        kernel: ``k``.

    Returns:
        ``(B,)``.
    """
    if kernel not in ("polynomial", "linear"):
        raise ValueError(f"kernel must be polynomial or linear, got {kernel!r}.")
    student, teacher = (unit(maps.flatten(start_dim=2)) for maps in common_grid(student, teacher))
    if kernel == "linear":
        # Σ k(x, y) is the inner product of the sums of x and of y.
        return (student.mean(dim=1) - teacher.mean(dim=1)).square().sum(dim=1)
    if student.shape[2] <= max(student.shape[1], teacher.shape[1]):
        # Σ (xᵀy)² is the inner product of Σ x xᵀ and Σ y yᵀ.
        student_moment = student.mT @ student / student.shape[1]
        teacher_moment = teacher.mT @ teacher / teacher.shape[1]
        return (student_moment - teacher_moment).square().sum(dim=(1, 2))
    within_student, within_teacher = student @ student.mT, teacher @ teacher.mT
    between = student @ teacher.mT
    own, others, both = (products.square().mean(dim=(1, 2)) for products in (within_student, within_teacher, between))
    return own + others - 2 * both


def review_kd(student: Tensor, teacher: Tensor, *, levels: tuple[int, ...] = (4, 2, 1)) -> Tensor:
    """Hierarchical context loss of each sample: a weighted mean of the squared errors of a pyramid of pooled maps.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044. The maps as they are weigh 1;
    every level, average-pooled to ``l x l``, weighs half of the one before; the weights are divided by their sum.
    Levels that aren't smaller than the map are left out. Levels and weights are the authors' code's, which sums the
    loss over stages.

    Args:
        student: ``(B, C, H, W)``, after the student's fusion.
        teacher: the same shape.
        levels: the grids of the pyramid, from fine to coarse.

    Returns:
        ``(B,)``.
    """
    student, teacher = same_shape(student, teacher)
    if student.ndim != 4:
        raise ValueError(f"Maps must have the shape (batch, channels, height, width), got {tuple(student.shape)}.")
    difference = student - teacher
    loss, weight, total = difference.square().mean(dim=(1, 2, 3)), 1.0, 1.0
    for level in levels:
        if level < min(student.shape[2:]):
            weight /= 2
            # Pooling is linear: the difference of the pooled maps is the pooled difference.
            loss = loss + weight * F.adaptive_avg_pool2d(difference, level).square().mean(dim=(1, 2, 3))
            total += weight
    return loss / total


# ---- With a memory bank ---------------------------------------------------------------------------------------------


@without_autocast
def crd(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    num_samples: int,
    temperature: float = 0.07,
    partition: float = 1.0,
) -> Tensor:
    """Contrastive representation distillation, ``−log h(a, p) − Σ_n log(1 − h(a, n))``, of each anchor.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699. The critic is
    ``h(a, x) = e / (e + N/M)`` with ``e = exp(a · x / τ) / Z``, ``N`` negatives an anchor and ``M`` samples in the
    training set. ``Z = 1`` in the paper; the authors' code sets it once, to ``M`` times the mean of ``exp(a · x / τ)``
    over the first batch's positives and negatives. The method is the sum of two of these: student embeddings with the
    bank's teacher embeddings, and teacher embeddings with the bank's student embeddings. The value doesn't change when
    the space of embeddings is rotated. No embedding is normalised here.

    Args:
        anchors: embeddings of the batch by one side, ``(B, d)``, of length one.
        positives: embeddings of the same samples by the other side, ``(B, d)``, of length one.
        negatives: embeddings of other samples by the other side, from the bank, ``(B, N, d)``, of length one.
        num_samples: ``M``.
        temperature: ``τ``; positive. The authors' code has 0.07.
        partition: ``Z``; positive.

    Returns:
        ``(B,)``.
    """
    if anchors.ndim != 2 or negatives.ndim != 3 or negatives.shape[::2] != anchors.shape or not negatives.shape[1]:
        raise ValueError(
            "Anchors must have the shape (batch, width) and negatives (batch, negatives, width), got "
            f"{tuple(anchors.shape)} and {tuple(negatives.shape)}."
        )
    anchors, positives = same_shape(anchors, positives)
    require_positive("num_samples", num_samples)
    require_positive("temperature", temperature)
    require_positive("partition", partition)
    # h = sigmoid(a · x / τ − log(Z N / M))
    shift = math.log(partition) + math.log(negatives.shape[1] / num_samples)
    positive_logits = (anchors * positives).sum(dim=1) / temperature - shift
    negative_logits = (full_precision(negatives) @ anchors[:, :, None]).squeeze(2) / temperature - shift
    return F.softplus(-positive_logits) + F.softplus(negative_logits).sum(dim=1)
