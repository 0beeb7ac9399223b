"""Where single images come from: files, arrays, and views of other sources."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.base.facts import UNLABELLED, LabelKind, Preprocessing, TextPreprocessing
from kdcli.data.epoch import Blocks
from kdcli.data.images.decode import File, Range, decode_image
from kdcli.data.images.geometry import withheld
from kdcli.data.images.photo import Pixels, open_image
from kdcli.data.source import EvalBatches, Loading, Sample, Source, TrainBatches


class ImageSource(Source):
    """One split: labels at hand, images decoded when asked for. Picklable, for loader processes.

    A target may be a class index; a mask, depth or boxes as torchvision's ``tv_tensors``, which move as the image does;
    any other tensor; or a mapping of these by name.

    Attributes:
        fill: of masks: what they are where a border has been put around the image.
        in_memory: whether no file is opened to load an image.
        channels: of its images: 1, 3 or 4; see :meth:`in_channels`.
    """

    fill: float = UNLABELLED
    in_memory: bool = False
    channels: int = 3

    @property
    def num_ids(self) -> int:
        """Above every id."""
        return int(self.ids.max(initial=-1)) + 1

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """By default the images are numbered as they are here."""
        return np.arange(len(self))

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Decode one image, mode RGB or that of ``channels``.

        Raises:
            UnreadableImage: it can't be decoded.
        """

    def open(self, index: int) -> Sample:
        """Return as :meth:`load`, but of a JPEG file a :class:`~kdcli.data.images.photo.Photo`, not decoded yet.

        Raises:
            UnreadableImage: it can't be decoded; of a JPEG file this may turn out later.
        """
        return self.load(index)

    def in_channels(self, channels: int) -> ImageSource:
        """Return the same images with so many channels each.

        A source that knows of three alone has its images brought to fewer where batches are made.
        """
        if channels == self.channels:
            return self
        other = copy.copy(self)
        other.channels = channels
        return other

    def take(self, indices: Iterable[int], labels: Iterable[int] | None = None) -> ImageSource:
        """Return a view of these images, with their own labels or with other classes."""
        return Subset(self, indices, labels)

    def train_batches(
        self, loading: Loading, preprocessing: Sequence[Preprocessing | TextPreprocessing]
    ) -> TrainBatches:
        """Return augmented images on a canvas as large as the largest that a model wants, with as many channels."""
        from kdcli.data.images.loaders import TrainLoader

        of_images = [wanted for wanted in preprocessing if isinstance(wanted, Preprocessing)]
        sizes = [wanted.image_size for wanted in of_images]
        canvas = (max(height for height, _ in sizes), max(width for _, width in sizes))
        (channels,) = {wanted.num_channels for wanted in of_images}  # as what loads the models has checked
        return TrainLoader(self.in_channels(channels), loading, canvas=canvas)

    def eval_batches(self, loading: Loading, preprocessing: Preprocessing | TextPreprocessing) -> EvalBatches:
        """Return images resized and cut as ``preprocessing`` says, in its channels; what can't be read is left out."""
        from kdcli.data.images.loaders import EvalLoader

        assert isinstance(preprocessing, Preprocessing)
        return EvalLoader(self.in_channels(preprocessing.num_channels), loading, preprocessing=preprocessing)


@dataclass(frozen=True)
class OfficialSplits:
    """The splits that the data come with.

    Attributes:
        class_names: in label order.
        train: everything there is, where there are no splits.
        validation: None where there is none.
        test: None where there is none.
        notes: one sentence each.
        label_kind: ``class``, or ``classes`` of images with any number of labels each, whose ``labels`` are 0.
    """

    class_names: tuple[str, ...]
    train: ImageSource
    validation: ImageSource | None = None
    test: ImageSource | None = None
    notes: tuple[str, ...] = ()
    label_kind: LabelKind = "class"


class FileSource(ImageSource):
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

    def load(self, index: int) -> Sample:
        """Decode one file."""
        image = decode_image(self.paths[index], deep_range=self.deep_range, channels=self.channels)
        return Sample(image, self.labels[index])

    def open(self, index: int) -> Sample:
        """Open one file."""
        image = open_image(self.paths[index], deep_range=self.deep_range, channels=self.channels)
        return Sample(image, self.labels[index])

    def encoded(self, index: int) -> File:
        """Return the file's path."""
        return self.paths[index]

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return self.paths[index]


class ArraySource(ImageSource):
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

    def load(self, index: int) -> Sample:
        """Return one image."""
        return Sample(Image.fromarray(self._images[index]), self.labels[index])

    def pixels(self, index: int) -> bytes:
        """Return one image's values."""
        return self._images[index].tobytes()

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self._split}[{index}]"


class Subset(ImageSource):
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
        self.fill, self.in_memory = source.fill, source.in_memory
        self._is_relabelled = labels is not None

    def in_channels(self, channels: int) -> ImageSource:
        """View the source so."""
        return _over(self, channels, source=self.source)

    @property
    def num_ids(self) -> int:
        """The source's."""
        return self.source.num_ids

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The source's."""
        return self.source.ids[list(self.indices)]

    @property
    def blocks(self) -> Blocks | None:
        """The source's."""
        blocks = self.source.blocks
        return None if blocks is None else blocks._replace(of=blocks.of[list(self.indices)])

    def load(self, index: int) -> Sample:
        """Load from the source."""
        return self._labelled(index, self.source.load(self.indices[index]))

    def open(self, index: int) -> Sample:
        """Open from the source."""
        return self._labelled(index, self.source.open(self.indices[index]))

    def _labelled(self, index: int, sample: Sample) -> Sample:
        if not self._is_relabelled:
            return sample
        if isinstance(sample.target, Integral):
            return Sample(sample.inputs, self.labels[index])
        is_labelled = self.labels[index] != UNLABELLED
        return sample if is_labelled else Sample(sample.inputs, withheld(sample.target, fill=self.fill))

    def describe(self, index: int) -> str:
        """Describe as the source does."""
        return self.source.describe(self.indices[index])


