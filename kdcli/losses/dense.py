"""Losses on maps, for dense tasks: where models differ in stride, the teacher's map comes to the student's grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdcli.base.facts import UNLABELLED
from kdcli.losses.common import MAX_ELEMENTS, nothing, require_positive, same_shape, unit, without_autocast
from kdcli.losses.normalize import enlarged, full_precision, standardize


def resized(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return ``maps`` ``(B, C, H, W)`` at another grid (rows, columns): bilinear, antialiased where it is smaller.

    Corners are not aligned: both grids are over the same image. In full precision; of the same grid unchanged.
    """
    maps = full_precision(maps)
    if maps.shape[2:] == torch.Size(grid):
        return maps
    return F.interpolate(maps, grid, mode="bilinear", antialias=True, align_corners=False)


def on_students_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps in full precision, the teacher's at the student's grid.

    Args:
        student: ``(B, C_s, H, W)``.
        teacher: ``(B, C_t, H_t, W_t)``.

    Raises:
        ValueError: they are no maps of the same batch.
    """
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ValueError(
            "Student and teacher maps must have the shape (batch, channels, height, width) with the same batch, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    return full_precision(student), resized(teacher, student.shape[2:])


def cwd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Channel-wise distillation, ``T²/C Σ_c KL(softmax(t_c / T) ‖ softmax(s_c / T))``, of each sample.

    Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv 2011.13256, Eq. 4. The
    softmax is over the positions of a channel: where it is active counts, and not how much. The mean is the authors'
    loss, with weight 50 on features and 3 on logits.

    Args:
        student: features, or logits of each position, ``(B, C, H, W)``.
        teacher: as many channels, of any grid; see :func:`resized`.
        temperature: ``T``; positive.

    Returns:
        ``(B,)``.
    """
    require_positive("temperature", temperature)
    student, teacher = same_shape(*on_students_grid(student, teacher))
    ours, theirs = (F.log_softmax(maps.flatten(start_dim=2) / temperature, dim=2) for maps in (student, teacher))
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=2)
    return temperature**2 * divergence.mean(dim=1)


@without_autocast
def skd(student: Tensor, teacher: Tensor, *, pool: float = 2.0) -> Tensor:
    """Pair-wise distillation of structures, ``1/N² Σ_ij (a_ij^s − a_ij^t)²``, of each sample.

    Liu et al., "Structured Knowledge Distillation for Dense Prediction", CVPR 2019, arXiv 1903.04197, Eq. 3. ``a_ij``
    is the cosine between the features of positions ``i`` and ``j`` of an image, after maximum pooling to ``N``
    positions. The gradient goes through the lengths too; the authors' code holds them fixed. The smaller of the
    matrices between positions and between channels is formed, per sample. The value doesn't change when either side
    is rotated, or a position's features are scaled.

    Args:
        student: ``(B, C_s, H, W)``.
        teacher: ``(B, C_t, H_t, W_t)``; it comes to the student's grid before it is pooled, see :func:`resized`.
        pool: the side of the pooling's windows, in positions, 1 for none; or below 1 the share of the map's sides
            (rounded down, at least 1): the authors' code has 0.5, which leaves 2x2 positions.

    Returns:
        ``(B,)``.
    """
    ours, theirs = (unit(_max_pooled(maps, pool).flatten(2).mT) for maps in on_students_grid(student, teacher))
    positions = ours.shape[1]
    if positions <= max(ours.shape[2], theirs.shape[2]):
        return (ours @ ours.mT - theirs @ theirs.mT).square().mean(dim=(1, 2))
    # ‖X Xᵀ − Y Yᵀ‖² = ‖Xᵀ X‖² + ‖Yᵀ Y‖² − 2 ‖Xᵀ Y‖²
    own, others, both = (
        (left.mT @ right).square().sum(dim=(1, 2)) for left, right in ((ours, ours), (theirs, theirs), (ours, theirs))
    )
    return (own + others - 2 * both) / positions**2


def _max_pooled(maps: Tensor, pool: float) -> Tensor:
    require_positive("pool", pool)
    if pool >= 1 and pool != int(pool):
        raise ValueError(f"pool must be a whole number of positions, or a share below 1, got {pool!r}.")
    window = [max(1, int(side * pool)) if pool < 1 else min(int(pool), side) for side in maps.shape[2:]]
    return F.max_pool2d(maps, window, ceil_mode=True)


