"""One encoded image to 8-bit RGB, whatever its file format, mode and depth."""

from __future__ import annotations

import ctypes
import io
from contextlib import suppress
from os import PathLike, fspath

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps

Encoded = str | PathLike[str] | bytes | Image.Image
"""What :func:`decode_image` takes: a path, the bytes of a file, or an image that PIL has opened."""


_BLOCK = 2**20
"""Pixels of a deep image that are scaled at a time."""

Image.init()
FORMATS: list[str] = [
    name for name in ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF") if name in Image.OPEN
]
"""What a file may be, whatever its name says: pixels, and no document that another program would have to interpret."""
EpsImagePlugin.gs_binary = False  # for images that torchvision opens: PIL would hand EPS to Ghostscript
with suppress(AttributeError, OSError):  # where PIL's libtiff is part of PIL itself, and its functions can't be found
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # it prints; PIL raises too


class UnreadableImage(Exception):
    """An image that can't be decoded.

    Args:
        name: its file, or its place in the data set.
        reason: what the decoder said.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it survives pickling between processes
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode_image(encoded: Encoded, *, name: str | None = None) -> Image.Image:
    """Decode an image completely and bring it to mode RGB.

    The EXIF orientation is applied. Transparent pixels, from an alpha channel, a palette or a PNG's transparent colour,
    are composited on white. Deep grayscale is scaled to 8 bits, never clipped: 16 bits by ``value / 257``; 32-bit
    integers likewise where they lie in [0, 65535]; floats by ``value * 255`` where they lie in [0, 1] and unchanged
    where they lie in [0, 255]; other values of either by their own minimum and maximum. Of several frames the first
    is taken.

    Args:
        encoded: path, file content, or PIL image; an image passed in is not changed.
        name: what the error calls it; by default the path.

    Raises:
        UnreadableImage: missing, truncated, corrupt, no image at all, or of more pixels than PIL's limit for
            decompression bombs (twice ``MAX_IMAGE_PIXELS``, 179 million), which is looked up before anything is decoded.
    """
    if name is None:
        name = fspath(encoded) if isinstance(encoded, str | PathLike) else "image"
    try:
        if isinstance(encoded, Image.Image):
            return _to_rgb(encoded)
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS) as image:
            return _to_rgb(image)
    # On damaged files PIL's decoders raise whatever they trip over: OSError, SyntaxError, struct.error, zlib.error,
    # DecompressionBombError, ...
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        return _from_deep_grayscale(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _from_deep_grayscale(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # Some rows at a time: as a whole, a large image would take many times its own memory.
    count = max(1, _BLOCK // values.shape[1])
    blocks = [slice(start, start + count) for start in range(0, len(values), count)]

    def read(block: slice) -> NDArray[np.float64]:
        return np.nan_to_num(values[block].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)

    low, high = min(float(read(block).min()) for block in blocks), max(float(read(block).max()) for block in blocks)
    shift, scale = 0.0, 1.0
    if image.mode == "F" and low >= 0 and high <= 1:
        scale = 255
    elif image.mode != "F" and low >= 0 and high <= 65535:
        scale = 1 / 257
    elif low < 0 or high > 255:
        shift, scale = low, 255 / (high - low) if high > low else 0.0
    pixels = np.empty(values.shape, np.uint8)
    for block in blocks:
        pixels[block] = np.rint((read(block) - shift) * scale)
    return Image.fromarray(pixels).convert("RGB")
