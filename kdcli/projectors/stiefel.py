"""The Stiefel manifold: matrices with orthonormal rows (wide or square) or orthonormal columns (tall)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor

# Newton-Schulz is worth its iterations below this distance of the Gram matrix from the identity, eigh beyond it.
_NEAR = 0.9
# Singular values relative to the largest, below which a direction counts as missing.
_MISSING = 1e-6


@torch.no_grad()
def retract_(matrix: Tensor) -> Tensor:
    """Replace ``matrix`` by its polar factor, the nearest matrix on the Stiefel manifold, in place, and return it.

    ``P ← (P Pᵀ)^(-1/2) P`` for shape ``(m, n)`` with ``m ≤ n``: orthonormal rows; ``P ← P (Pᵀ P)^(-1/2)`` otherwise:
    orthonormal columns. It computes in float32 (float64 for float64), whatever the autocast state and the precision set
    for float32 products; half precision is computed in float32 and rounded at the end.

    On the CPU, :func:`retract_adaptive_` looks at the matrix and covers everything finite, singular matrices included.
    On other devices, where a look would make the host wait, :func:`retract_fixed_` runs a fixed number of operations
    and covers condition numbers up to :data:`FIXED_CONDITION`.

    A matrix with NaN or infinity is left as it is on the CPU and becomes NaN elsewhere: it is the loss that tells.

    Raises:
        ValueError: if ``matrix`` isn't a floating-point matrix.
    """
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise ValueError(f"Expected a floating-point matrix, got {matrix.dtype} of shape {tuple(matrix.shape)}.")
    return retract_adaptive_(matrix) if matrix.device.type == "cpu" else retract_fixed_(matrix)


@torch.no_grad()
def orthogonality_error(matrix: Tensor) -> Tensor:
    """Return ``max |P Pᵀ − I|``, or ``max |Pᵀ P − I|`` of a tall matrix: a scalar in float32 (float64 for float64)."""
    with _exact_products(matrix.device.type):
        return _residual(_as_wide(matrix)).abs_().amax()


# ---- With a look at the matrix --------------------------------------------------------------------------------------


@torch.no_grad()
def retract_adaptive_(matrix: Tensor) -> Tensor:
    """Retract ``matrix`` in place at the least cost its Gram matrix ``G`` allows. Reads values back: meant for the CPU.

    With ``E = I − G`` and ``b`` a bound of ``‖E‖₂``: Newton-Schulz on ``E`` for ``b < 0.9``, as many iterations as
    ``b`` asks for; an eigendecomposition in float64 otherwise. Directions that are missing (relative singular value
    below 1e-6) are completed deterministically to an orthonormal set.
    """
    with _exact_products(matrix.device.type):
        wide = _as_wide(matrix)
        residual = _residual(wide)
        square = residual @ residual
        # ‖E²‖_F^(1/2) is at most m^(1/4) times ‖E‖₂; ‖E‖_F itself may be m^(1/2) times that.
        bound = float(square.norm().sqrt())
        if bound < _NEAR:
            wide = torch.addmm(wide, _correction(residual, square, _num_iterations(bound)), wide)
        elif torch.isfinite(wide).all():
            wide = _exact_polar_factor(wide)
    return matrix.copy_(wide if len(wide) == len(matrix) else wide.T)


def _num_iterations(bound: float) -> int:
    """Return how many Newton-Schulz iterations bring ``‖E‖₂ ≤ bound < 1`` below 1e-7, at least one."""
    count = 0
    while bound > 1e-7 or count == 0:
        bound *= bound * (3 + bound) / 4
        count += 1
    return count


def _correction(residual: Tensor, square: Tensor, num_iterations: int) -> Tensor:
    """Return about ``(I − E)^(-1/2) − I`` from ``E`` and ``E²`` by Newton-Schulz.

    An iteration multiplies ``P`` by ``I + E/2``, which leaves ``E ← I − (I − E)(I + E/2)² = E² (3I + E)/4``. In terms
    of what is small, ``E`` and the correction, no product rounds at the size of the identity: that costs a factor of
    ten.
    """
    correction = residual / 2
    for index in range(1, num_iterations):
        square = square if index == 1 else residual @ residual
        residual = torch.addmm(square, square, residual, beta=0.75, alpha=0.25)
        correction = torch.addmm(correction, correction, residual, alpha=0.5).add_(residual, alpha=0.5)
    return correction


def _exact_polar_factor(wide: Tensor) -> Tensor:
    """Return the polar factor of ``(m, n)``, ``m ≤ n``, with missing directions completed, by ``eigh`` in float64."""
    exact = wide.double()
    exact = exact / exact.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh(exact @ exact.T)
    kept = values > _MISSING**2 * values[-1]
    directions = vectors[:, kept]
    right = (directions * values[kept].rsqrt()).T @ exact  # (rank, n): right singular vectors
    if not kept.all():
        # The reflections that map unit vectors to the rows of `right` map further unit vectors to a complement.
        padded = torch.cat([right, right.new_zeros(len(wide) - len(right), wide.shape[1])])
        complement = torch.linalg.qr(padded.T).Q[:, len(right) :].T
        directions = torch.cat([directions, vectors[:, ~kept]], dim=1)
        right = torch.cat([right, complement])
    return _polish(directions @ right).to(wide.dtype)


# ---- Without a look at the matrix -----------------------------------------------------------------------------------


def _fixed_scales(smallest: float) -> tuple[float, ...]:
    """Return the scaling of each Newton-Schulz iteration that takes singular values in ``[smallest, 1]`` to 1.

    An iteration maps a singular value ``x`` to ``f(ρx)``, ``f(x) = x (3 − x²)/2``. For values in ``[a, 1]`` the scaling
    ``ρ² = 3/(1 + a + a²)`` makes ``f(ρa) = f(ρ)``, the smallest value after it, as large as possible: small values grow
    by 2.6 instead of 1.5 (Chen and Chow, 2014). It ends in unscaled iterations, which converge quadratically.
    """
    scales = []
    while 1 - smallest > 1e-8:
        scale = sqrt(3 / (1 + smallest + smallest**2)) if smallest < 0.9 else 1.0
        scales.append(scale)
        smallest = scale * smallest * (3 - (scale * smallest) ** 2) / 2
    return tuple(scales)


_FIXED_SMALLEST = 1e-3
_FIXED_SCALES = _fixed_scales(_FIXED_SMALLEST)
FIXED_CONDITION = 100.0
"""Condition number of ``P`` up to which :func:`retract_fixed_` reaches an error of 1e-5 in float32."""


@torch.no_grad()
def retract_fixed_(matrix: Tensor) -> Tensor:
    """Retract ``matrix`` in place by a fixed sequence of operations: nothing is read back, no device is synchronised.

    The Gram matrix is divided by ``‖G²‖_F^(1/2)``, between 1 and ``m^(1/4)`` times its largest eigenvalue, and gets
    1e-6 on its diagonal, more than its rounding errors: so scaled Newton-Schulz meets eigenvalues between 1e-6 and
    about 1, its range, whatever the matrix. For ``cond(P) ≤ 100`` and ``m ≤ 16384`` the smallest eigenvalue is at least
    ``(100 m^(1/8))^-2``, of which 1e-6 is 12 %. That and the rounding errors are an error ``‖E‖₂`` below 0.2, which
    three passes over ``P`` take to 0.03, 7e-4 and 4e-7. The result is on the manifold, and differs from the polar
    factor by about ``1e-5 cond(P)``. Singular matrices aren't covered: what is missing stays missing.
    """
    with _exact_products(matrix.device.type):
        wide = _as_wide(matrix)
        tiny = torch.finfo(wide.dtype).tiny
        wide = wide / wide.abs().amax().clamp_min(tiny)
        gram = wide @ wide.T
        bound = (gram @ gram).norm().sqrt().clamp_min(tiny)
        gram = gram / bound
        gram.diagonal().add_(_FIXED_SMALLEST**2)
        wide = _inverse_square_root(gram) @ wide * bound.rsqrt()
        for _ in range(3):
            wide = _polish(wide)
    return matrix.copy_(wide if len(wide) == len(matrix) else wide.T)


def _inverse_square_root(gram: Tensor) -> Tensor:
    """Return about ``G^(-1/2)`` for eigenvalues in ``[1e-6, 1]``.

    From ``M = I`` on: ``T = ρ(3I − ρ²G)/2``, ``M ← M T``, ``G ← T G T``.
    """
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    root = eye
    for scale in _FIXED_SCALES:
        step = torch.add(eye, gram, alpha=-(scale**2) / 3).mul_(1.5 * scale)
        root = root @ step
        gram = step @ gram @ step
    return root


# ---- Shared ---------------------------------------------------------------------------------------------------------


def _polish(wide: Tensor) -> Tensor:
    """Return one Newton-Schulz iteration on the matrix, ``P + E P/2``: it takes ``‖E‖₂`` to less than its square."""
    return torch.addmm(wide, _residual(wide), wide, alpha=0.5)


def _as_wide(matrix: Tensor) -> Tensor:
    """Return ``matrix`` or its transpose, whichever has no more rows than columns, in float32 (float64 for float64)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return wide if wide.dtype == torch.float64 else wide.float()


def _residual(wide: Tensor) -> Tensor:
    """Return ``E = I − P Pᵀ``."""
    residual = (wide @ wide.T).neg_()
    residual.diagonal().add_(1)
    return residual


@contextmanager
def _exact_products(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32 nor a bf16 shortcut for float32 products, for as long as it lasts."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
