"""Boxes of images, with a class each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import counted, have
from kdcli.config.data import BoxFormat, DataConfig
from kdcli.data.classes import listing
from kdcli.data.images.dense.classes import given_names
from kdcli.data.images.sources import DenseSource, ImageSource, Subset

_SLACK = 1.5
"""Pixels that a box may go beyond its image, and be cut without a word: formats round differently."""
_SMALLEST = 1.0
"""Pixels: what is thinner is no box, as in :data:`kdcli.data.images.geometry.SMALLEST_BOX`."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one image.

    Attributes:
        corners: float32 (n, 4): left, top, right, bottom in pixels, edges and not the last pixels; where ``is_share``,
            in shares of width and height.
        labels: int64 (n,), from 0 on.
        flags: by name, such as ``crowd`` and ``difficult``: bool (n,).
        size: (width, height) of the image as the annotation has it; None where it says nothing.
        is_share: corners are shares.
    """

    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    flags: Mapping[str, NDArray[np.bool_]]
    size: tuple[int, int] | None = None
    is_share: bool = False

    def __len__(self) -> int:
        return len(self.labels)


def make_boxes(
    rows: Sequence[Sequence[float]],
    labels: Sequence[int],
    flags: Mapping[str, Sequence[bool]] | None = None,
    *,
    size: tuple[int, int] | None = None,
    form: BoxFormat = "xyxy",
    is_share: bool = False,
) -> Boxes:
    """Return boxes out of rows of four numbers.

    Args:
        rows: ``form`` says what they are.
        labels: one a row.
        flags: likewise, by name.
        size: (width, height) of the image.
        form: ``xyxy`` are corners, ``xywh`` left, top and size, ``cxcywh`` centre and size.
        is_share: they are shares of width and height.

    Raises:
        ValueError: a row that is no box, such as one of three numbers or of a negative size.
    """
    if wrong_rows := [row for row in rows if len(row) != 4]:
        raise ValueError(f"a box has {len(wrong_rows[0])} numbers, and 4 are expected")
    corners = np.array([list(row) for row in rows], dtype=np.float64).reshape(len(rows), 4)
    if not np.isfinite(corners).all():
        raise ValueError("a box has a number that is not finite")
    if len(labels) != len(corners):
        raise ValueError(f"there are {len(corners)} boxes and {len(labels)} labels")
    if form != "xyxy":
        first, extent = corners[:, :2], corners[:, 2:]
        first = first - extent / 2 if form == "cxcywh" else first
        corners = np.concatenate([first, first + extent], axis=1)
    if (corners[:, 2:] < corners[:, :2]).any():
        wrong = corners[(corners[:, 2:] < corners[:, :2]).any(axis=1)][0]
        raise ValueError(f"a box ends before it begins: {wrong.round(3).tolist()} (left, top, right, bottom)")
    chosen = {name: np.array(values, dtype=bool) for name, values in (flags or {}).items()}
    return Boxes(corners.astype(np.float32), np.array(labels, dtype=np.int64), chosen, size, is_share)


class BoxTargets:
    """Boxes of images; see :class:`kdcli.data.images.sources.Targets`.

    Args:
        boxes: of each image.
    """

    fill: float = UNLABELLED
    in_memory = True

    def __init__(self, boxes: Sequence[Boxes]) -> None:
        self.boxes = tuple(boxes)
        self.labels: Sequence[int] = (0,) * len(self.boxes)

    def load(self, index: int, size: tuple[int, int], name: str) -> dict[str, Any]:
        """Return ``boxes`` (n, 4) as corners in pixels, cut at the image's borders, ``labels`` (n,) and the flags."""
        own = self.boxes[index]
        if own.size is not None and own.size != size:
            raise UserError(
                f"{name} is {size[0]}x{size[1]}, and its boxes are of an image of {own.size[0]}x{own.size[1]} (width x"
                " height).",
                "Boxes are in pixels of the very image, also after a rotation that EXIF data ask for.",
            )
        corners = own.corners * np.array([*size, *size], np.float32) if own.is_share else own.corners
        corners = corners.clip(0, np.array([*size, *size], np.float32))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(corners), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(size[1], size[0])
        )
        flags = {flag: torch.from_numpy(values) for flag, values in own.flags.items()}
        return {"boxes": boxes, "labels": torch.from_numpy(own.labels), **flags}

    def content(self, index: int) -> bytes | None:
        """Return the boxes' numbers."""
        own = self.boxes[index]
        flags = [(name, values.tolist()) for name, values in own.flags.items()]
        return repr((own.corners.tolist(), own.labels.tolist(), flags)).encode()

    def size(self, index: int) -> int:
        """Return about the size of their numbers."""
        return 32 * len(self.boxes[index])


