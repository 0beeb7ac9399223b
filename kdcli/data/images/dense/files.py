"""Encoded masks and depth, one an image: in files of their own, or in cells of a table."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.text import short_repr
from kdcli.data.images.decode import FORMATS, File, UnreadableImage
from kdcli.data.images.sources import FileSource, ImageSource
from kdcli.data.listing import is_image, suffix_of

ARRAYS = (".npy", ".npz")
"""Suffixes of numpy's own files."""


class Encoded(Protocol):
    """One encoded target an image."""

    def encoded(self, index: int) -> File | None:
        """Return its file or its bytes; None where there is none."""

    def describe(self, index: int) -> str:
        """Return what it is called."""

    def bytes_of(self, index: int) -> int:
        """Return its size without reading it; -1 of a missing one."""

    def __len__(self) -> int: ...


class Paths:
    """Files of their own.

    Args:
        paths: one an image; None for an image without one.
    """

    def __init__(self, paths: Sequence[str | None]) -> None:
        self.paths = tuple(paths)
        check_paths(path for path in self.paths if path is not None)

    def encoded(self, index: int) -> File | None:
        """Return the path."""
        return self.paths[index]

    def describe(self, index: int) -> str:
        """Return the path."""
        return self.paths[index] or "no file"

    def bytes_of(self, index: int) -> int:
        """Ask the file system."""
        try:
            return os.stat(self.paths[index] or "").st_size  # noqa: PTH116 - a Path per image of a large set is a waste
        except OSError:
            return -1

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Split:
    """One split as a format has it.

    Attributes:
        images: of which labels play no part.
        targets: one an image: encoded masks or depth, or boxes.
    """

    images: ImageSource
    targets: Any


@dataclass(frozen=True)
class Found:
    """What lies on disk.

    Attributes:
        form: in words: how it was recognised.
        splits: ``train``, which is everything where there are no others, ``validation``, ``test``.
        notes: one sentence each.
        class_names: of the values 0, 1, ... of masks, or of the labels of boxes; None where the format has none.
        values: of masks: the value in the files for each class, where that is not its number.
        ignored: values of masks that the format says are no class; None where it says nothing.
        depth_scale: units in a metre that the format says; None where it says nothing.
        byte_scale: likewise of depth files of 8 bits, where those have another one.
        options: keys of ``data`` that the form reads, of those that not every form does.
        groups: of training images, such as their scenes: validation is cut by whole groups; empty for none.
    """

    form: str
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None
    ignored: tuple[int, ...] | None = None
    depth_scale: float | None = None
    byte_scale: float | None = None
    options: tuple[str, ...] = ("splits",)
    groups: tuple[str, ...] = ()


def source_of(paths: Collection[str], root: Path) -> FileSource:
    """Return images in files, named by their places below ``root``, or below what they have in common if one is not.

    So their names are the same wherever the data lie.

    Raises:
        UserError: a path is none.
    """
    check_paths(paths)
    is_below = all(path.startswith(f"{root}{os.sep}") for path in paths)
    common = str(root) if is_below or not paths else os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    return FileSource(paths, root=common)


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths that the system takes for none: lists may have anything.

    Raises:
        UserError: it shows one.
    """
    for path in paths:
        try:
            is_path = b"\0" not in os.fsencode(path)
        except UnicodeEncodeError:
            is_path = False
        if not is_path:
            raise UserError(f"{short_repr(path)} is no path of a file.", "Mend the list that names it.")


def is_raster(path: str) -> bool:
    """Whether a file may hold a mask or depth: an image, or an array of numpy's."""
    return suffix_of(path) in ARRAYS or is_image(path)


def opened(encoded: File) -> Image.Image | NDArray[Any]:
    """Return an image whose header alone is read, or an array of two dimensions.

    Raises:
        Exception: of any kind, as PIL's decoders raise; ValueError for an array of another form.
    """
    is_array = encoded.startswith(b"\x93NUMPY") if isinstance(encoded, bytes) else suffix_of(str(encoded)) in ARRAYS
    if not is_array:
        return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS)
    found = np.load(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        names = list(found.files)
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays, and one is expected")
        found = found[names[0]]
    shape = found.shape
    if found.ndim == 3 and 1 in (shape[0], shape[2]):
        found = found[0] if shape[0] == 1 else found[..., 0]
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise ValueError(f"its array is {found.dtype} of shape {shape}, and (height, width) numbers are expected")
    return found


def size_of(encoded: File) -> tuple[int, int] | None:
    """Return (width, height) by the header; None where that can't be read."""
    try:
        found = opened(encoded)
        if isinstance(found, Image.Image):
            with found:
                return found.size
        return found.shape[1], found.shape[0]
    except Exception:  # as in decode_image, which says why
        return None


def with_reading(reading: object, encoded: File | None) -> bytes | None:
    """Return a file's bytes behind what says how they are read; None of a missing one."""
    try:
        if encoded is not None and not isinstance(encoded, bytes):
            with open(encoded, "rb") as file:  # noqa: PTH123 - as above
                encoded = file.read()
    except OSError:
        return None
    return None if encoded is None else repr(reading).encode() + encoded


def read_raster(encoded: File, name: str, read: Any) -> Any:
    """Return what ``read`` makes of an image or array.

    Raises:
        UnreadableImage: it can't be decoded.
    """
    try:
        found = opened(encoded)
        if isinstance(found, Image.Image):
            with found:
                return read(found)
        return read(found)
    except UserError:
        raise
    except Exception as error:  # as in decode_image, which says why
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error
