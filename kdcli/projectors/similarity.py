"""How alike two representations of the same samples are: pure functions, computed in float64 on the CPU."""

from __future__ import annotations

from torch import Tensor

from kdcli.projectors.spectra import as_matrix, share

_CONSTANT_COLUMN = 1e-12
"""A column is constant when centring leaves less than this fraction of its norm: rounding, not variation."""


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment ``‖X̃ᵀ Ỹ‖_F² / (‖X̃ᵀ X̃‖_F ‖Ỹᵀ Ỹ‖_F)`` of the centred features, in ``[0, 1]``.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019 (arXiv 1905.00414), eq. 4 with
    linear kernels. Unchanged by orthogonal maps and isotropic scaling of either side. It is biased upwards when there
    are fewer samples than features, so compare values over the same samples only. Features that are the same for every
    sample have nothing to align: 0.

    Args:
        x: ``(N, a)``, any offset; centred here.
        y: ``(N, b)``, same samples in the same order.

    Raises:
        ValueError: the numbers of samples differ, or a value isn't finite.
    """
    x, y = as_matrix(x, "x"), as_matrix(y, "y")
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must hold the same samples, got {x.shape[0]} and {y.shape[0]}")
    x, y = _centred_unit(x), _centred_unit(y)
    num_samples, a, b = x.shape[0], x.shape[1], y.shape[1]
    if a * a + b * b + a * b <= num_samples * (a + b):
        alignment = (x.T @ y).square().sum()
        own_x, own_y = (x.T @ x).norm(), (y.T @ y).norm()
    else:
        kernel_x, kernel_y = x @ x.T, y @ y.T
        alignment = (kernel_x * kernel_y).sum()
        own_x, own_y = kernel_x.norm(), kernel_y.norm()
    return min(max(share(float(alignment), float(own_x * own_y)), 0.0), 1.0)


def _centred_unit(features: Tensor) -> Tensor:
    """Centre the columns and scale the whole to Frobenius norm 1; constant columns become exactly zero."""
    centred = features - features.mean(0)
    constant = centred.norm(dim=0) <= _CONSTANT_COLUMN * features.norm(dim=0)
    centred = centred.masked_fill(constant, 0.0)
    norm = float(centred.norm())
    return centred / norm if norm > 0 else centred
