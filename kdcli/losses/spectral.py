"""Losses on the singular values of features: statistics of the batch, and so scalars."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.common import without_autocast
from kdcli.losses.normalize import centre, full_precision


@without_autocast
def spectral_regularization(features: Tensor, *, rank: float) -> Tensor:
    """Share of the features' energy outside their leading directions, ``Σ_{i>r} σ_i² / Σ_i σ_i²``, in [0, 1].

    ``σ_i`` are the singular values of the features centred over the batch, ``Z̃``. The idea is Learning to Project's
    (BMVC 2024, arXiv 2403.14494); the exact form and the choice of ``r`` are ours. The numerator is
    ``‖Z̃ (I − V_r V_rᵀ)‖_F²`` with ``V_r`` held fixed: by the envelope theorem the gradient is that of the sum above
    where ``σ_r > σ_{r+1}``, and it is always finite. ``V_r`` (or ``U_r``, in ``‖(I − U_r U_rᵀ) Z̃‖_F²``) comes from the
    smaller of the two Gram matrices. Constant features, one sample among them, give 0 with zero gradient.

    Args:
        features: ``(B, d)``.
        rank: ``r``, the number of directions that aren't suppressed: an ``int`` of at least 1, or a ``float`` in (0,
            1), the fraction of ``min(B, d)``, rounded, at least 1.
    """
    if features.ndim != 2:
        raise ValueError(f"Features must have the shape (batch, channels), got {tuple(features.shape)}.")
    if not (rank >= 1 if isinstance(rank, int) else 0 < rank < 1):
        raise ValueError(f"rank must be an int of at least 1 or a float in (0, 1), got {rank!r}.")
    smaller = min(features.shape)
    kept = min(rank if isinstance(rank, int) else max(1, round(rank * smaller)), smaller)
    centred = centre(full_precision(features))
    rows = centred if len(centred) == smaller else centred.T  # (min(B, d), max(B, d))
    basis = _leading_eigenvectors(rows.detach() @ rows.detach().T, kept)
    residual = rows - basis @ (basis.T @ rows)
    energy = centred.square().sum()
    # The comparison is false for NaN, which thus reaches the loss.
    vanishes = energy <= 0
    return torch.where(vanishes, 0 * energy, residual.square().sum() / torch.where(vanishes, 1, energy))


def _leading_eigenvectors(gram: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading eigenvectors of ``gram`` ``(k, k)`` as columns; what isn't finite is made so."""
    return torch.linalg.eigh(torch.nan_to_num(gram, nan=0.0, posinf=0.0, neginf=0.0)).eigenvectors[:, -count:]
