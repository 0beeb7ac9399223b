"""How far generated images are from real ones, by the features (n, d) of any extractor.

All is computed in float64, in memory, on the device of the features; nothing is drawn at random. What is not finite
gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NEIGHBOURS = 3
"""``k`` of :func:`precision_recall`, as in the paper."""
_ROWS = 1024
"""Rows of a kernel or of distances that are held at a time."""


def fid(real: Tensor, generated: Tensor) -> float:
    """Return the Fréchet distance between two sets of features (GANs Trained by a Two Time-Scale Update Rule, 2017).

    It is ``‖μ_r - μ_g‖² + Tr(C_r + C_g - 2 (C_r C_g)^½)`` with the unbiased covariances, never below 0. With the
    centred features ``A``, ``B`` over the root of their number less 1, ``C = AᵀA``, and ``Tr (C_r C_g)^½`` is the sum
    of the singular values of ``A Bᵀ``: no root of a matrix is taken. So it is as exact where there are fewer samples
    than features, and the covariances are singular, as elsewhere; but it is biased upwards, the more the fewer samples
    there are: compare it at equal numbers alone.

    Args:
        real: (n, d), at least two rows.
        generated: (m, d), likewise.

    Raises:
        ValueError: the shapes don't fit.
    """
    pair = _doubled(real, generated)
    if not _are_finite(*pair):
        return torch.nan
    means = [side.mean(dim=0) for side in pair]
    left, right = (_root(side - mean) for side, mean in zip(pair, means, strict=True))
    common = torch.linalg.svdvals(left @ right.T).sum()
    spread = left.square().sum() + right.square().sum() - 2 * common
    return max(0.0, float((means[0] - means[1]).square().sum() + spread))


def _root(centred: Tensor) -> Tensor:
    """Return ``R`` (at most d rows) with ``RᵀR`` the covariance of centred features (n, d)."""
    scaled = centred / (len(centred) - 1) ** 0.5
    return torch.linalg.qr(scaled, mode="r").R if len(scaled) > scaled.shape[1] else scaled


def kid(real: Tensor, generated: Tensor, *, subset: int | None = None, subsets: int = 100, seed: int = 0) -> float:
    """Return the squared maximum mean discrepancy under ``(x·y / d + 1)³`` (Demystifying MMD GANs, 2018, eq. 4).

    The estimate is unbiased at every number of samples, and so may be below 0.

    Args:
        real: (n, d), at least two rows.
        generated: (m, d), likewise.
        subset: take the mean over ``subsets`` draws of so many of each side, as is usual for many samples; by default
            the one over all of them.
        subsets: how many draws.
        seed: of the draws.

    Raises:
        ValueError: the shapes don't fit, or there are fewer samples than in a subset.
    """
    real, generated = _doubled(real, generated)
    if not _are_finite(real, generated):
        return torch.nan
    if subset is None:
        return float(_discrepancy(real, generated))
    if not 2 <= subset <= min(len(real), len(generated)) or subsets < 1:
        raise ValueError(
            f"{subsets} subsets of {subset} can't be drawn out of {len(real)} real and {len(generated)} generated."
        )
    generator = torch.Generator().manual_seed(seed)

    def draw(side: Tensor) -> Tensor:
        return side[torch.randperm(len(side), generator=generator)[:subset].to(side.device)]

    return float(torch.stack([_discrepancy(draw(real), draw(generated)) for _ in range(subsets)]).mean())


def _discrepancy(real: Tensor, generated: Tensor) -> Tensor:
    n, m = len(real), len(generated)
    own = _kernel_sum(real, real, diagonal=False) / (n * (n - 1))
    theirs = _kernel_sum(generated, generated, diagonal=False) / (m * (m - 1))
    return own + theirs - 2 * _kernel_sum(real, generated, diagonal=True) / (n * m)


def _kernel_sum(left: Tensor, right: Tensor, *, diagonal: bool) -> Tensor:
    width = left.shape[1]
    total = torch.stack([(rows @ right.T / width + 1).pow(3).sum() for rows in left.split(_ROWS)]).sum()
    return total if diagonal else total - (left.square().sum(dim=1) / width + 1).pow(3).sum()


def precision_recall(real: Tensor, generated: Tensor, *, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al., NeurIPS 2019, arXiv 1904.06991), each in [0, 1].

    The manifold of a set is made of a ball around each of its features that reaches to the ``neighbours``-th nearest of
    the others. Precision is the share of generated features in that of the real ones, recall the share of real features
    in that of the generated ones. Both depend on the numbers of samples.

    Args:
        real: (n, d), more than ``neighbours`` rows.
        generated: (m, d), likewise.
        neighbours: ``k``, at least 1.

    Raises:
        ValueError: the shapes don't fit, or there are too few samples.
    """
    real, generated = _doubled(real, generated)
    if not 1 <= neighbours < min(len(real), len(generated)):
        raise ValueError(
            f"{len(real)} real and {len(generated)} generated samples have no {neighbours} neighbours each."
        )
    if not _are_finite(real, generated):
        return torch.nan, torch.nan
    centre = real.mean(dim=0)  # distances are of differences: the smaller the numbers, the less they lose
    real, generated = real - centre, generated - centre
    return _covered(generated, real, neighbours), _covered(real, generated, neighbours)


def _covered(features: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Return the share of ``features`` that lie in a ball of ``manifold``."""
    # Of each its own distance, 0, is the smallest.
    radii = torch.cat([rows.kthvalue(neighbours + 1, dim=1).values for rows in _distances(manifold, manifold)])
    inside = torch.cat([(rows <= radii).any(dim=1) for rows in _distances(features, manifold)])
    return float(inside.double().mean())


def _distances(left: Tensor, right: Tensor) -> Iterator[Tensor]:
    for rows in left.split(_ROWS):
        yield torch.cdist(rows, right)


def _doubled(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"Features must have the shapes (n, d) and (m, d), got {tuple(real.shape)} and {tuple(generated.shape)}."
        )
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"At least two samples of each are needed, got {len(real)} and {len(generated)}.")
    return real.detach().double(), generated.detach().double()


def _are_finite(*sides: Tensor) -> bool:
    return all(bool(side.isfinite().all()) for side in sides)
