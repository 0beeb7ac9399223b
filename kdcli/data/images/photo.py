"""JPEG files that are decoded at a half, a quarter or an eighth of their size, where no more is needed."""

from __future__ import annotations

import io
from os import fspath

from PIL import ExifTags, Image, JpegImagePlugin

from kdcli.data.images.decode import FORMATS, Encoded, File, Range, UnreadableImage, decode_image
from kdcli.data.images.geometry import Crop, Geometry, Resize

_FACTORS = (8, 4, 2)
"""By which libjpeg divides the size, out of the very coefficients that it would make the whole of."""
_MARGIN = 2
"""What is decoded is at least so many times as large as what it is resized to, for an antialiased filter to do."""
_JPEG = b"\xff\xd8\xff"
_SWAPPED, _MIRRORED_X, _MIRRORED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations of EXIF by what makes the image upright: sides exchanged, then mirrored left to right, top to bottom."""


class Photo:
    """A JPEG file of which nothing but the header is read yet; it is decoded once.

    Args:
        content: of the file.
        name: what the error calls it.
        channels: 1 or 3.

    Attributes:
        width: of the upright image, as a whole.
        height: likewise.
        channels: as it is to be decoded.

    Raises:
        UnreadableImage: the header can't be read.
    """

    def __init__(self, content: bytes, name: str, channels: int = 3) -> None:
        self._name, self.channels = name, channels
        try:
            self._image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Exception as error:  # as in decode_image
            raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error
        try:
            self._orientation = self._image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # a damaged EXIF block says nothing about the pixels
            self._orientation = 1
        width, height = self._image.size
        self.width, self.height = (height, width) if self._orientation in _SWAPPED else (width, height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as an image of PIL has them."""
        return self.width, self.height

    def decode(self, factor: int = 1) -> Image.Image:
        """Return what :func:`~kdcli.data.images.decode.decode_image` would, with sides divided and rounded up.

        Args:
            factor: 1, 2, 4 or 8.

        Raises:
            UnreadableImage: it is damaged.
        """
        if factor > 1:
            assert isinstance(self._image, JpegImagePlugin.JpegImageFile)
            width, height = self._image.size
            self._image.draft(None, (max(width // factor, 1), max(height // factor, 1)))
        return decode_image(self._image, name=self._name, channels=self.channels)

    def begin(self, geometry: Geometry, resampling: Image.Resampling) -> tuple[Image.Image, Geometry]:
        """Decode no more than ``geometry`` needs: where its crops and its resize are done on the way, they are.

        Args:
            geometry: of the whole image.
            resampling: what it is resized by.

        Returns:
            An image, and the moves that are left to be made. Where nothing can be saved these are all, and the image is
            the whole.

        Raises:
            UnreadableImage: it is damaged.
        """
        left, top, width, height = 0, 0, self.width, self.height
        moves = list(geometry.moves)
        while moves and isinstance(crop := moves[0], Crop):
            left, top, width, height = left + crop.left, top + crop.top, crop.width, crop.height
            del moves[0]
        resize = moves[0] if moves else None
        if not isinstance(resize, Resize) or resampling == Image.Resampling.NEAREST:
            return self.decode(), geometry
        factor = reduction(height / resize.height, width / resize.width)
        if factor == 1:
            return self.decode(), geometry
        image = self.decode(factor)
        # The last column and row may lie partly beyond the image; made upright, they may have become the first.
        x = image.width - self.width / factor if self._orientation in _MIRRORED_X else 0.0
        y = image.height - self.height / factor if self._orientation in _MIRRORED_Y else 0.0
        box = (
            left / factor + x,
            top / factor + y,
            (left + width) / factor + x,
            (top + height) / factor + y,
        )
        return image.resize((resize.width, resize.height), resampling, box=box), Geometry(tuple(moves[1:]))


Pixels = Image.Image | Photo
"""An image, decoded or to be decoded."""


def reduction(*ratios: float) -> int:
    """Return by what a JPEG's sides can be divided where they are to shrink by these ratios: 1, 2, 4 or 8."""
    return next((factor for factor in _FACTORS if min(ratios) >= _MARGIN * factor), 1)


def open_image(
    encoded: Encoded, *, name: str | None = None, deep_range: Range | None = None, channels: int = 3
) -> Pixels:
    """Return a JPEG file as a :class:`Photo`, and any other image decoded.

    Args:
        encoded: as :func:`~kdcli.data.images.decode.decode_image` takes it.
        name: likewise.
        deep_range: likewise.
        channels: likewise.

    Raises:
        UnreadableImage: as there, of a JPEG file only if its header is damaged.
    """
    content = encoded if isinstance(encoded, Image.Image) else _jpeg_of(encoded)
    if not isinstance(content, bytes):
        return decode_image(encoded, name=name, deep_range=deep_range, channels=channels)
    name = name or ("image" if isinstance(encoded, bytes) else fspath(encoded))  # type: ignore[arg-type]
    return Photo(content, name, channels)


def _jpeg_of(encoded: File) -> bytes | None:
    """Return the content of a JPEG file; None of any other, or of one that can't be read."""
    if isinstance(encoded, bytes):
        return encoded if encoded.startswith(_JPEG) else None
    try:
        with open(encoded, "rb") as file:  # noqa: PTH123 - a Path per image of a large set is a waste
            start = file.read(len(_JPEG))
            return start + file.read() if start == _JPEG else None
    except OSError:
        return None
