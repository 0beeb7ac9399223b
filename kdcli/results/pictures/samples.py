"""Pictures of samples in a grid: input, target, and what each model makes of it.

They are put together by Pillow: every run has such a grid, and matplotlib takes seconds for as many axes.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kdcli.base.files import write_atomically
from kdcli.results.pictures.style import FAINT, GREY, INK, drawable

if TYPE_CHECKING:
    from kdcli.tasks.reports import Panel, Scale

_SIDE = 288
"""Pixels that a picture is wide: three times 96."""
_ACROSS = 6
"""Samples of one picture each, side by side."""
_HIGHEST = 4
"""A picture is at most so many times as high as its column is wide."""
_MARGIN, _GAP = 14, 10
_HEADING, _TEXT = 19, 13
"""Pixels of letters."""
_LINE = 17
"""Pixels of a line of text."""
_ENTRY, _MOST_ENTRIES = 176, 60
"""Pixels of a class in the legend, across, and how many are named."""
_SCALE = (420, 64)
"""Pixels of a scale of colours with its numbers, across and down."""
_BAR = 14
_NUMBERS = 5
"""Numbers below a scale."""
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Colour = tuple[int, int, int]


def plot_samples(path: str | Path, rows: Sequence[Sequence[Panel]], *, title: str, side: int = _SIDE) -> Path:
    """Draw the pictures of every sample in a row, or where each has but one, several samples in a row.

    What their colours mean stands below all of them, once: one legend of the classes that any of them shows, and every
    scale of numbers.

    Args:
        path: the PNG to write; its folder is created.
        rows: of every sample pictures; samples with fewer than others leave places empty.
        title: heading.
        side: pixels that a picture is wide.

    Returns:
        The path.
    """
    across = max(map(len, rows))
    if across == 1:
        flat = [row[0] for row in rows]
        across = min(_ACROSS, len(flat))
        rows = [flat[start : start + across] for start in range(0, len(flat), across)]
    entries, scales = _keys([panel for row in rows for panel in row])
    width = max(across * (side + _GAP) - _GAP, 2 * _SIDE) + 2 * _MARGIN
    columns = max(1, (width - 2 * _MARGIN) // _ENTRY)
    bars = max(1, (width - 2 * _MARGIN) // _SCALE[0])
    heights = [
        _LINE * max(_lines(panel) for panel in row) + max(_tall(panel, side) for panel in row) + _GAP for row in rows
    ]
    legend, below = math.ceil(len(entries) / columns) * _LINE, math.ceil(len(scales) / bars) * _SCALE[1]
    top = _MARGIN + _HEADING + _GAP
    canvas = Image.new("RGB", (width, top + sum(heights) + legend + below + _MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    bold = text_font(_HEADING, bold=True)
    pen.text((_MARGIN, _MARGIN), fitted(title, bold, width), INK, bold)
    for row, height in zip(rows, heights, strict=True):
        middle = top + _LINE * max(_lines(panel) for panel in row)
        for place, panel in enumerate(row):
            _draw_panel(canvas, pen, panel, (_MARGIN + place * (side + _GAP), middle), side)
        top += height
    _draw_legend(pen, entries, top, columns)
    for place, scale in enumerate(scales):
        corner = _MARGIN + place % bars * _SCALE[0], top + legend + place // bars * _SCALE[1]
        _draw_scale(canvas, pen, scale, corner)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: canvas.save(file, format="PNG"))
    return path


def _keys(panels: Sequence[Panel]) -> tuple[dict[int, tuple[str, _Colour]], list[Scale]]:
    """Return the classes of all legends by their numbers, negative ones last, and the scales that differ."""
    from kdcli.tasks.reports import Legend, Scale

    entries: dict[int, tuple[str, _Colour]] = {}
    scales: dict[Scale, None] = {}
    for panel in panels:
        if isinstance(panel.key, Legend):
            entries.update(panel.key.entries)
        elif isinstance(panel.key, Scale):
            scales[panel.key] = None
    places = sorted(entries, key=lambda place: (place < 0, abs(place)))
    if len(places) > _MOST_ENTRIES:
        left_out = len(places) - _MOST_ENTRIES + 1
        shown = {place: entries[place] for place in places[: _MOST_ENTRIES - 1]}
        return shown | {places[-1]: (f"and {left_out} more", (255, 255, 255))}, list(scales)
    return {place: entries[place] for place in places}, list(scales)


def _lines(panel: Panel) -> int:
    return panel.title.count("\n") + 1


def _tall(panel: Panel, side: int) -> int:
    """Return how many pixels a picture is high: at most four times its column's width."""
    height, width = panel.image.shape[:2]
    return min(max(1, round(height * side / width)), _HIGHEST * side)


