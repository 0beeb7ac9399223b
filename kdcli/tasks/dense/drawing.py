"""Classes, depths and boxes as colours: what the pictures of tasks at places are made of."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdcli.base.facts import UNLABELLED
from kdcli.tasks.reports import Legend, Scale

Pixels = NDArray[np.uint8]
"""uint8 (H, W, 3)."""
Colour = tuple[int, int, int]

DEPTHS, ERRORS = "viridis_r", "inferno"
"""matplotlib's colours, told apart in grey too: near is bright; without error is black."""
UNKNOWN: Colour = (150, 150, 150)
"""Of pixels that have no label, or were not measured; no class and nothing that is right looks so."""
_BACKGROUND: Colour = (40, 40, 40)
_BACKGROUNDS = ("background", "_background_", "void", "bg")
"""Names of a first class that is whatever is no other class."""
_FIRST: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""Okabe & Ito's palette, without black: told apart with every common colour blindness."""
_GOLDEN = 0.618034
"""Turns of the hue from one further colour to the next."""
_LIGHT = (0.72, 0.34, 0.53)
"""Lightness of further colours in turn: neighbours differ in it whoever looks."""
_RIGHT: Colour = (235, 235, 235)
_WRONG: Colour = (190, 0, 30)
_SMALLEST = 288
"""Pixels that the longer side of a picture with boxes has at least: names in it can be read then."""
_LONGEST_NAME = 16


@lru_cache(maxsize=64)
def _colours(number: int, has_background: bool) -> Pixels:
    """Return a colour for each of so many classes, uint8 (number, 3); a class's own does not depend on ``number``."""
    chosen = [_BACKGROUND] if has_background else []
    for place in range(number - len(chosen)):
        if place < len(_FIRST):
            chosen.append(_FIRST[place])
            continue
        further = place - len(_FIRST)
        red, green, blue = colorsys.hls_to_rgb(further * _GOLDEN % 1, _LIGHT[further % 3], 0.65)
        chosen.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(chosen, np.uint8).reshape(-1, 3)


def class_colours(class_names: Sequence[str]) -> Pixels:
    """Return the colour of each class, uint8 (C, 3); dark where the first one is the background, going by its name."""
    has_background = bool(class_names) and class_names[0].lower() in _BACKGROUNDS
    return _colours(len(class_names), has_background)


def draw_mask(mask: NDArray[np.int64], class_names: Sequence[str]) -> Pixels:
    """Return the colours of classes.

    Args:
        mask: int64 (H, W), class indices; negative ones are pixels without a label, which are grey.
        class_names: C of them.
    """
    table = np.concatenate([class_colours(class_names), np.array([UNKNOWN], np.uint8)])
    return table[np.where(mask < 0, len(class_names), mask)]


def draw_over(image: Pixels, mask: NDArray[np.int64], class_names: Sequence[str], *, share: float = 0.6) -> Pixels:
    """Return the colours of classes, ``share`` of them, over the brightness of their image."""
    grey = image.mean(axis=2, keepdims=True)
    mixed = grey + share * (draw_mask(mask, class_names) - grey)
    return np.rint(mixed).astype(np.uint8)


def draw_errors(mask: NDArray[np.int64], target: NDArray[np.int64]) -> Pixels:
    """Return where a mask differs from the target: red there, near white elsewhere, grey without a label."""
    picture = np.empty((*mask.shape, 3), np.uint8)
    picture[:] = _RIGHT
    picture[mask != target] = _WRONG
    picture[target < 0] = UNKNOWN
    return picture


def legend(class_names: Sequence[str], *masks: NDArray[np.int64]) -> Legend:
    """Return what the colours of :func:`draw_mask` mean, of the classes that are in any of ``masks``; by default all.

    Args:
        class_names: C of them.
        masks: int64, of any shape.
    """
    present = range(len(class_names)) if not masks else np.unique(np.concatenate([np.ravel(mask) for mask in masks]))
    colours = class_colours(class_names)
    entries = {int(place): (class_names[place], _colour(colours[place])) for place in present if place >= 0}
    if masks and any((mask < 0).any() for mask in masks):
        entries[UNLABELLED] = ("no label", UNKNOWN)
    return Legend(entries)


def error_legend() -> Legend:
    """Return what the colours of :func:`draw_errors` mean."""
    return Legend({-3: ("wrong", _WRONG), -2: ("right", _RIGHT)})


