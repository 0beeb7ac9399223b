"""Masks: from the values in their files to classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data.classes import listing
from kdcli.data.images.dense.files import Encoded, read_raster, with_reading

IGNORED = 255
"""What masks mostly have where there is no class."""
_UNKNOWN = UNLABELLED - 1
_SCALED = {"L;2": 85, "L;4": 17}
"""PIL's name for grey values of few bits, and what it multiplies them by."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskReading:
    """How the values of masks become classes.

    Attributes:
        class_of: value -> class, ``UNLABELLED`` for one that is ignored; other values are refused.
        colours: class -> its colour, where masks are pictures of these; values play no part then.
    """

    class_of: Mapping[int, int]
    colours: Mapping[Colour, int] | None = None

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        table = np.full(max(self.class_of, default=0) + 2, _UNKNOWN, dtype=np.int64)
        for value, label in self.class_of.items():
            table[value] = label
        return table

    def classes(self, found: Image.Image | NDArray[Any], name: str) -> NDArray[np.int64]:
        """Return the class of each pixel, int64 (H, W).

        Raises:
            UserError: a value or a colour that is no class.
        """
        if self.colours is not None:
            return self._by_colour(found, name)
        values = values_of(found, name)
        table = self._table
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        labels = table[values.clip(0, len(table) - 1)] if low >= 0 else np.full(values.shape, _UNKNOWN)
        if low < 0 or high >= len(table) or (labels == _UNKNOWN).any():
            known = np.isin(values, list(self.class_of))
            raise no_class(name, np.unique(values[~known]).tolist(), self.class_of)
        return labels

    def _by_colour(self, found: Image.Image | NDArray[Any], name: str) -> NDArray[np.int64]:
        assert self.colours is not None
        if not isinstance(found, Image.Image):
            raise UserError(f"The mask {name} is an array, and data.palette is about colours.", "Leave it out.")
        _refuse_jpeg(found, name)
        pixels = np.asarray(found.convert("RGB")).astype(np.int64)
        codes = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
        known = np.array([(r << 16) + (g << 8) + b for r, g, b in self.colours])
        order = np.argsort(known)
        places = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
        if (wrong := known[order][places] != codes).any():
            unknown = [tuple(pixels[place].tolist()) for place in zip(*np.nonzero(wrong), strict=True)]
            colours = [str(colour) for colour in dict.fromkeys(unknown)]
            raise UserError(
                f"The mask {name} has colours that are not in data.palette: {listing(colours)}.",
                "Every colour needs a line; one whose name is ignore has no label.",
            )
        return np.array(list(self.colours.values()))[order][places]


def no_class(name: str, values: Sequence[int], class_of: Mapping[int, int]) -> UserError:
    """Return what is said of a mask's values that are no classes."""
    one = len(values) == 1
    return UserError(
        f"The mask {name} has the value{'' if one else 's'} {listing([str(value) for value in values])}, which"
        f" {'is' if one else 'are'} no class: these are {_told(class_of)}.",
        "data.ignore_label=[VALUES] takes values as not labelled; data.class_names names all classes.",
    )


def values_of(found: Image.Image | NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return the whole numbers of a mask, int64 (H, W): of a palette the places of its colours.

    Raises:
        UserError: it has colours, numbers that are not whole, or is a JPEG file, which changes values.
    """
    if isinstance(found, np.ndarray):
        whole = found.astype(np.int64)
        if found.dtype.kind == "f" and not np.array_equal(whole, found):
            raise UserError(f"The mask {name} has values that are not whole.", "Masks hold the number of a class.")
        return whole
    _refuse_jpeg(found, name)
    scale = 1
    for tile in getattr(found, "tile", ()):
        arguments = tile[3]
        scale = _SCALED.get(arguments if isinstance(arguments, str) else "", scale)
    if found.mode in ("P", "PA", "1", "L", "LA") or found.mode.startswith("I"):
        image = found.getchannel(0) if found.mode in ("PA", "LA") else found
        return np.asarray(image).astype(np.int64) // scale
    pixels = np.asarray(found.convert("RGB"))
    if (pixels[..., :1] == pixels).all():
        return pixels[..., 0].astype(np.int64)
    raise UserError(
        f"The mask {name} is a picture in colours (mode {found.mode}), and no colours of classes are known.",
        "data.palette=FILE names a text file with a line 'R G B name' for each class.",
    )


def _refuse_jpeg(image: Image.Image, name: str) -> None:
    if image.format == "JPEG":
        raise UserError(
            f"The mask {name} is a JPEG file, whose values are not those that were saved.", "Masks are PNG files."
        )


def _told(class_of: Mapping[int, int]) -> str:
    values = sorted(value for value, label in class_of.items() if label != UNLABELLED)
    ignored = sorted(value for value, label in class_of.items() if label == UNLABELLED)
    return ranges(values) + (f", ignored {ranges(ignored)}" if ignored else "")


def ranges(values: Iterable[int]) -> str:
    """Return whole numbers in order in words: ``0-10, 255``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


class MaskTargets:
    """Masks of images; see :class:`kdcli.data.images.sources.Targets`.

    Args:
        masks: encoded.
        reading: how values become classes.
    """

    fill: float = UNLABELLED
    in_memory = False

    def __init__(self, masks: Encoded, reading: MaskReading) -> None:
        self._masks, self._reading = masks, reading
        self.labels: Sequence[int] = tuple(
            UNLABELLED if masks.encoded(index) is None else 0 for index in range(len(masks))
        )

    def load(self, index: int, size: tuple[int, int], name: str) -> tv_tensors.Mask:
        """Return a class for each pixel, int64 (H, W), ``UNLABELLED`` where it is not labelled."""
        encoded = self._masks.encoded(index)
        if encoded is None:
            return tv_tensors.Mask(torch.full((size[1], size[0]), UNLABELLED))
        called = self._masks.describe(index)
        labels = read_raster(encoded, called, lambda found: self._reading.classes(found, called))
        check_size(labels, size, called, name)
        return tv_tensors.Mask(torch.from_numpy(labels))

    def content(self, index: int) -> bytes | None:
        """Return the encoded mask and how it is read."""
        return with_reading(self._reading, self._masks.encoded(index))

    def size(self, index: int) -> int:
        """Return the size of the encoded mask."""
        return max(self._masks.bytes_of(index), 0)


def check_size(target: NDArray[Any], size: tuple[int, int], called: str, name: str) -> None:
    """Refuse a mask or depth (H, W) of another size than its image has, (width, height).

    Raises:
        UserError: it says both.
    """
    height, width = target.shape
    if (width, height) != size:
        raise UserError(
            f"{called} is {width}x{height}, and its image {name} is {size[0]}x{size[1]} (width x height).",
            "An image and what belongs to it have one size, also after a rotation that EXIF data ask for.",
        )
