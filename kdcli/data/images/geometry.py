"""Where the pixels of an image go: drawn once, then the same for the image and for its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from kdcli.base.errors import UserError
from kdcli.data.images.pictures import Picture

Pixels = TypeVar("Pixels", Image.Image, Tensor)

_LEFT_RIGHT = Image.Transpose.FLIP_LEFT_RIGHT

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
class Affine:
    """Turn, shear or shift within the same frame.

    Attributes:
        back: a, b, c, d, e, f: what is shown at (x, y) was at (a x + b y + c, d x + e y + f), in pixels, where the
            middle of the first pixel is at a half.
    """

    back: tuple[float, float, float, float, float, float]


Move = Crop | Resize | Pad | Flip | Affine


@dataclass(frozen=True)
class Geometry:
    """Moves of one image, one after the other.

    Attributes:
        moves: what is done.
    """

    moves: tuple[Move, ...]

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
                    image = _crop_image(image, move)
                case Resize():
                    image = resize(image, move.height, move.width)
                case Pad():
                    image = functional.pad(image, [move.left, move.top, move.right, move.bottom], fill=fill)
                case Flip():
                    image = image.flip(-1) if isinstance(image, Tensor) else image.transpose(_LEFT_RIGHT)
                case Affine():
                    image = _turn_image(image, move, fill)
        return image

    def of_target(
        self,
        target: Any,
        *,
        fill: float,
        smallest: float = SMALLEST_BOX,
        of_picture: Callable[[Image.Image], Image.Image] | None = None,
    ) -> Any:
        """Move a target as the image.

        Args:
            target: of torchvision's ``tv_tensors`` a ``Mask`` ``(..., H, W)`` of any type, in which each pixel gets the
                value at its centre; ``BoundingBoxes`` ``(n, 4)``, cut at the borders, of which those that nothing is
                left of are dropped; or an ``Image``. A :class:`~kdcli.data.images.pictures.Picture`, which becomes
                float32 (3, H, W) from -1 to 1. A mapping of these by name, or of further mappings. All else does not
                move, and is returned as it is.

                In a mapping with boxes, tensors, arrays and lists are one row a box (labels, masks ``(n, H, W)``), and
                lose the rows of boxes that are dropped. Only an ``Image`` and a ``Mask`` ``(H, W)`` are the whole
                image's; what else is belongs in another mapping, or the boxes and their rows in one of their own.
            fill: what borders are in masks.
            smallest: pixels; boxes of less width or height are dropped, and those of none always.
            of_picture: moves a picture by the very filters of its image; by default smoothly.

        Returns:
            Plain tensors; boxes are float32, in the order left, top, right, bottom. Masks keep their type if it has
            ``fill``, and are else int64 (float32 where ``fill`` is no whole number), with a border or without.

        Raises:
            UserError: beside boxes, something has another number of rows.
        """
        if isinstance(target, Picture):
            return target.moved(of_picture or (lambda image: self.of_image(image, resize=_resize_smoothly)))
        if isinstance(target, tv_tensors.BoundingBoxes):
            moved = self._of_boxes(target)
            return moved[_is_left(moved, smallest)]
        if isinstance(target, Mapping):
            return self._of_mapping(target, fill=fill, smallest=smallest)
        if isinstance(target, tv_tensors.Mask):
            return self._of_mask(target.as_subclass(Tensor), fill)
        if isinstance(target, tv_tensors.Image):
            return self.of_image(target.as_subclass(Tensor), resize=_resize_smoothly)
        return target

    def along_axes(self, height: int, width: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return where the rows and the columns of an image go, each as a factor and a shift.

        What is at y from the top of the image, in pixels, is at ``factor * y + shift`` afterwards. Without flips and
        turns, as in evaluation.

        Args:
            height: of the image.
            width: of the image.

        Raises:
            ValueError: there are other moves.
        """
        rows, columns = (1.0, 0.0), (1.0, 0.0)
        for move in self.moves:
            match move:
                case Crop():
                    rows, columns = (rows[0], rows[1] - move.top), (columns[0], columns[1] - move.left)
                    height, width = move.height, move.width
                case Resize():
                    down, across = move.height / height, move.width / width
                    rows, columns = (rows[0] * down, rows[1] * down), (columns[0] * across, columns[1] * across)
                    height, width = move.height, move.width
                case Pad():
                    rows, columns = (rows[0], rows[1] + move.top), (columns[0], columns[1] + move.left)
                    height, width = height + move.top + move.bottom, width + move.left + move.right
                case _:
                    raise ValueError(f"{move} keeps no rows and columns")
        return rows, columns

    def _of_mapping(self, target: Mapping[str, Any], *, fill: float, smallest: float) -> dict[str, Any]:
        boxes = {
            name: self._of_boxes(value) for name, value in target.items() if isinstance(value, tv_tensors.BoundingBoxes)
        }
        moved = {
            name: boxes[name] if name in boxes else self.of_target(target[name], fill=fill, smallest=smallest)
            for name in target
        }
        if not boxes:
            return moved
        first, *_ = boxes
        rows = {name: value for name, value in moved.items() if _is_row_each(target[name])}
        for name, value in rows.items():
            if len(value) != len(boxes[first]):
                raise UserError(
                    f"A target has {len(boxes[first])} {first!r}, and {len(value)} rows of {name!r} beside them.",
                    "Put boxes, and what has one row a box, in a mapping of their own.",
                )
        kept = torch.stack([_is_left(found, smallest) for found in boxes.values()]).all(dim=0)
        return moved | {name: _take_rows(value, kept) for name, value in rows.items()}

    def _of_mask(self, mask: Tensor, fill: float) -> Tensor:
        mask = _widen(mask, fill)
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
                case Affine():
                    mask = _turn(mask, move, fill)
        return mask

    def _of_boxes(self, boxes: tv_tensors.BoundingBoxes) -> Tensor:
        """Return boxes (n, 4) as left, top, right, bottom, cut at the borders of the image and of every crop."""
        height, width = boxes.canvas_size
        corners = functional.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
        x, y = (corners.as_subclass(Tensor).float()[:, start::2] for start in (0, 1))
        x, y = x.clamp(0, width), y.clamp(0, height)
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
                case Affine():
                    x, y = _turn_boxes(x, y, move)
                    x, y = x.clamp(0, width), y.clamp(0, height)
        return (
            torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
            .clamp(min=0)
            .minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
        )


