"""The Stiefel manifold: matrices with orthonormal rows (wide or square) or orthonormal columns (tall)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

# Polynomials are worth their products below this distance of the Gram matrix from the identity, eigh beyond it.
_NEAR = 0.95
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

    With ``G`` scaled so that the eigenvalues of ``E = I − G`` lie in ``[-b, b]``: for ``b < 0.95`` a polynomial in
    ``E`` that is ``(I − E)^(-1/2)`` there, of the least degree that leaves ``‖I − P Pᵀ‖₂`` at 1e-6 (2e-14 in float64),
    in further passes where the highest degree isn't enough; an eigendecomposition in float64 otherwise. After a step of
    an optimiser ``E`` is small, and a product or two do. Directions that are missing (relative singular value below
    1e-6) are completed deterministically to an orthonormal set.
    """
    with _exact_products(matrix.device.type):
        wide = _as_wide(matrix)
        tolerance = 2e-14 if wide.dtype == torch.float64 else 1e-6
        for _ in range(_MOST_PASSES):
            residual = _residual(wide)
            scale, bound = _range(residual)
            if not bound < _NEAR:
                if torch.isfinite(wide).all():
                    wide = _exact_polar_factor(wide)
                break
            root = _root(max(bound, 1e-7), tolerance)
            if scale != 1:
                residual.mul_(scale).diagonal().add_(1 - scale)
            factor = math.sqrt(scale)
            correction = _correction(residual, root.coefficients)
            wide = torch.addmm(wide, correction, wide, beta=factor, alpha=factor)
            if root.error <= tolerance:
                break
    return matrix.copy_(wide if len(wide) == len(matrix) else wide.T)


_MOST_PASSES = 5
_BLOCK = 8
_POWERS = 6
_MARGIN = 0.25
"""By how much of its size an end of the spectrum is taken to be further out than powers of the matrix have come."""
_CENTRED = 0.1
"""Nearer to the manifold the spectrum needs no centring."""


def _range(residual: Tensor) -> tuple[float, float]:
    """Return ``s`` and ``b`` so that ``I − sG`` has its eigenvalues in about ``[-b, b]``, a bit less rather than more.

    ``G = I − E`` is scaled to have 1 in the middle of its spectrum, whose ends are found by powers of ``E``; where
    ``E`` is small anyway, ``s`` is 1.
    """
    frobenius = float(residual.norm())
    if not math.isfinite(frobenius) or frobenius <= 1e-3:
        return 1.0, frobenius
    far = _far_end(residual, 0.0)
    bound = min(frobenius, (1 + _MARGIN) * abs(far))
    if bound <= _CENTRED:
        return 1.0, bound
    near = _far_end(residual, far)
    margin = _MARGIN / 2 * abs(near - far)
    lowest, highest = min(near, far) - margin, max(near, far)
    highest = min(highest + margin, (1 + highest) / 2)  # eigenvalues of a Gram matrix are not below 0
    if not 2 - lowest - highest > 0:  # also NaN
        return 1.0, math.inf
    scale = 2 / (2 - lowest - highest)
    return scale, (highest - lowest) / 2 * scale


def _far_end(residual: Tensor, start: float) -> float:
    """Return the eigenvalue of ``E`` that is furthest from ``start``."""
    block = _start(len(residual), residual.dtype)
    for _ in range(_POWERS):
        block = torch.addmm(block, residual, block, beta=-start)
        block /= block.norm(dim=0).clamp_min(torch.finfo(block.dtype).tiny)
    moved = residual @ block
    values = (block * moved).sum(dim=0) - start
    sizes = (moved - start * block).norm(dim=0)
    best = int(sizes.argmax())
    return start + math.copysign(float(sizes[best]), float(values[best]))


@lru_cache(maxsize=8)
def _start(size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, _BLOCK, generator=torch.Generator().manual_seed(0), dtype=dtype)


class _Root(NamedTuple):
    """A polynomial that is about ``(1 − x)^(-1/2) − 1``, and by how much ``(1 + p(x))² (1 − x)`` differs from 1."""

    coefficients: tuple[float, ...]
    error: float


_DEGREES = (1, 2, 4, 6)
"""They take 0 to 3 products of matrices."""


def _root(bound: float, tolerance: float) -> _Root:
    """Return the polynomial of least degree that is good to ``tolerance`` on ``[-bound, bound]``, else the best."""
    # Steps of 9 %, so that few are made.
    return _root_on(2 ** (math.ceil(8 * math.log2(bound)) / 8), tolerance)


@lru_cache(maxsize=512)
def _root_on(bound: float, tolerance: float) -> _Root:
    points = np.linspace(-bound, bound, 513)
    root = _Root((), math.inf)
    for degree in _DEGREES:
        found = Chebyshev.interpolate(lambda x: np.expm1(-np.log1p(-x) / 2), degree, domain=[-bound, bound])
        error = float(np.abs((1 + found(points)) ** 2 * (1 - points) - 1).max())
        root = _Root(tuple(found.convert(kind=Polynomial).coef.tolist()), error)
        if error <= tolerance:
            break
    return root


def _correction(residual: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return the polynomial of ``E``, a symmetric matrix.

    It is in terms of what is small, ``E`` and the correction: no product rounds at the size of the identity, which
    costs a factor of ten.
    """
    first, *others = coefficients
    if len(others) == 1:
        found = residual * others[0]
    else:
        square = _symmetric_product(residual, residual)
        found = residual * others[0] + square * others[1]
        if len(others) == 4:
            found += _symmetric_product(square, residual * others[2] + square * others[3])
        elif len(others) == 6:
            cube = _symmetric_product(square, residual)
            inner = residual * others[3] + square * others[4] + cube * others[5]
            found += _symmetric_product(cube, inner).add_(cube, alpha=others[2])
    found.diagonal().add_(first)
    return found


_BLOCKS = 4
_LEAST_BLOCKED = 256


def _symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right``, which is known to be symmetric; of large ones on the CPU hardly more than half of it."""
    size = len(left)
    if size < _LEAST_BLOCKED or left.device.type != "cpu":
        return left @ right
    product = left.new_empty(size, size)
    edges = [size * number // _BLOCKS for number in range(_BLOCKS + 1)]
    for start, end in pairwise(edges):
        product[start:end, start:] = left[start:end] @ right[:, start:]
        product[end:, start:end] = product[start:end, end:].T
    return product


def _exact_polar_factor(wide: Tensor) -> Tensor:
    """Return the polar factor of ``(m, n)``, ``m ≤ n``, with missing directions completed, by ``eigh`` in float64."""
    exact = (wide if wide.device.type != "mps" else wide.cpu()).double()  # MPS has no float64
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
    return _polish(directions @ right).to(wide.dtype).to(wide.device)


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
    residual = _symmetric_product(wide, wide.T).neg_()
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
