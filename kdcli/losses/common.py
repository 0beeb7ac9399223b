"""What the losses share: checks of their arguments, precision, directions and distances of vectors, bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

import torch
from torch import Tensor

from kdcli.losses.normalize import centre, full_precision

MAX_ELEMENTS = 2**22
"""Most elements of a temporary tensor whose size would grow with the cube of the batch: 16 MiB in float32."""

P = ParamSpec("P")

Reduction = Literal["none", "mean"]
"""Of the losses that torch can reduce in one pass: a value for each element, or the mean of all of them."""


def without_autocast(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute ``loss`` in the precision of its tensors, as autocast would run its matrix products in half precision."""

    @functools.wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(tensor.device.type, enabled=False):
            return loss(*args, **kwargs)

    return computed


# ---- Arguments ------------------------------------------------------------------------------------------------------


def same_shape(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in full precision; raise ``ValueError`` where their shapes differ."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    return full_precision(student), full_precision(teacher)


def same_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``(N, num_classes)`` of both in full precision.

    Raises:
        ValueError: if the shapes differ, or there are other dimensions: the softmax of a map over its last dimension
            would be one over positions.
    """
    if student.ndim != 2:
        raise ValueError(
            f"Logits must have the shape (rows, num_classes), got {tuple(student.shape)}: rows_of makes rows of maps."
        )
    return same_shape(student, teacher)


def rows_of(values: Tensor) -> Tensor:
    """Return what is of positions as rows: ``(B, C, H, W)`` as ``(B * H * W, C)``; rows ``(N, C)`` stay as they are.

    The positions of a sample follow one another, row by row, so ``labels.flatten()`` of labels ``(B, H, W)`` fit.
    """
    return values if values.ndim == 2 else values.movedim(1, -1).flatten(end_dim=-2)


def same_batch(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(B, ...)`` features as matrices ``(B, d_s)`` and ``(B, d_t)`` in full precision.

    Raises:
        ValueError: if one has fewer than two dimensions, or the batches differ.
    """
    if min(student.ndim, teacher.ndim) < 2 or len(student) != len(teacher):
        raise ValueError(
            "Student and teacher features must have the shape (batch, ...) with the same batch, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    return full_precision(student).flatten(start_dim=1), full_precision(teacher).flatten(start_dim=1)


def require_labels(labels: Tensor, shape: torch.Size) -> None:
    """Raise ``ValueError`` unless ``labels`` are class indices (int64) of that shape."""
    if labels.shape != shape or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 class indices of shape {tuple(shape)}, got {labels.dtype} of {tuple(labels.shape)}."
        )


def require_positive(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}.")


# ---- Vectors --------------------------------------------------------------------------------------------------------


def unit(vectors: Tensor) -> Tensor:
    """Return ``vectors`` ``(..., d)`` at length one; a vector of zeros stays zero, with zero gradient."""
    # A direction doesn't depend on the scale: at unit scale the squares neither overflow nor underflow.
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    # Compared with zero rather than clamped: NaN stays NaN.
    vanishes = largest == 0
    scaled = vectors / torch.where(vanishes, 1, largest)
    length = torch.where(vanishes, 1, scaled).norm(dim=-1, keepdim=True)
    return torch.where(vanishes, 0, scaled / length)


def pairwise_distances(vectors: Tensor) -> Tensor:
    """Return the Euclidean distances ``(B, B)`` between ``vectors`` ``(B, d)``.

    Vectors that coincide, up to rounding, have no direction between them: the gradient there is zero.
    Memory is ``O(B² + Bd)``, forward and backward. Differentiable once.
    """
    distances: Tensor = _PairwiseDistances.apply(vectors)
    return distances


class _PairwiseDistances(torch.autograd.Function):
    """Distances from differences, as ``|x|² + |y|² − 2xy`` cancels for close vectors; a backward by matrix products.

    The backward of ``torch.cdist`` needs ``B² d`` elements on CUDA. This one is
    ``grad_i = Σ_j w_ij (x_i − x_j)``, ``w_ij = (g_ij + g_ji) / d_ij``.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        centred = centre(vectors)
        distances = torch.cdist(centred, centred, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(centred, distances)
        return distances

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        centred, distances = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            # The direction between vectors that differ by rounding only is noise, which the products would amplify.
            coincide = distances <= 16 * torch.finfo(distances.dtype).eps * centred.abs().amax()
            weights = torch.where(coincide, 0, (grad + grad.T) / distances)
            return weights.sum(dim=1, keepdim=True) * centred - weights @ centred


def off_diagonal(matrix: Tensor) -> Tensor:
    """Return a square ``matrix`` ``(B, B)`` without its diagonal, ``(B, B − 1)``."""
    size = len(matrix)
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: all but Apple's MPS do."""
    return device.type != "mps"


def most_precise(values: Tensor) -> Tensor:
    """Return values in float64, or in float32 on a device that has no float64 (MPS); gradients flow through."""
    return values.double() if has_float64(values.device) else values.float()


def nothing(features: Tensor) -> Tensor:
    """Return 0 with zero gradient for ``features``; NaN where they aren't finite."""
    return (0 * features).sum()