def _turn(pixels: Tensor, move: Affine, fill: float) -> Tensor:
    """Return ``(..., H, W)`` as a move shows it: each pixel has the value at its centre, or ``fill`` from outside."""
    height, width = pixels.shape[-2:]
    a, b, c, d, e, f = move.back
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5, indexing="ij"
    )
    columns, rows = (a * x + b * y + c).floor().long(), (d * x + e * y + f).floor().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    shown = pixels[..., rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return torch.where(inside, shown, torch.full_like(shown, fill))


def _crop_image(image: Pixels, move: Crop) -> Pixels:
    bottom, right = move.top + move.height, move.left + move.width
    if isinstance(image, Tensor):
        return image[..., move.top : bottom, move.left : right]
    return image.crop((move.left, move.top, right, bottom))


def _turn_image(image: Pixels, move: Affine, fill: Sequence[float] | float) -> Pixels:
    if isinstance(image, Tensor):
        return _turn(image, move, fill if isinstance(fill, float | int) else fill[0])
    bands = len(image.getbands())
    colour = tuple(map(int, fill)) if not isinstance(fill, float | int) else (int(fill),) * bands
    return image.transform(
        image.size, Image.Transform.AFFINE, move.back, Image.Resampling.BILINEAR, fillcolor=colour[:bands]
    )


def _turn_boxes(x: Tensor, y: Tensor, move: Affine) -> tuple[Tensor, Tensor]:
    """Return the left and right (n, 2), the top and bottom (n, 2), of what boxes become: the box around each."""
    a, b, c, d, e, f = move.back
    forward = torch.tensor([[a, b], [d, e]], dtype=torch.float64).inverse().to(x.dtype)
    corners = torch.stack([x[:, [0, 1, 0, 1]] - c, y[:, [0, 0, 1, 1]] - f])
    moved = torch.einsum("ij,jnk->ink", forward, corners)
    low, high = moved.amin(dim=2), moved.amax(dim=2)
    return torch.stack([low[0], high[0]], dim=1), torch.stack([low[1], high[1]], dim=1)


def withheld(target: Any, *, fill: float) -> Any:
    """Return a target of masks that say nothing, all ``fill``, or of pictures that are not known."""
    if isinstance(target, Picture):
        return target.withheld()
    if isinstance(target, Mapping):
        return {name: withheld(value, fill=fill) for name, value in target.items()}
    if isinstance(target, tv_tensors.Mask):
        return tv_tensors.Mask(torch.full_like(_widen(target.as_subclass(Tensor), fill), fill))
    if isinstance(target, tv_tensors.BoundingBoxes):
        raise ValueError("an image whose boxes are withheld would be one without things")
    return target


def _is_left(boxes: Tensor, smallest: float) -> Tensor:
    """Return of which boxes (n, 4) enough is left to be one."""
    extents = boxes[:, 2:] - boxes[:, :2]
    return ((extents >= smallest) & (extents > 0)).all(dim=1)


def _is_row_each(value: Any) -> bool:
    """Whether a value of a target with boxes has a row for each of them."""
    if isinstance(value, tv_tensors.Image):
        return False
    if isinstance(value, tv_tensors.Mask):
        return value.ndim > 2
    return value.ndim > 0 if isinstance(value, Tensor | np.ndarray) else isinstance(value, list | tuple)


def _take_rows(value: Any, kept: Tensor) -> Any:
    """Return the rows of a tensor, an array, a list or a tuple that are kept; ``kept`` is bool ``(n,)``."""
    if isinstance(value, Tensor):
        return value[kept.to(value.device)]
    if isinstance(value, np.ndarray):
        return value[kept.numpy()]
    rows = compress(value, kept.tolist())
    return tuple(rows) if isinstance(value, tuple) else list(rows)


def _widen(mask: Tensor, fill: float) -> Tensor:
    """Return a mask in a type that ``fill`` is a value of."""
    if mask.dtype.is_floating_point:
        return mask
    if not float(fill).is_integer():
        return mask.float()
    low, high = (0, 1) if mask.dtype == torch.bool else (torch.iinfo(mask.dtype).min, torch.iinfo(mask.dtype).max)
    return mask if low <= fill <= high else mask.long()


def _resize_smoothly(image: Pixels, height: int, width: int) -> Pixels:
    return functional.resize(image, [height, width], antialias=True)
