"""Images of more than 8 bits: one range of values for a whole data set, found from some of its images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from kdcli.base.errors import UserError
from kdcli.data.images.decode import File, Range, finite_range, range_of, read_depth, read_values
from kdcli.data.images.sources import FileSource, ImageSource, origins
from kdcli.data.images.tables import TableSource

_LOOKED_AT = 256
"""So many headers of a data set are read, spread evenly."""
_DECODED = 32
"""Of the deep ones among them, so many images are decoded."""
_SHALLOW = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif")
"""Suffixes of formats that are never deep."""
_DARK = 8
"""A range so many times as large as most values is said to be."""
_HINT = "data.deep_range=[0,4095] says what is black and white, for one; or scale the images to 8 bits."


def find_range(source: ImageSource, asked: Range | None) -> tuple[Range | None, list[str]]:
    """Return what is black and white in the deep grayscale images of a source, and notes.

    Some of its images are looked at. The range is None where none of them is deep.

    Args:
        source: the images.
        asked: for this range; found otherwise.

    Raises:
        UserError: deep images of whole numbers and of floats, or colours of 16 bits a band that use their lower 14
            alone, of which nothing but darkness would be read.
    """
    deep: dict[str, list[File]] = {"whole": [], "float": [], "colour": []}
    looked_at = spare = 0
    for encoded in spread(source):
        if (depth := read_depth(encoded)) is not None:
            looked_at += 1
            spare += depth.has_spare_band
            if depth.kind is not None:
                deep[depth.kind].append(encoded)
    notes = []
    if spare:
        notes.append(f"Of {looked_at} images looked at, {spare} have a further band that is no alpha: it is left out.")
    _check_colours(deep["colour"])
    kinds = [kind for kind in ("whole", "float") if deep[kind]]
    if not kinds:
        if asked is not None:
            notes.append(f"data.deep_range: none of {looked_at} images looked at is deep grayscale.")
        return asked, notes
    if asked is not None:
        notes.append(f"Deep images: {asked[0]:g} is black, {asked[1]:g} is white, as data.deep_range says; {_BEYOND}")
        return asked, notes
    if len(kinds) > 1:
        raise UserError("Some of the deep images are of whole numbers, some of floats.", _HINT)
    found, usual = _values(deep[kinds[0]])
    black, white = range_of(*found, is_float=kinds[0] == "float")
    notes.append(
        f"Deep images: {black:g} is black, {white:g} is white, as {len(deep[kinds[0]][:_DECODED])} of them reach from "
        f"{found[0]:g} to {found[1]:g}; {_BEYOND}"
    )
    if usual - black < (white - black) / _DARK:
        notes.append(
            f"Most of their values are below {usual:g}, so that they are dark: data.deep_range=[{black:g},{usual:g}]"
            " would scale them by these."
        )
    return (black, white), notes


_BEYOND = "an image that goes beyond is scaled by the range that holds both."


def set_range(sources: Iterable[ImageSource | None], deep_range: Range | None) -> None:
    """Let the sources scale their deep images by ``deep_range``."""
    for source in sources:
        for origin in [] if source is None else origins(source):
            if isinstance(origin, FileSource | TableSource):
                origin.deep_range = deep_range


def spread(source: ImageSource, *, shallow: bool = False, most: int = _LOOKED_AT) -> Iterator[File]:
    """Yield images of a source, spread evenly, as they are encoded; those of formats that are never deep if asked.

    Of each of its origins no more than ``most``.
    """
    for origin in origins(source):
        if isinstance(origin, FileSource):
            paths = [path for path in origin.paths if shallow or not path.lower().endswith(_SHALLOW)]
            yield from (paths[index] for index in _places(len(paths), most))
        elif isinstance(origin, TableSource):
            found = (origin.encoded(index) for index in origin.some(most))
            yield from (encoded for encoded in found if encoded is not None)


def _places(count: int, most: int) -> list[int]:
    return [number * count // most for number in range(most)] if count > most else list(range(count))


def _values(images: list[File]) -> tuple[Range, float]:
    """Return smallest and largest value of some of the images, and what 99.9 % of the values of each do not exceed."""
    chosen = (
        [images[number * len(images) // _DECODED] for number in range(_DECODED)] if len(images) > _DECODED else images
    )
    lows, highs, usual = [], [], []
    for values in map(read_values, chosen):
        if values is not None and values.size:
            low, high = finite_range([values])
            lows.append(low)
            highs.append(high)
            usual.append(float(np.quantile(values[np.isfinite(values)] if values.dtype.kind == "f" else values, 0.999)))
    return ((min(lows), max(highs)), max(usual)) if lows else ((0.0, 0.0), 0.0)


def _check_colours(images: list[File]) -> None:
    if not images:
        return
    _, high = _values(images)[0]
    if high < 64:
        raise UserError(
            f"The colours have 16 bits a band, and use their lower {int(high).bit_length() + 8} alone: of"
            f" {len(images)} images looked at nothing would be seen in the upper 8 bits, which are read.",
            "Scale the images to 8 bits.",
        )
