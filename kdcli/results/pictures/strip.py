"""The same samples over time: a grid of small pictures for each time, and all times side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

from kdcli.base.files import write_atomically
from kdcli.results.pictures.samples import fitted, text_font
from kdcli.results.pictures.style import GREY, INK

SIDE = 96
"""Most pixels of a small picture's sides."""
ROWS = 8
"""Most samples of a strip."""
_TEXT, _TITLE, _LINE, _MARGIN, _GAP = 12, 15, 18, 10, 3
_WIDEST = 1400
"""Pixels of a title."""
_KEY = "kdcli"

Pixels = NDArray[np.uint8]
"""uint8 (H, W, 3)."""


@dataclass(frozen=True)
class Column:
    """What stands below one another in a strip.

    Attributes:
        heading: over it.
        cells: a picture of each sample.
    """

    heading: str
    cells: Sequence[Image.Image]


def shrunk(pixels: Pixels) -> Image.Image:
    """Return a picture whose longer side has at most 96 pixels."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def write_grid(path: Path, cells: Sequence[Image.Image], *, heading: str) -> Pixels:
    """Write pictures of samples in a square, row by row, and what :func:`read_grid` has to know.

    Args:
        path: the PNG to write; its folder is created.
        cells: a picture of each sample.
        heading: of its column in a strip.

    Returns:
        The grid.
    """
    across = math.ceil(math.sqrt(len(cells)))
    width, height = (max(sides) for sides in zip(*(cell.size for cell in cells), strict=True))
    grid = Image.new("RGB", (across * width, math.ceil(len(cells) / across) * height), "white")
    for place, cell in enumerate(cells):
        grid.paste(cell, (place % across * width, place // across * height))
    told = PngImagePlugin.PngInfo()
    told.add_text(_KEY, json.dumps({"heading": heading, "sizes": [cell.size for cell in cells]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: grid.save(file, format="PNG", pnginfo=told))
    return np.asarray(grid)


def read_grid(path: Path) -> Column:
    """Return the pictures of a grid that :func:`write_grid` wrote.

    Raises:
        OSError: it is no picture.
        ValueError, KeyError, TypeError: it is another one.
    """
    with Image.open(path) as grid:
        told = json.loads(str(grid.info[_KEY]))
        sizes = told["sizes"]
        across = math.ceil(math.sqrt(len(sizes)))
        width, height = (max(sides) for sides in zip(*sizes, strict=True))
        corners = ((place % across * width, place // across * height) for place in range(len(sizes)))
        cells = [
            grid.crop((left, top, left + wide, top + high))
            for (left, top), (wide, high) in zip(corners, sizes, strict=True)
        ]
    return Column(str(told["heading"]), cells)


def plot_strip(path: Path, columns: Sequence[Column], *, title: str) -> None:
    """Draw columns side by side: a sample in each row, at most eight of them, evenly chosen.

    Args:
        path: the PNG to write.
        columns: at least one, each with the same samples.
        title: over all of it.
    """
    count = min(len(column.cells) for column in columns)
    number = min(ROWS, count)
    places = [row * count // number for row in range(number)]
    top = _MARGIN + 2 * _LINE + _GAP
    font, bold = text_font(_TEXT), text_font(_TITLE, bold=True)
    title = fitted(title, bold, _WIDEST)
    width = 2 * _MARGIN + max(len(columns) * (SIDE + _GAP) - _GAP, math.ceil(bold.getlength(title)))
    canvas = Image.new("RGB", (width, top + number * (SIDE + _GAP) - _GAP + _MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN - 2), title, INK, bold)
    for across, column in enumerate(columns):
        left = _MARGIN + across * (SIDE + _GAP)
        heading = fitted(column.heading, font, SIDE)
        pen.text((left + (SIDE - font.getlength(heading)) / 2, _MARGIN + _LINE), heading, GREY, font)
        for down, place in enumerate(places):
            cell = _enlarged(column.cells[place])
            corner = left + (SIDE - cell.width) // 2, top + down * (SIDE + _GAP) + (SIDE - cell.height) // 2
            canvas.paste(cell, corner)
    write_atomically(path, lambda file: canvas.save(file, format="PNG"))


def _enlarged(cell: Image.Image) -> Image.Image:
    """Return a small picture as large as its place has room for; pixels of very small ones stay squares."""
    times = SIDE / max(cell.size)
    if times >= 2:
        times = int(times)
    how = Image.Resampling.NEAREST if times >= 2 else Image.Resampling.BICUBIC
    return cell.resize((max(1, round(cell.width * times)), max(1, round(cell.height * times))), how)
