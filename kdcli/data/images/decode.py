"""One encoded image to 8-bit RGB, greyscale or four channels, whatever its file format, mode and depth."""

from __future__ import annotations

import ctypes
import io
import math
import struct
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps

File = str | PathLike[str] | bytes
"""A path, or the bytes of a file."""
Encoded = File | Image.Image
"""What :func:`decode_image` takes: a path, the bytes of a file, or an image that PIL has opened."""

MODES = {1: "L", 3: "RGB", 4: "RGBX"}
"""Number of channels -> PIL's mode. Of four none is alpha to PIL, which would else weigh the others by it."""

Range = tuple[float, float]
"""The values of a deep image that become black and white."""

_WHITES = (255, 1023, 4095, 16383, 65535)
"""White of images of 8, 10, 12, 14 and 16 bits, whatever the depth of their files."""
_ALPHAS = (1, 2)
"""Kinds of a band in TIFF's ExtraSamples and JPEG 2000's channel definitions that are alpha."""
_BANDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""TIFF's photometric interpretation -> its bands of colour."""
_WHITE_IS_ZERO = 0
_HEADER = 2**16
"""Bytes in which a JPEG 2000 file's header is looked for."""

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


@dataclass(frozen=True)
class Depth:
    """What the header of an image says about its values.

    Attributes:
        kind: of a deep grayscale image ``whole`` or ``float``; ``colour`` of one of 16 bits a band, of which PIL reads
            the upper 8; else None.
        has_spare_band: whether there is a band beyond those of its colours that is no alpha.
    """

    kind: Literal["whole", "float", "colour"] | None
    has_spare_band: bool


def read_depth(encoded: File) -> Depth | None:
    """Return what the header says, without decoding the image; None where it can't be read."""
    try:
        with _opened(encoded) as image:
            return Depth(_kind(image), _further_bands(image)[1])
    except Exception:  # as in decode_image, which says why
        return None


def read_values(encoded: File) -> NDArray[np.generic] | None:
    """Return the values (H, W) of deep grayscale, or the 8-bit colours of any other image; None for neither."""
    try:
        with _opened(encoded) as image:
            return np.asarray(image if image.mode.startswith(("I", "F")) else image.convert("RGB"))
    except Exception:  # as in decode_image, which says why
        return None


def range_of(low: float, high: float, *, is_float: bool) -> Range:
    """Return what is black and white where the values lie in [``low``, ``high``].

    Whole numbers from 0 to 65535 are taken to have the fewest of 8, 10, 12, 14 and 16 bits that hold them; floats in
    [0, 1] and in [0, 255] to fill these. Anything else goes from ``low`` to ``high``.
    """
    whites: tuple[float, ...] = (1, 255) if is_float else _WHITES
    return (0, next(white for white in whites if high <= white)) if low >= 0 and high <= whites[-1] else (low, high)


def decode_image(
    encoded: Encoded, *, name: str | None = None, deep_range: Range | None = None, channels: int = 3
) -> Image.Image:
    """Decode an image completely and bring it to mode RGB, or to that of another number of channels.

    The EXIF orientation is applied. Transparent pixels, from an alpha channel, a palette or a PNG's transparent colour,
    are composited on white; a further band of a TIFF or JPEG 2000 file is alpha where the file says so, and left out
    otherwise. Of several frames the first is taken.

    Deep grayscale, of more than 8 bits or of floats, is scaled to 8 bits by ``deep_range``, never clipped: an image
    that goes beyond is scaled by the smallest range that holds both, and its own is found by :func:`range_of`. Where a
    TIFF file says that 0 is white, it is. Infinite and undefined values are black. Of colours of 16 bits a band PIL
    keeps the upper 8.

    One channel is the luma (ITU-R 601) of that, which leaves the values of grayscale as they are. Four are those of the
    file, as they are there: colours and alpha, or whatever a TIFF file's further band is; nothing is composited.

    Args:
        encoded: path, file content, or PIL image; an image passed in is not changed.
        name: what the error calls it; by default the path.
        deep_range: of the whole data set; by default the image's own.
        channels: 1, 3 or 4.

    Raises:
        UnreadableImage: missing, truncated, corrupt, no image at all, without a fourth channel where four are wanted,
            or of more pixels than PIL's limit for decompression bombs (twice ``MAX_IMAGE_PIXELS``, 179 million), which
            is looked up before anything is decoded.
    """
    if name is None:
        name = fspath(encoded) if isinstance(encoded, str | PathLike) else "image"
    try:
        if isinstance(encoded, Image.Image):
            return _decoded(encoded, deep_range, channels)
        with _opened(encoded) as image:
            return _decoded(image, deep_range, channels)
    # On damaged files PIL's decoders raise whatever they trip over: OSError, SyntaxError, struct.error, zlib.error,
    # DecompressionBombError, ...
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error


def _opened(encoded: File) -> Image.Image:
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS)


def _kind(image: Image.Image) -> Literal["whole", "float", "colour"] | None:
    if image.mode.startswith("F"):
        return "float"
    if image.mode.startswith("I"):
        return "whole"
    tiles = getattr(image, "tile", None) or [None]
    arguments = getattr(tiles[0], "args", None)
    return "colour" if ";16" in str(arguments) else None