def settle_labels(
    splits: Mapping[str, Sequence[Boxes]], own_names: Sequence[str], config: DataConfig, where: str
) -> tuple[tuple[str, ...], dict[str, Sequence[Boxes]], str]:
    """Return class names, the boxes with labels in their order, and a note.

    Args:
        splits: with labels in the order of ``own_names``.
        own_names: that the annotations have.
        config: ``data.class_names`` may have another order, and further names.
        where: what the names are from.

    Raises:
        UserError: the annotations have a class that ``data.class_names`` lacks.
    """
    asked, source = (None, "") if config.class_names is None else given_names(config, None)
    if asked is None:
        return tuple(own_names), dict(splits), f"Classes: {len(own_names)}, of {where}: {listing(own_names)}."
    if lacking := [name for name in own_names if name not in asked]:
        raise UserError(
            f"{source} has no {listing(lacking)}, which {where} {'has' if len(lacking) == 1 else 'have'}.",
            "Name every class.",
        )
    places = np.array([asked.index(name) for name in own_names], dtype=np.int64)
    moved: dict[str, Sequence[Boxes]] = {
        split: [replace(boxes, labels=places[boxes.labels] if len(boxes) else boxes.labels) for boxes in own]
        for split, own in splits.items()
    }
    return asked, moved, f"Classes: {len(asked)}, named by {source}."


def box_notes(splits: Mapping[str, Sequence[Boxes]]) -> tuple[dict[str, list[Boxes]], list[str]]:
    """Return the boxes without those that are none, and notes on what is left out or cut."""
    kept: dict[str, list[Boxes]] = {}
    notes, cut, lost, number = [], 0, 0, 0
    for split, own in splits.items():
        number += sum(map(len, own))
        kept[split] = []
        for boxes in own:
            is_box = np.ones(len(boxes), dtype=bool)
            if not boxes.is_share:
                limit = np.array(boxes.size or (np.inf, np.inf), dtype=np.float64)
                inside = boxes.corners.clip(0, np.concatenate([limit, limit]))
                is_box = ((inside[:, 2:] - inside[:, :2]) >= _SMALLEST).all(axis=1)
                cut += int(((np.abs(inside - boxes.corners) > _SLACK).any(axis=1) & is_box).sum())
                lost += int((~is_box).sum())
            kept[split].append(boxes if is_box.all() else _choose(boxes, is_box))
    if lost:
        notes.append(f"Boxes thinner than a pixel, or outside of their image: {lost} of {number}, left out.")
    if cut:
        notes.append(f"Boxes that go beyond their image: {cut} of {number}, cut at its borders.")
    return kept, notes


def count_boxes(splits: Mapping[str, ImageSource | None]) -> str:
    """Return a note on how many boxes there are in the images that each split came to have.

    Args:
        splits: views of sources with :class:`BoxTargets`; None for a split that is not there.
    """
    parts = []
    for split, source in splits.items():
        if source is not None:
            own = _boxes_of(source)
            empty = sum(len(boxes) == 0 for boxes in own)
            some = f" ({counted(empty, 'image', of=len(own))} {have(empty)} none)" if empty else ""
            parts.append(f"{split} {sum(map(len, own))}{some}")
    return f"Boxes: {', '.join(parts)}."


def _boxes_of(source: ImageSource) -> Sequence[Boxes]:
    if isinstance(source, Subset):
        boxes = _boxes_of(source.source)
        return [boxes[index] for index in source.indices]
    assert isinstance(source, DenseSource)
    assert isinstance(source.targets, BoxTargets)
    return source.targets.boxes


def _choose(boxes: Boxes, kept: NDArray[np.bool_]) -> Boxes:
    flags = {name: values[kept] for name, values in boxes.flags.items()}
    return replace(boxes, corners=boxes.corners[kept], labels=boxes.labels[kept], flags=flags)


def parsed(where: str, make: Callable[[], Boxes]) -> Boxes:
    """Return what ``make`` makes of an annotation.

    Raises:
        UserError: it is none; the message says where.
    """
    try:
        return make()
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: {told}.", "Mend or remove it.") from error