@without_autocast
def ifvd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Intra-class feature variation, ``(cos(s_p, m^s_p) − cos(t_p, m^t_p))²``, of each labelled position ``p``.

    Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020, Eq. 1 to 3. ``m_p``
    is the mean of the features of the positions that have the class of ``p``, in the same image. The authors' code
    gives positions without a label the value 0 and counts them in the mean; here they are left out. The value doesn't
    change when either side is rotated or scaled.

    Args:
        student: ``(B, C_s, H, W)``.
        teacher: ``(B, C_t, H_t, W_t)``; it comes to the student's grid, see :func:`resized`.
        labels: int64 ``(B, h, w)``, the class of each pixel, :data:`~kdcli.base.facts.UNLABELLED` for none; each
            position has that of the pixel nearest to its middle.

    Returns:
        ``(number of labelled positions,)``; there may be none.
    """
    student, teacher = on_students_grid(student, teacher)
    if labels.ndim != 3 or len(labels) != len(student) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 (batch, height, width), got {labels.dtype} of {tuple(labels.shape)}.")
    at = F.interpolate(labels[:, None].float(), student.shape[2:], mode="nearest-exact").long().flatten()
    rows = torch.nonzero(at != UNLABELLED).squeeze(1)
    if not len(rows):
        return nothing(student).expand(1)[:0]
    images = rows // student.shape[2:].numel()
    # Every class of every image is a group of its own.
    _, group = torch.unique(images * (int(at.max()) + 1) + at[rows], return_inverse=True)
    similarities = [_to_group_means(maps.movedim(1, -1).flatten(end_dim=2)[rows], group) for maps in (student, teacher)]
    return (similarities[0] - similarities[1]).square()


def _to_group_means(features: Tensor, group: Tensor) -> Tensor:
    """Return the cosines ``(N,)`` between ``features`` ``(N, d)`` and the means of their groups, numbers ``(N,)``."""
    count = torch.bincount(group).to(features.dtype)
    sums = features.new_zeros(len(count), features.shape[1]).index_add(0, group, features)
    return (unit(features) * unit(sums / count[:, None])[group]).sum(dim=1)


@without_autocast
def cirkd(student: Tensor, teacher: Tensor, *, temperature: float = 0.1, max_positions: int | None = None) -> Tensor:
    """Cross-image pixel-to-pixel relations, the mean over positions and images of ``KL(p_t(·|i, b) ‖ p_s(·|i, b))``.

    Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022, arXiv
    2204.06986, Eq. 2 to 4. ``p(j|i, b) = softmax_j(cos(x_i, x_j) / τ)`` over the positions ``j`` of image ``b``, for
    every position ``i`` of every image and every image ``b`` of the batch, its own among them. Rows are taken in
    chunks and recomputed in the backward: no tensor has more than ``max(2²², N · B)`` elements, ``N`` being the
    positions of an image; the time grows with ``(N · B)²``. The value doesn't change when either side is rotated, or a
    position's features are scaled.

    Args:
        student: ``(B, C_s, H, W)``.
        teacher: ``(B, C_t, H_t, W_t)``; it comes to the student's grid, see :func:`resized`.
        temperature: ``τ``; positive.
        max_positions: larger maps are average-pooled until an image has no more; None for all of them, as in the paper.

    Returns:
        A scalar.
    """
    require_positive("temperature", temperature)
    student, teacher = on_students_grid(student, teacher)
    if max_positions is not None:
        require_positive("max_positions", max_positions)
        grid = _smaller_grid(student.shape[2], student.shape[3], max_positions)
        student, teacher = (F.adaptive_avg_pool2d(maps, grid) for maps in (student, teacher))
    images = len(student)
    ours, theirs = (unit(maps.movedim(1, -1).flatten(end_dim=2)) for maps in (student, teacher))
    total = nothing(ours)
    for rows in torch.arange(len(ours), device=ours.device).split(max(1, MAX_ELEMENTS // len(ours))):
        total = total + checkpoint(
            _row_divergence, ours, theirs, rows, images, temperature, use_reentrant=False, preserve_rng_state=False
        )
    return total / (len(ours) * images)


def _smaller_grid(rows: int, columns: int, most: int) -> tuple[int, int]:
    """Return a grid of the same proportions, about, with at most so many positions."""
    scale = min(1.0, math.sqrt(most / (rows * columns)))
    fewer = max(1, min(int(rows * scale), most))
    return fewer, max(1, min(int(columns * scale), most // fewer))


def _row_divergence(ours: Tensor, theirs: Tensor, rows: Tensor, images: int, temperature: float) -> Tensor:
    """Return the sum over ``rows`` and images of the divergences between the relations to an image's positions."""
    student, teacher = (
        F.log_softmax((vectors[rows] @ vectors.T / temperature).unflatten(1, (images, -1)), dim=2)
        for vectors in (ours, theirs)
    )
    return (teacher.exp() * (teacher - student)).sum()


def pkd(student: Tensor, teacher: Tensor, *, eps: float = 1e-6) -> Tensor:
    """``1 − r``, the mean over channels of Pearson's correlation between the models' maps, as ``½ mean (ŝ − t̂)²``.

    Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS
    2022, arXiv 2207.02039, Eq. 3. Each channel of either side is standardised over the batch and all positions. The
    authors' code divides by the unbiased deviation plus ``eps``, here it is the biased one, at least ``eps``, as in
    :func:`kdcli.losses.normalize.standardize`. The value doesn't change when a channel is scaled or shifted.

    Args:
        student: ``(B, C, H, W)``.
        teacher: as many channels, of any grid; it comes to the student's, see :func:`resized`.
        eps: positive.

    Returns:
        A scalar.
    """
    require_positive("eps", eps)
    student, teacher = same_shape(*on_students_grid(student, teacher))
    ours, theirs = (standardize(maps.movedim(1, -1), eps=eps) for maps in (student, enlarged(teacher)))
    return F.mse_loss(ours, theirs) / 2
