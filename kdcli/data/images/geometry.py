"""Where the pixels of an image go: drawn once, then the same for the image and for its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

Pixels = TypeVar("Pixels", Image.Image, Tensor)

SMALLEST_BOX = 1.0
"""Pixels: a box of which less is left in width or height is dropped."""


@dataclass(frozen=True)
class Crop:
    """Keep this rectangle, which lies within the image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Resize:
    """Stretch the whole to this size."""

    height: int
    width: int


@dataclass(frozen=True)
class Pad:
    """Put a border around it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Flip:
    """Exchange left and right."""


@dataclass(frozen=True)
class Geometry:
    """Moves of one image, one after the other.

    Attributes:
        moves: what is done.
    """

    moves: tuple[Crop | Resize | Pad | Flip, ...]

    def of_image(
        self, image: Pixels, *, resize: Callable[[Pixels, int, int], Pixels], fill: Sequence[float] | float = 0
    ) -> Pixels:
        """Move an image.

        Args:
            image: PIL's, or ``(..., H, W)``.
            resize: takes it, a height and a width.
            fill: the colour of borders.
        """
        for move in self.moves:
            match move:
                case Crop():
                    image = functional.crop(image, move.top, move.left, move.height, move.width)
                case Resize():
                    image = resize(image, move.height, move.width)
                case Pad():
                    image = functional.pad(image, [move.left, move.top, move.right, move.bottom], fill=fill)
                case Flip():
                    image = functional.horizontal_flip(image)
        return image

    def of_target(self, target: Any, *, fill: float) -> Any:
        """Move a target as the image.

        Args:
            target: of torchvision's ``tv_tensors`` a ``Mask`` ``(..., H, W)`` of any type, in which each pixel gets the
                value at its centre; ``BoundingBoxes`` ``(n, 4)``, cut at the borders, of which those that nothing is
                left of are dropped; or an ``Image``. A mapping of these by name; whatever else has n rows beside boxes
                (their labels, masks ``(n, H, W)``) loses the same ones. All else does not move, and is returned as it
                is.
            fill: what borders are in masks.

        Returns:
            Plain tensors; boxes are float32, in the order left, top, right, bottom.
        """
        if isinstance(target, tv_tensors.BoundingBoxes):
            moved = self._of_boxes(target)
            return moved[_is_left(moved)]
        if isinstance(target, Mapping):
            return self._of_mapping(target, fill=fill)
        if isinstance(target, tv_tensors.Mask):
            return self._of_mask(target.as_subclass(Tensor), fill)
        if isinstance(target, tv_tensors.Image):
            return self.of_image(target.as_subclass(Tensor), resize=_resize_smoothly)
        return target

    def _of_mapping(self, target: Mapping[str, Any], *, fill: float) -> dict[str, Any]:
        moved: dict[str, Any] = {}
        kept: Tensor | None = None
        for name, value in target.items():
            if isinstance(value, tv_tensors.BoundingBoxes):
                moved[name] = self._of_boxes(value)
                kept = _is_left(moved[name]) if kept is None else kept & _is_left(moved[name])
            else:
                moved[name] = self.of_target(value, fill=fill)
        if kept is None:
            return moved
        for name, value in target.items():
            is_row_each = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(kept)
            if is_row_each and not (isinstance(value, tv_tensors.Mask | tv_tensors.Image) and value.ndim < 3):
                moved[name] = moved[name][kept]
        return moved

    def _of_mask(self, mask: Tensor, fill: float) -> Tensor:
        for move in self.moves:
            match move:
                case Crop():
                    mask = mask[..., move.top : move.top + move.height, move.left : move.left + move.width]
                case Resize():
                    rows, columns = (
                        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
                        for old, new in zip(mask.shape[-2:], (move.height, move.width), strict=True)
                    )
                    mask = mask[..., rows[:, None], columns]
                case Pad():
                    mask = F.pad(mask, [move.left, move.right, move.top, move.bottom], value=fill)
                case Flip():
                    mask = mask.flip(-1)
        return mask

    def _of_boxes(self, boxes: tv_tensors.BoundingBoxes) -> Tensor:
        """Return boxes (n, 4) as left, top, right, bottom, cut at the borders of the image and of every crop."""
        height, width = boxes.canvas_size
        corners = functional.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
        x, y = (corners.as_subclass(Tensor).float()[:, start::2] for start in (0, 1))
        for move in self.moves:
            match move:
                case Crop():
                    x, y = (x - move.left).clamp(0, move.width), (y - move.top).clamp(0, move.height)
                    height, width = move.height, move.width
                case Resize():
                    x, y = x * (move.width / width), y * (move.height / height)
                    height, width = move.height, move.width
                case Pad():
                    x, y = x + move.left, y + move.top
                    height, width = height + move.top + move.bottom, width + move.left + move.right
                case Flip():
                    x = width - x.flip(1)
        return (
            torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
            .clamp(min=0)
            .minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
        )


def moves_with_image(target: Any) -> bool:
    """Whether a target is one of those that :meth:`Geometry.of_target` moves."""
    if isinstance(target, Mapping):
        return any(map(moves_with_image, target.values()))
    return isinstance(target, tv_tensors.TVTensor)


def _is_left(boxes: Tensor) -> Tensor:
    """Return of which boxes (n, 4) enough is left to be one."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_BOX).all(dim=1)


def _resize_smoothly(image: Tensor, height: int, width: int) -> Tensor:
    return functional.resize(image, [height, width], antialias=True)