def _further_bands(image: Image.Image) -> tuple[bool, bool]:
    """Return whether the file, not decoded yet, has an alpha band, and one that is neither alpha nor colour."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        number, kinds = tags.get(277, 1), tags.get(338, ())
        has_alpha = any(kind in _ALPHAS for kind in kinds)
        return has_alpha, number > _BANDS.get(tags.get(262, 2), number) + has_alpha
    if image.format == "JPEG2000" and image.mode in ("LA", "RGBA"):
        file = getattr(image, "fp", None)
        has_alpha = file is None or _defines_alpha(file)  # of a decoded one nothing but its bands is left
        return has_alpha, not has_alpha
    return True, False


def _defines_alpha(file: IO[bytes]) -> bool:
    """Whether a JPEG 2000 file's channel definitions (ISO 15444-1, I.5.3.6) have an alpha channel."""
    place = file.tell()
    file.seek(0)
    header = file.read(_HEADER)
    file.seek(place)
    start = header.find(b"cdef")
    if start < 0:
        return False
    (number,) = struct.unpack_from(">H", header, start + 4)
    return any(struct.unpack_from(">HHH", header, start + 6 + 6 * channel)[1] in _ALPHAS for channel in range(number))


def _decoded(image: Image.Image, deep_range: Range | None, channels: int) -> Image.Image:
    return _to_four(image) if channels == 4 else in_channels(_to_rgb(image, deep_range), channels)


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return an image of mode RGB, L or RGBX in that of so many channels.

    Raises:
        ValueError: four are wanted, and it has less.
    """
    wanted = MODES[channels]
    if image.mode == wanted:
        return image
    if channels == 4:
        raise ValueError(f"it has no fourth channel: PIL reads it as {image.mode}")
    return image.convert(wanted)


def values_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the values (H, W, channels) of an image of mode RGB, L or RGBX."""
    values = np.asarray(image)
    return values if values.ndim == 3 else values[..., None]


def image_of(values: NDArray[np.uint8]) -> Image.Image:
    """Return the image whose values (H, W, channels) these are."""
    height, width, channels = values.shape
    if channels == 4:
        return Image.frombytes(MODES[4], (width, height), values.tobytes())
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def _to_four(image: Image.Image) -> Image.Image:
    if _leaves_fourth_out(image):
        image._mode = MODES[4]  # PIL unpacks the band either way, and keeps it then
    image.load()
    image = _upright(image)
    if image.mode != MODES[4] and image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.frombytes(MODES[4], image.size, image.tobytes())
    return in_channels(image, 4)


def _leaves_fourth_out(image: Image.Image) -> bool:
    """Whether PIL reads a TIFF file's three colours alone, of four bands of which the last is no alpha."""
    if image.format != "TIFF" or image.mode != "RGB":
        return False
    raw = next((args[0] if isinstance(args, tuple) else args for *_, args in getattr(image, "tile", ())), "")
    return bool(raw == "RGBX")


def has_four(encoded: File) -> tuple[bool, str] | None:
    """Return whether a file has four channels, by its header, and what PIL reads it as; None where it can't be read."""
    try:
        with _opened(encoded) as image:
            found = image.mode == MODES[4] or _leaves_fourth_out(image) or image.has_transparency_data
            return found, image.mode
    except Exception:  # as in decode_image, which says why
        return None


def _to_rgb(image: Image.Image, deep_range: Range | None) -> Image.Image:
    has_alpha, _ = _further_bands(image)
    is_inverted = image.format == "TIFF" and image.tag_v2.get(262) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
    image.load()
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        return _from_deep_grayscale(image, deep_range, is_inverted=is_inverted)
    if has_alpha and image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _from_deep_grayscale(image: Image.Image, deep_range: Range | None, *, is_inverted: bool) -> Image.Image:
    values = np.asarray(image)
    # Some rows at a time: as a whole, a large image would take many times its own memory.
    count = max(1, _BLOCK // values.shape[1])
    blocks = [values[start : start + count] for start in range(0, len(values), count)]
    low, high = finite_range(blocks)
    black, white = range_of(low, high, is_float=image.mode == "F")
    if deep_range is not None:
        if deep_range[0] <= low and high <= deep_range[1]:
            black, white = deep_range
        else:
            black, white = min(black, deep_range[0]), max(white, deep_range[1])
    scale = 255 / (white - black) if white > black else 0.0
    pixels = np.empty(values.shape, np.uint8)
    for start, block in zip(range(0, len(values), count), blocks, strict=True):
        known = np.nan_to_num(block.astype(np.float64), nan=black, posinf=black, neginf=black)
        scaled = np.rint((known - black) * scale)
        pixels[start : start + count] = 255 - scaled if is_inverted else scaled
    return Image.fromarray(pixels).convert("RGB")


def finite_range(blocks: list[NDArray[np.generic]]) -> Range:
    """Return the smallest and the largest of the finite values; zeros where there are none."""
    low, high = math.inf, -math.inf
    for block in blocks:
        known = block.astype(np.float64)
        known = known[np.isfinite(known)]
        if known.size:
            low, high = min(low, float(known.min())), max(high, float(known.max()))
    return (low, high) if low <= high else (0.0, 0.0)