def draw_depth(depth: NDArray[np.floating], low: float, high: float) -> Pixels:
    """Return the colours of depths, the near ones bright.

    Args:
        depth: (H, W); what is 0, negative or not finite was not measured, and is grey.
        low: the depth that has the first colour, as whatever is nearer.
        high: the depth that has the last one, as whatever is farther.
    """
    return draw_values(depth, low, high, colours=DEPTHS, known=np.isfinite(depth) & (depth > 0))


def depth_scale(low: float, high: float, *, unit: str = "m") -> Scale:
    """Return what the colours of :func:`draw_depth` mean."""
    return Scale(f"depth ({unit})" if unit else "depth", low, high, DEPTHS)


def depth_range(depths: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    """Return the 2nd and 98th percentile of what was measured in all of ``depths``, for one scale of them all."""
    known = [depth[np.isfinite(depth) & (depth > 0)] for depth in depths]
    values = np.concatenate([np.zeros(0), *known])
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (2, 98)))
    return low, max(high, low + 1e-6)


def draw_values(
    values: NDArray[np.floating],
    low: float,
    high: float,
    *,
    colours: str = ERRORS,
    known: NDArray[np.bool_] | None = None,
) -> Pixels:
    """Return the colours of numbers (H, W), those of ``low`` and below to those of ``high`` and above.

    Args:
        values: to be shown.
        low: of the first colour.
        high: of the last one.
        colours: matplotlib's name of them.
        known: bool (H, W): others are grey; by default what is finite.
    """
    from matplotlib import colormaps

    known = np.isfinite(values) if known is None else known
    share = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0, 1)
    picture: Pixels = colormaps[colours](share, bytes=True)[..., :3]
    picture[~known] = UNKNOWN
    return picture


def draw_boxes(
    image: Pixels,
    boxes: NDArray[np.floating],
    labels: NDArray[np.integer],
    scores: NDArray[np.floating] | None,
    class_names: Sequence[str],
) -> Pixels:
    """Return an image with boxes, their classes' names and, where there are any, their scores.

    A small image is enlarged first, by a whole factor and without smoothing, so that names can be read.

    Args:
        image: to draw on a copy of.
        boxes: (n, 4) left, top, right, bottom in the image's pixels; those with a higher score are drawn later.
        labels: (n,), from 0.
        scores: (n,), or None.
        class_names: by label; a label beyond them is shown as a number.
    """
    factor = max(1, -(-_SMALLEST // max(image.shape[:2])))
    canvas = Image.fromarray(np.ascontiguousarray(image).repeat(factor, axis=0).repeat(factor, axis=1))
    pen = ImageDraw.Draw(canvas)
    size = max(10, round(max(canvas.size) / 26))
    font = ImageFont.load_default(size)
    width = max(2, max(canvas.size) // 150)
    colours = class_colours([_BACKGROUNDS[0], *class_names])  # as in masks, where that comes first
    texts = []
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for place in order:
        label = int(labels[place])
        is_named = 0 <= label < len(class_names)
        colour = _colour(colours[label + 1]) if is_named else UNKNOWN
        name = _short(class_names[label]) if is_named else str(label)
        text = name if scores is None else f"{name} {float(scores[place]):.2f}"
        left, top, right, bottom = (float(edge) * factor for edge in boxes[place])
        if not (np.isfinite([left, top, right, bottom]).all() and right > left and bottom > top):
            continue
        pen.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=width)
        texts.append((text, (left, top), colour))
    for text, corner, colour in texts:  # over all boxes
        _write(pen, text, corner, colour, font, canvas.size)
    return np.asarray(canvas)


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: Colour,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Write a text on its colour above a box's left upper corner, or inside where there is no room."""
    start, above, end, below = pen.textbbox((0, 0), text, font=font)
    wide, tall = end - start + 4, below - above + 4
    left = min(max(corner[0], 0), max(size[0] - wide, 0))
    top = corner[1] - tall if corner[1] >= tall else max(corner[1], 0)
    pen.rectangle((left, top, left + wide, top + tall), fill=colour)
    is_light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 128
    pen.text((left + 2 - start, top + 2 - above), text, fill="black" if is_light else "white", font=font)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _colour(row: NDArray[np.uint8]) -> Colour:
    red, green, blue = (int(value) for value in row)
    return red, green, blue