class Concatenation(ImageSource):
    """The images of one source, then those of another."""

    def __init__(self, first: ImageSource, second: ImageSource) -> None:
        self.first = first
        self.second = second
        self.labels: Sequence[int] = (*first.labels, *second.labels)
        self.fill, self.in_memory = first.fill, first.in_memory and second.in_memory

    def in_channels(self, channels: int) -> ImageSource:
        """Put both together so."""
        return _over(self, channels, first=self.first, second=self.second)

    @property
    def num_ids(self) -> int:
        """Both sources'."""
        return self.first.num_ids + self.second.num_ids

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Those of the second source go on after the first one's."""
        return np.concatenate([self.first.ids, self.first.num_ids + self.second.ids])

    def load(self, index: int) -> Sample:
        """Load from the source that has this index."""
        source, local = self._locate(index)
        return source.load(local)

    def open(self, index: int) -> Sample:
        """Open from the source that has this index."""
        source, local = self._locate(index)
        return source.open(local)

    def describe(self, index: int) -> str:
        """Describe as the source that has this index does."""
        source, local = self._locate(index)
        return source.describe(local)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        border = len(self.first)
        return (self.first, index) if index < border else (self.second, index - border)


class Targets(Protocol):
    """What belongs to the images of a source beside a class: masks, depth or boxes. Picklable.

    Attributes:
        labels: 0 each, and ``UNLABELLED`` where there is no target.
        fill: what masks are where a border has been put around the image.
        in_memory: whether no file is opened to load one.
    """

    labels: Sequence[int]
    fill: float
    in_memory: bool

    def load(self, index: int, size: tuple[int, int], name: str) -> Any:
        """Return one target, as :class:`ImageSource` says.

        Args:
            index: of the image.
            size: (width, height) of the image.
            name: what the image is called.

        Raises:
            UnreadableImage: it can't be decoded.
            UserError: it doesn't fit the image, or has other values than the data say.
        """

    def content(self, index: int) -> bytes | None:
        """Return what a target is made of, without decoding it; None of a missing one."""

    def size(self, index: int) -> int:
        """Return about how many bytes that is, without reading it."""


class DenseSource(ImageSource):
    """The images of a source with other targets than classes.

    Args:
        images: with labels that play no part.
        targets: one an image.
    """

    def __init__(self, images: ImageSource, targets: Targets) -> None:
        self.images, self.targets = images, targets
        self.labels: Sequence[int] = targets.labels
        self.fill, self.in_memory = targets.fill, images.in_memory and targets.in_memory
        if len(images) != len(self.labels):
            raise ValueError(f"{len(images)} images have {len(self.labels)} targets")

    def in_channels(self, channels: int) -> ImageSource:
        """Give the targets to such images."""
        return _over(self, channels, images=self.images)

    @property
    def num_ids(self) -> int:
        """The images'."""
        return self.images.num_ids

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The images'."""
        return self.images.ids

    @property
    def blocks(self) -> Blocks | None:
        """The images'."""
        return self.images.blocks

    def load(self, index: int) -> Sample:
        """Load an image and its target."""
        return self._with_target(index, self.images.load(index).inputs)

    def open(self, index: int) -> Sample:
        """Open an image, and load its target."""
        return self._with_target(index, self.images.open(index).inputs)

    def _with_target(self, index: int, image: Pixels) -> Sample:
        return Sample(image, self.targets.load(index, image.size, self.describe(index)))

    def describe(self, index: int) -> str:
        """Describe as the images do."""
        return self.images.describe(index)


def _over(view: ImageSource, channels: int, **sources: ImageSource) -> ImageSource:
    """Return a copy of a view whose attributes ``sources`` have so many channels."""
    if channels == view.channels:
        return view
    other = copy.copy(view)
    other.channels = channels
    for name, source in sources.items():
        setattr(other, name, source.in_channels(channels))
    return other


def origins(source: ImageSource) -> list[ImageSource]:
    """Return the sources that ``source`` is a view of, or itself."""
    if isinstance(source, DenseSource):
        return origins(source.images)
    if isinstance(source, Subset):
        return origins(source.source)
    if isinstance(source, Concatenation):
        return [*origins(source.first), *origins(source.second)]
    return [source]


def file_paths(source: ImageSource) -> list[str]:
    """Return the files of a source's images; images that are not files of their own have none."""
    return [path for path in _paths(source) if path is not None]


def _paths(source: ImageSource) -> Sequence[str | None]:
    if isinstance(source, DenseSource):
        return _paths(source.images)
    if isinstance(source, Subset):
        paths = _paths(source.source)
        return [paths[index] for index in source.indices]
    if isinstance(source, Concatenation):
        return [*_paths(source.first), *_paths(source.second)]
    return source.paths if isinstance(source, FileSource) else [None] * len(source)


def sample_names(source: ImageSource) -> list[str] | None:
    """Return what each image is called in its data folder; None of images that are in none."""
    if isinstance(source, DenseSource):
        return sample_names(source.images)
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
