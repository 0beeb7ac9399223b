"""Normalisations of features, without parameters and without memory of earlier batches.

All take features of shape ``(..., d)`` with the channels last and return the same shape: every leading dimension counts
as batch. They compute and return float32, or float64 for float64 features: no statistic is reduced in half precision,
under autocast neither. Features that aren't finite give NaN rather than an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.base.names import NormalizeName


def full_precision(features: Tensor) -> Tensor:
    """Return ``features`` in float32, or unchanged where they are float64."""
    return features if features.dtype == torch.float64 else features.float()


def centre(features: Tensor) -> Tensor:
    """Return ``features`` ``(N, d)`` minus their mean over ``N``; a constant channel gives exact zeros.

    The first sample is subtracted before the mean is taken: the result doesn't depend on it, and neither a constant nor
    a large common offset leaves rounding errors behind.
    """
    shifted = features - features[:1].detach()
    return shifted - shifted.mean(dim=0)


def identity(features: Tensor) -> Tensor:
    """Return ``features``."""
    return features


def layer_norm(features: Tensor, *, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the channels, without affine parameters: ``(x − mean(x)) / sqrt(var(x) + eps)`` per sample.

    VkD's choice for the teacher in classification (arXiv 2403.06213).
    """
    return F.layer_norm(full_precision(features), features.shape[-1:], eps=eps)


def standardize(features: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Zero mean and unit (biased) variance per channel over the batch: ``(x − mean) / max(std, eps)``.

    VkD's choice for both sides in dense tasks (arXiv 2403.06213). A constant channel, such as one that a ReLU has shut,
    gives zeros with zero gradient, and so does a batch of one sample.
    """
    centred = centre(full_precision(features).flatten(end_dim=-2))
    variance = centred.square().mean(dim=0)
    scale = variance.clamp_min(eps**2).rsqrt()
    # Its slope would be 1/eps, which drowns the other channels' gradients where they are measured.
    return (centred * torch.where(variance == 0, 0, scale)).view(features.shape)


def whiten(features: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Zero mean and identity (biased) covariance over the batch, ``Z C^(-1/2)``: ZCA, ``C = Zᵀ Z / N``, ``Z`` centred.

    VkD's choice for the teacher in generation (arXiv 2403.06213). Directions with less than ``eps`` of the largest
    variance have no energy and stay at zero: the covariance is then the projector onto the other directions. This is
    always so for ``N ≤ d``, as centred features have at most rank ``N − 1``. The smaller of ``Zᵀ Z`` and ``Z Zᵀ`` is
    decomposed, as ``Z (Zᵀ Z)^(-1/2) = (Z Zᵀ)^(-1/2) Z``. Differentiable once, also where eigenvalues repeat.
    """
    with torch.autocast(features.device.type, enabled=False):
        centred = centre(full_precision(features).flatten(end_dim=-2))
        # Whitening doesn't depend on the scale: at unit scale the squares neither overflow nor underflow.
        centred = centred / centred.detach().abs().amax().clamp_min(torch.finfo(centred.dtype).tiny)
        num_samples, num_channels = centred.shape
        if num_samples > num_channels:
            whitened = centred @ _InverseSquareRoot.apply(centred.T @ centred, eps)
        else:
            whitened = _InverseSquareRoot.apply(centred @ centred.T, eps) @ centred
        return (whitened * num_samples**0.5).view(features.shape)


class _InverseSquareRoot(torch.autograd.Function):
    """``A^(-1/2)`` of a positive semi-definite matrix on the eigenvalues above ``eps`` x the largest; 0 elsewhere.

    The gradient is that of a matrix function (Daleckii and Krein): with ``A = V diag(λ) Vᵀ``,
    ``grad_A = V (K ∘ (Vᵀ grad V)) Vᵀ``, where ``K_ij = (f(λ_i) − f(λ_j)) / (λ_i − λ_j)``. Unlike the gradient through
    ``eigh`` it is finite for equal eigenvalues: two kept ones have ``K = −f_i f_j / (√λ_i + √λ_j)``, two dropped ones
    0.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, eps: float) -> Tensor:
        # eigh raises at NaN and infinity: decompose something else then, and let the product below be NaN.
        values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0))
        kept = values > eps * values[-1].clamp_min(0)
        inverse_root = torch.where(kept, values, 1).rsqrt() * kept
        ctx.save_for_backward(values, vectors, kept, inverse_root)
        return (vectors * inverse_root) @ vectors.T + 0 * matrix

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, vectors, kept, inverse_root = ctx.saved_tensors
        roots = values.clamp_min(0).sqrt()
        both, mixed = kept[:, None] & kept, kept[:, None] ^ kept
        kernel = torch.where(
            both, -inverse_root[:, None] * inverse_root / torch.where(both, roots[:, None] + roots, 1), 0
        )
        gap = torch.where(mixed, values[:, None] - values, 1)
        kernel = torch.where(mixed, (inverse_root[:, None] - inverse_root) / gap, kernel)
        return vectors @ (kernel * (vectors.T @ grad @ vectors)) @ vectors.T, None


_SMALL = 2.0**-6
"""Features whose largest is below this come close to the smallest variances that the normalisations tell from none."""


def enlarged(features: Tensor) -> Tensor:
    """Return a teacher's features ``(..., d)``, without a gradient, large enough to be normalised.

    Those of an untrained network can be so small that a normalisation would take them for constant. They are multiplied
    by a power of two, so that the largest is 1 to 2; all others are as they were, in float32 or float64.
    """
    features = full_precision(features)
    largest = features.abs().amax()
    power = (1 - torch.frexp(largest).exponent).clamp(max=126)
    return features * torch.where((largest > 0) & (largest < _SMALL), torch.ldexp(torch.ones_like(largest), power), 1)


_NORMALIZERS: dict[NormalizeName, Callable[[Tensor], Tensor]] = {
    "none": identity,
    "layer_norm": layer_norm,
    "standardize": standardize,
    "whiten": whiten,
}
OVER_SAMPLES: frozenset[NormalizeName] = frozenset({"standardize", "whiten"})
"""Those that look at the other samples of the batch."""


def normalizer(name: NormalizeName) -> Callable[[Tensor], Tensor]:
    """Return the normalisation called ``name``; ``"none"`` is the identity.

    Raises:
        ValueError: for another name.
    """
    if name not in _NORMALIZERS:
        raise ValueError(f"Unknown normalisation {name!r}; valid are {', '.join(_NORMALIZERS)}.")
    return _NORMALIZERS[name]
