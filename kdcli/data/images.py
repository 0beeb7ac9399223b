"""One encoded image to 8-bit RGB, whatever its file format, mode and depth."""

from __future__ import annotations

import io
from os import PathLike, fspath

import numpy as np
from PIL import ExifTags, Image, ImageOps

Encoded = str | PathLike[str] | bytes | Image.Image
"""What :func:`decode_image` takes: a path, the bytes of a file, or an image that PIL has opened."""


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
        UnreadableImage: missing, truncated, corrupt, no image at all, or above PIL's limit for decompression bombs.
    """
    if name is None:
        name = fspath(encoded) if isinstance(encoded, str | PathLike) else "image"
    try:
        if isinstance(encoded, Image.Image):
            return _to_rgb(encoded)
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
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
    pixels = np.asarray(image).astype(np.float64)
    pixels = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        pixels = pixels * 255
    elif image.mode != "F" and low >= 0 and high <= 65535:
        pixels = pixels / 257
    elif low < 0 or high > 255:
        pixels = (pixels - low) * (255 / (high - low)) if high > low else np.zeros_like(pixels)
    return Image.fromarray(np.rint(pixels).astype(np.uint8)).convert("RGB")