def _wide(panel: Panel, side: int) -> int:
    """Return how many pixels a picture is wide: ``side``, but for one that would be too high."""
    height, width = panel.image.shape[:2]
    return min(side, max(1, round(width * _tall(panel, side) / height)))


def _draw_panel(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, panel: Panel, corner: tuple[int, int], side: int
) -> None:
    """Put a picture with its upper left corner at ``corner``, and its title over it, in the middle."""
    (left, top), font = corner, text_font(_TEXT)
    lines = [fitted(line, font, side) for line in panel.title.split("\n")]
    for number, line in enumerate(lines):
        start = left + (side - font.getlength(line)) / 2
        pen.text((start, top - _LINE * (len(lines) - number)), line, GREY, font)
    is_small = panel.image.shape[1] <= side
    picture = Image.fromarray(np.ascontiguousarray(panel.image))
    how = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    across = _wide(panel, side)
    canvas.paste(picture.resize((across, _tall(panel, side)), how), (left + (side - across) // 2, top))


def _draw_legend(pen: ImageDraw.ImageDraw, entries: Mapping[int, tuple[str, _Colour]], top: int, columns: int) -> None:
    font = text_font(_TEXT)
    for place, (name, colour) in enumerate(entries.values()):
        left, upper = _MARGIN + place % columns * _ENTRY, top + place // columns * _LINE
        pen.rectangle((left, upper + 1, left + 18, upper + 13), fill=colour, outline=FAINT)
        pen.text((left + 25, upper - 1), fitted(name, font, _ENTRY - 32), INK, font)


def _draw_scale(canvas: Image.Image, pen: ImageDraw.ImageDraw, scale: Scale, corner: tuple[int, int]) -> None:
    """Draw the colours from ``low`` at the left to ``high`` at the right, what they are above, numbers below."""
    from matplotlib import colormaps

    left, top = corner
    font, long = text_font(_TEXT), _SCALE[0] - 50
    pen.text((left, top), fitted(scale.label, font, long), GREY, font)
    levels = colormaps[scale.colours](np.linspace(0, 1, long), bytes=True)[None, :, :3]
    canvas.paste(Image.fromarray(np.repeat(levels, _BAR, axis=0)), (left, top + _LINE))
    for number in range(_NUMBERS):
        share = number / (_NUMBERS - 1)
        text = f"{scale.low + share * (scale.high - scale.low):.3g}"
        wide = font.getlength(text)
        start = left + share * long - (0 if number == 0 else wide if number == _NUMBERS - 1 else wide / 2)
        pen.text((start, top + _LINE + _BAR + 1), text, INK, font)


def fitted(text: str, font: _Font, width: float) -> str:
    """Return a line that can be drawn, its end cut off where it is too long."""
    if any(character > "ɏ" for character in text):  # beyond Latin: the font may lack it
        text = drawable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@lru_cache(maxsize=4)
def text_font(size: int, *, bold: bool = False) -> _Font:
    """Return matplotlib's own font, which all pictures have, without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    for place in places:
        file = Path(place) / "mpl-data" / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)
