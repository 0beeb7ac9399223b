"""Losses of feature distillation for detectors, on the maps of one level of their necks.

Errors are summed over channels and positions, as the authors do: a weight holds for maps of one size, theirs for images
of about 800 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.losses.common import require_positive, same_shape
from kdcli.losses.normalize import full_precision


def box_weights(boxes: Sequence[Tensor], size: tuple[float, float], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Weights of the positions of objects and of the background, of each image: FGD's masks and scales.

    Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022, arXiv 2111.11837, Eq. 3 to 5. A
    box covers the cells from ``floor(left)`` to ``ceil(right)``, both among them, as in the authors' code, and likewise
    of rows; where it covers ``n`` cells each weighs ``1/n`` (the authors' ``n`` counts what lies outside too), and a
    cell of several boxes has the largest weight, that of the smallest box. The cells of no box share a weight of 1.

    Args:
        boxes: of each image ``(n, 4)``: left, top, right, bottom; there may be none. What lies outside is cut off,
            a box without area covers nothing.
        size: (height, width) of the images in the boxes' units.
        grid: (rows, columns) of the maps.

    Returns:
        Two tensors ``(B, rows, columns)``, float32, on the boxes' device: of objects, of the background.
    """
    rows, columns = grid
    require_positive("size", min(size))
    masks = []
    for own in boxes:
        if own.ndim != 2 or own.shape[1] != 4:
            raise ValueError(f"boxes must have the shape (number, 4), got {tuple(own.shape)}.")
        own = own[(own[:, 2] > own[:, 0]) & (own[:, 3] > own[:, 1])].float()
        left, right = own[:, 0] / size[1] * columns, own[:, 2] / size[1] * columns
        top, bottom = own[:, 1] / size[0] * rows, own[:, 3] / size[0] * rows
        inside = _between(top, bottom, rows)[:, :, None] & _between(left, right, columns)[:, None, :]
        weights = inside / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        none = torch.zeros(1, rows, columns, device=own.device)
        masks.append(torch.cat([none, weights]).amax(dim=0))
    objects = torch.stack(masks)
    background = (objects == 0).float()
    return objects, background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def _between(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Return which of the cells ``(n, count)`` lie between ``floor(first)`` and ``ceil(last)``, both included."""
    cells = torch.arange(count, device=first.device)
    return (cells >= first.floor()[:, None]) & (cells <= last.ceil()[:, None])


def attention(maps: Tensor, *, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """Where and in which channels a map is large: ``HW softmax(mean_c |x| / τ)`` and ``C softmax(mean_p |x| / τ)``.

    FGD (CVPR 2022, arXiv 2111.11837), Eq. 6 to 9, of each sample.

    Args:
        maps: ``(B, C, H, W)``.
        temperature: ``τ``; positive.

    Returns:
        ``(B, H, W)``, over positions; ``(B, C)``, over channels. Both have the mean 1.
    """
    require_positive("temperature", temperature)
    sizes = full_precision(maps).abs()
    spatial = F.softmax(sizes.mean(dim=1).flatten(start_dim=1) / temperature, dim=1)
    channel = F.softmax(sizes.mean(dim=(2, 3)) / temperature, dim=1)
    return spatial.view(len(maps), *maps.shape[2:]) * spatial.shape[1], channel * channel.shape[1]


def fgd_focal(
    student: Tensor, teacher: Tensor, objects: Tensor, background: Tensor, *, temperature: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal distillation, the errors at objects and background and of the attention, of each sample.

    FGD (CVPR 2022, arXiv 2111.11837), Eq. 10 and 11: ``Σ m A^S A^C (t − s)²`` with the teacher's attentions ``A`` and
    ``m`` the weights of objects or of the background; and ``Σ |A^S_t − A^S_s| + Σ |A^C_t − A^C_s|``. The authors weigh
    them by 1e-3, 5e-4 and 1e-3.

    Args:
        student: ``(B, C, H, W)``.
        teacher: the same shape.
        objects: weights ``(B, H, W)``, see :func:`box_weights`.
        background: likewise.
        temperature: of the attentions; positive.

    Returns:
        Three tensors ``(B,)``.
    """
    student, teacher = same_shape(student, teacher)
    if objects.shape != background.shape or objects.shape != (len(student), *student.shape[2:]):
        raise ValueError(
            f"Weights must have the shape {(len(student), *student.shape[2:])}, got {tuple(objects.shape)} and "
            f"{tuple(background.shape)}."
        )
    (spatial, channel), (own_spatial, own_channel) = (
        attention(maps, temperature=temperature) for maps in (teacher, student)
    )
    errors = ((teacher - student).square() * channel[:, :, None, None]).sum(dim=1) * spatial
    differences = (spatial - own_spatial).abs().sum(dim=(1, 2)) + (channel - own_channel).abs().sum(dim=1)
    return (errors * objects).sum(dim=(1, 2)), (errors * background).sum(dim=(1, 2)), differences


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """``Σ (s − t)²`` of each sample, over channels and positions: what FGD makes of the maps with their global context.

    FGD (arXiv 2111.11837), Eq. 12, with weight 5e-6; MGD (Yang et al., ECCV 2022, arXiv 2205.01529), Eq. 4, of
    regenerated maps, with weight 2e-5.

    Args:
        student: ``(B, ...)``.
        teacher: the same shape.

    Returns:
        ``(B,)``.
    """
    student, teacher = same_shape(student, teacher)
    return (student - teacher).square().flatten(start_dim=1).sum(dim=1)
