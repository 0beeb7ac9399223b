"""What the papers' figures are drawn from: t-SNE of features under maps, and a loss over directions of the input.

Pure functions. Everything random comes from a seed of its own and is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MAX_POINTS = 500
"""Samples in a t-SNE picture: with so many it takes seconds."""
MIN_POINTS = 4
"""With fewer there are no neighbourhoods to speak of."""
_PERPLEXITY = 30.0
_SAME = 1e-9
"""Features that are no further apart than this fraction of their norm are the same but for rounding."""


# --- t-SNE of features under maps ------------------------------------------------------------------------------------


def choose_samples(num_samples: int, *, most: int, seed: int) -> Tensor:
    """Return the ascending indices int64 ``(min(num_samples, most),)`` of samples drawn without replacement."""
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def random_linear(num_rows: int, num_columns: int, *, seed: int) -> Tensor:
    """Return a float64 matrix ``(a, b)``, uniform in ``±1/√a`` like an untrained linear layer."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(num_rows, num_columns, generator=generator, dtype=torch.float64) - 1) * num_rows**-0.5


def random_orthogonal(num_rows: int, num_columns: int, *, seed: int) -> Tensor:
    """Return a float64 ``P`` ``(a, b)`` with ``P Pᵀ = I`` for ``a ≤ b`` and ``Pᵀ P = I`` otherwise, uniformly."""
    generator = torch.Generator().manual_seed(seed)
    return nn.init.orthogonal_(torch.empty(num_rows, num_columns, dtype=torch.float64), generator=generator)


def tsne(features: Tensor, *, seed: int) -> NDArray[np.float64]:
    """Lay features ``(N, d)`` out in the plane, ``(N, 2)``, so that neighbours stay neighbours.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008, as scikit-learn computes it, started from the
    two leading principal components. It sees nothing but distances: features whose distances are the same, as under a
    map with ``P Pᵀ = I``, are laid out the same. Features that are all the same lie on one point.

    Args:
        features: at least ``MIN_POINTS`` of them, finite.
        seed: of the optimisation.
    """
    from sklearn.manifold import TSNE

    points = features.detach().cpu().double()
    points = points - points.mean(0)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    largest = float(distances.max())
    if largest <= _SAME * float(features.detach().cpu().double().norm(dim=1).max()):
        return np.zeros((len(points), 2))
    layout = TSNE(
        perplexity=min(_PERPLEXITY, (len(points) - 1) / 3),
        metric="precomputed",
        init=_leading_components(points),
        random_state=seed,
    ).fit_transform((distances / largest).float().numpy())  # rounded, so that what is equal but for rounding is equal
    return np.asarray(layout, dtype=np.float64)


def _leading_components(points: Tensor) -> NDArray[np.float32]:
    """Return the first two principal components ``(N, 2)`` of centred features, small as t-SNE wants them to start."""
    left, values, _ = torch.linalg.svd(points, full_matrices=False)
    scores = left[:, :2] * values[:2]
    # The sign of a component is free: its largest value is made positive.
    scores = scores * scores.gather(0, scores.abs().argmax(0, keepdim=True)).sign()
    scores = nn.functional.pad(scores, (0, 2 - scores.shape[1]))
    started: NDArray[np.float32] = (1e-4 * scores / scores[:, 0].std(correction=0)).float().numpy()
    return started


def neighbour_accuracy(features: Tensor, labels: Tensor, *, num_neighbours: int) -> float | None:
    """Share of samples whose label is the one that most of their nearest other samples have; ties go to the smaller.

    Args:
        features: ``(N, d)``; distances are Euclidean.
        labels: class indices int64 ``(N,)``, negative for none: such samples are left out.
        num_neighbours: how many vote; all others where there are fewer.

    Returns:
        In [0, 1]; None where there are no two classes.
    """
    known = labels >= 0
    points, classes = features[known].detach().cpu().double(), labels[known].cpu()
    if len(classes.unique()) < 2:
        return None
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    nearest = distances.topk(min(num_neighbours, len(points) - 1), largest=False).indices
    votes = nn.functional.one_hot(classes[nearest]).sum(1)
    return float((votes.argmax(1) == classes).double().mean())


# --- a loss over two directions of the input -------------------------------------------------------------------------


def input_directions(images: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return two random directions of every image, orthogonal to each other and each as long as the image.

    Args:
        images: ``(B, C, H, W)``; floating.
        seed: of the directions.

    Returns:
        Two tensors ``(B, C, H, W)`` in the images' type and on their device.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = images.detach().cpu().double().flatten(1).norm(dim=1, keepdim=True)
    first, second = torch.randn(2, *lengths.shape[:1], images[0].numel(), generator=generator, dtype=torch.float64)
    first = first / first.norm(dim=1, keepdim=True)
    second = second - (second * first).sum(1, keepdim=True) * first
    second = second / second.norm(dim=1, keepdim=True)
    u, v = ((lengths * direction).view(images.shape).to(images) for direction in (first, second))
    return u, v


def loss_landscape(
    losses: Callable[[Tensor], Sequence[float]], images: Tensor, positions: Sequence[float], *, seed: int
) -> NDArray[np.float64]:
    """Return ``losses(x + a u + b v)`` over a grid, ``u`` and ``v`` two random directions of the *input* ``x``.

    As in Figure 4 of VkD (CVPR 2024, arXiv 2403.06213), where weights stay and images move.

    Args:
        losses: of images as ``images``, K numbers.
        images: ``x``, ``(B, C, H, W)``, floating.
        positions: n values of ``a``, and the same of ``b``; at 1 a direction is as long as its image.
        seed: of the directions.

    Returns:
        ``(K, n, n)``: the loss, the index of ``a``, the index of ``b``.
    """
    u, v = input_directions(images, seed=seed)
    rows = [[losses(images + a * u + b * v) for b in positions] for a in positions]
    return np.moveaxis(np.asarray(rows, dtype=np.float64), -1, 0)


def relative_range(losses: NDArray[np.float64]) -> float | None:
    """Largest minus smallest loss of a grid ``(n, n)``, over the loss in its middle; None where that is 0.

    Args:
        losses: n odd.
    """
    middle = _middle(losses)
    return float(losses.max() - losses.min()) / middle if middle > 0 else None


def relative_curvature(losses: NDArray[np.float64], positions: Sequence[float]) -> float | None:
    """How sharply a loss bends: mean absolute second derivative along both axes, over the loss in the middle.

    The derivative in ``a`` at a point is ``(L(a + h) - 2 L(a) + L(a - h)) / h²``, ``h`` the grid's step. A plane has 0,
    and so has a loss that is the same everywhere; scaling the loss changes nothing.

    Args:
        losses: ``(n, n)``, n odd and at least 3.
        positions: n values at equal distances.

    Returns:
        None where the loss in the middle is 0.
    """
    middle, step = _middle(losses), positions[1] - positions[0]
    if middle <= 0:
        return None
    bends = [np.abs(np.diff(losses, n=2, axis=axis)).ravel() for axis in (0, 1)]
    return float(np.concatenate(bends).mean()) / step**2 / middle


def _middle(losses: NDArray[np.float64]) -> float:
    return float(losses[len(losses) // 2, len(losses) // 2])
