"""Where single images come from: files, arrays, and views of other sources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.base.facts import UNLABELLED
from kdcli.data.images.decode import File, Range, decode_image


class ImageSource(Protocol):
    """One split: labels at hand, images decoded when asked for. Picklable, for loader processes."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of every image; ``UNLABELLED`` for none."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """Decode one image, mode RGB.

        Raises:
            UnreadableImage: it can't be decoded.
        """

    def describe(self, index: int) -> str:
        """Return the image's file, or ``split[index]`` where it has none."""


@dataclass(frozen=True)
class OfficialSplits:
    """The splits that the data come with.

    Attributes:
        class_names: in label order.
        train: everything there is, where there are no splits.
        validation: None where there is none.
        test: None where there is none.
        notes: one sentence each.
    """

    class_names: tuple[str, ...]
    train: ImageSource
    validation: ImageSource | None = None
    test: ImageSource | None = None
    notes: tuple[str, ...] = ()


class FileSource:
    """Images in files of their own.

    Args:
        paths: one file an image.
        labels: one class index an image; by default all are unlabelled.
        root: the data folder, in which the files' names last; None where there is none.
    """

    deep_range: Range | None = None
    """As :func:`~kdcli.data.images.decode.decode_image` takes it."""

    def __init__(
        self, paths: Iterable[str], labels: Iterable[int] | None = None, *, root: str | os.PathLike[str] | None = None
    ) -> None:
        self.paths = tuple(paths)
        self.root = None if root is None else os.fspath(root)
        self.labels: Sequence[int] = (UNLABELLED,) * len(self.paths) if labels is None else tuple(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        """Decode one file."""
        return decode_image(self.paths[index], deep_range=self.deep_range)

    def encoded(self, index: int) -> File:
        """Return the file's path."""
        return self.paths[index]

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return self.paths[index]


class ArraySource:
    """Decoded images in memory.

    Args:
        images: uint8 ``(N, H, W, 3)``.
        labels: one class index an image.
        split: what :meth:`describe` calls it.
    """

    in_memory = True

    def __init__(self, images: NDArray[np.uint8], labels: Iterable[int], *, split: str) -> None:
        self.labels: Sequence[int] = tuple(int(label) for label in labels)
        self._images = images
        self._split = split

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Return one image."""
        return Image.fromarray(self._images[index])

    def pixels(self, index: int) -> bytes:
        """Return one image's values."""
        return self._images[index].tobytes()

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self._split}[{index}]"


class Subset:
    """Some images of a source, with its labels or with others.

    Args:
        source: where the images are.
        indices: which of them, in which order.
        labels: one for each of ``indices``; by default the source's own.
    """

    def __init__(self, source: ImageSource, indices: Iterable[int], labels: Iterable[int] | None = None) -> None:
        self.source = source
        self.indices = tuple(int(index) for index in indices)
        own = source.labels
        self.labels: Sequence[int] = tuple(own[i] for i in self.indices) if labels is None else tuple(labels)

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Image.Image:
        """Load from the source."""
        return self.source.load(self.indices[index])

    def describe(self, index: int) -> str:
        """Describe as the source does."""
        return self.source.describe(self.indices[index])


class Concatenation:
    """The images of one source, then those of another."""

    def __init__(self, first: ImageSource, second: ImageSource) -> None:
        self.first = first
        self.second = second
        self.labels: Sequence[int] = (*first.labels, *second.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Load from the source that has this index."""
        source, local = self._locate(index)
        return source.load(local)

    def describe(self, index: int) -> str:
        """Describe as the source that has this index does."""
        source, local = self._locate(index)
        return source.describe(local)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        border = len(self.first)
        return (self.first, index) if index < border else (self.second, index - border)


def origins(source: ImageSource) -> list[ImageSource]:
    """Return the sources that ``source`` is a view of, or itself."""
    if isinstance(source, Subset):
        return origins(source.source)
    if isinstance(source, Concatenation):
        return [*origins(source.first), *origins(source.second)]
    return [source]


def is_in_memory(source: ImageSource) -> bool:
    """Whether no file is opened to load an image."""
    if isinstance(source, Subset):
        return is_in_memory(source.source)
    if isinstance(source, Concatenation):
        return is_in_memory(source.first) and is_in_memory(source.second)
    return getattr(source, "in_memory", False)


def file_paths(source: ImageSource) -> list[str]:
    """Return the files of a source's images; images that are not files of their own have none."""
    return [path for path in _paths(source) if path is not None]


def _paths(source: ImageSource) -> Sequence[str | None]:
    if isinstance(source, Subset):
        paths = _paths(source.source)
        return [paths[index] for index in source.indices]
    if isinstance(source, Concatenation):
        return [*_paths(source.first), *_paths(source.second)]
    return source.paths if isinstance(source, FileSource) else [None] * len(source)


def sample_names(source: ImageSource) -> list[str] | None:
    """Return what each image is called in its data folder; None of images that are in none."""
    if isinstance(source, Subset):
        names = sample_names(source.source)
        return None if names is None else [names[index] for index in source.indices]
    if isinstance(source, FileSource) and source.root is not None:
        return [path.removeprefix(source.root + os.sep) for path in source.paths]
    return None


def file_identity(path: str) -> tuple[int, int] | str:
    """Return what two names of one file share, through symbolic and hard links; the path itself of a missing file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path per image of a large set is a waste
    except OSError:
        return path
    return status.st_dev, status.st_ino
