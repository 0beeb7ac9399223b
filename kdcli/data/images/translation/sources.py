"""What belongs to an image that is to become another: its own target, or all images of the other kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data.images.decode import Range, decode_image
from kdcli.data.images.dense.files import Encoded, with_reading
from kdcli.data.images.pictures import Partner, Picture
from kdcli.data.images.sources import ImageSource
from kdcli.data.source import Sample


class PictureTargets:
    """Encoded target images; see :class:`kdcli.data.images.sources.Targets`.

    Args:
        files: one an image, in a file of its own or in a cell of a table.
        labels: 0 each; ``UNLABELLED`` of an image without a target.
    """

    fill: float = 0.0
    in_memory = False
    deep_range: Range | None = None

    def __init__(self, files: Encoded, labels: Sequence[int]) -> None:
        self._files = files
        self.labels: Sequence[int] = tuple(labels)

    def load(self, index: int, size: tuple[int, int], name: str) -> Picture:
        """Return one target.

        Raises:
            UnreadableImage: it can't be decoded.
            UserError: it has another size than the image.
        """
        if self.labels[index] == UNLABELLED:
            return Picture(Image.new("RGB", size), is_known=False)
        encoded, called = self._files.encoded(index), self._files.describe(index)
        assert encoded is not None, "labels say so"
        image = decode_image(encoded, name=called, deep_range=self.deep_range)
        if image.size != size:
            raise UserError(
                f"{called} is {image.width}x{image.height}, and {name} is {size[0]}x{size[1]} (width x height).",
                "Two images of a pair have one size: a pixel of one becomes the same pixel of the other.",
            )
        return Picture(image)

    def content(self, index: int) -> bytes | None:
        """Return the encoded target."""
        return with_reading(self.deep_range, self._files.encoded(index))

    def size(self, index: int) -> int:
        """Return the size of the encoded target."""
        return max(self._files.bytes_of(index), 0)


class Partners:
    """All images of the other kind, beside as many samples or more; see :class:`kdcli.data.images.sources.Targets`.

    Args:
        source: of the images.
        number: of samples.
        seed: of the run: which image is beside which sample in an epoch.
    """

    fill: float = 0.0

    def __init__(self, source: ImageSource, number: int, seed: int) -> None:
        self.source, self._seed = source, seed
        self.in_memory = source.in_memory
        self.labels: Sequence[int] = (0,) * number

    def load(self, index: int, size: tuple[int, int], name: str) -> Partner:
        """Return what draws one."""
        own = index if index < len(self.source) else None
        return Partner(len(self.source), self._load, own, self._seed)

    def _load(self, index: int) -> Image.Image:
        image: Image.Image = self.source.load(index).inputs
        return image

    def content(self, index: int) -> bytes | None:
        """Return the pixels of the one of evaluation."""
        if index >= len(self.source):
            return b""
        image = self._load(index)
        return f"{image.size}".encode() + image.tobytes()

    def size(self, index: int) -> int:
        """Return nothing: it is not known before it is decoded."""
        return 0


class ColouredMasks(ImageSource):
    """The masks of a source as pictures, and its images as their targets, or the other way round.

    Args:
        source: of images with masks.
        is_reversed: whether the images are given, and the masks are the targets.
    """

    fill = 0.0

    def __init__(self, source: ImageSource, *, is_reversed: bool) -> None:
        self.source, self._is_reversed = source, is_reversed
        self.labels = source.labels
        self.in_memory = source.in_memory

    @property
    def num_ids(self) -> int:
        """The source's."""
        return self.source.num_ids

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The source's."""
        return self.source.ids

    def load(self, index: int) -> Sample:
        """Load an image and colour its mask."""
        image, mask = self.source.load(index)
        picture = Image.fromarray(voc_colours()[np.asarray(mask)])
        given, target = (image, picture) if self._is_reversed else (picture, image)
        return Sample(given, Picture(target))

    def describe(self, index: int) -> str:
        """Describe as the source does."""
        return self.source.describe(index)


def voc_colours() -> NDArray[np.uint8]:
    """Return the colour of each class, uint8 (256, 3): Pascal VOC's for 0 to 254, and white in the last row.

    A bit of the class's number goes to red, green and blue in turn, the lowest to the highest bit of the colour. The
    last row is what ``UNLABELLED``, which is -1, stands for.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for band in range(3):
            colours[:, band] |= ((numbers >> (3 * bit + band)) & 1) << (7 - bit)
    colours[UNLABELLED] = 255
    return colours.astype(np.uint8)
