"""Pictures of samples in a grid: input, target, and what each model makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.results.pictures.style import DPI, GREY, INK, drawable, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.gridspec import SubplotSpec

    from kdcli.tasks.reports import Panel, Scale

_SIDE = 2.0
"""Inches of a picture."""
_ACROSS = 6
"""Samples of one picture each, side by side."""
_LINE = 0.15
"""Inches of a line of a picture's title."""
_ENTRY, _MOST_ENTRIES = (1.35, 0.2), 60
"""Inches of a class in the legend, and how many are named."""
_SCALE = 0.5
"""Inches of a scale of colours with its numbers."""
_TITLE_WIDTH = 36
"""Characters of a line of a picture's title."""


def plot_samples(path: str | Path, rows: Sequence[Sequence[Panel]], *, title: str) -> Path:
    """Draw the pictures of every sample in a row, or where each has but one, several samples in a row.

    What their colours mean stands below all of them, once: one legend of the classes that any of them shows, and every
    scale of numbers.

    Args:
        path: the PNG to write; its folder is created.
        rows: of every sample pictures; samples with fewer than others leave places empty.
        title: heading.

    Returns:
        The path.
    """
    most = max(map(len, rows))
    across = most if most > 1 else min(_ACROSS, len(rows))
    if most == 1:
        flat = [panel for row in rows for panel in row]
        rows = [flat[start : start + across] for start in range(0, len(flat), across)]
    panels = [panel for row in rows for panel in row]
    entries, scales = _keys(panels)
    width = max(_SIDE * across, 4.0)
    tall = min(max(max(panel.image.shape[0] / panel.image.shape[1] for panel in panels), 0.3), 2.0)
    lines = max(panel.title.count("\n") + 1 for panel in panels)
    columns = max(1, int(width / _ENTRY[0]))
    per_row = max(1, int(width / 3.5))
    heights = [_SIDE * tall + _LINE * lines + 0.08] * len(rows)
    heights += [math.ceil(len(entries) / columns) * _ENTRY[1] + 0.1] if entries else []
    heights += [_SCALE] * math.ceil(len(scales) / per_row)
    figure = new_figure(width, sum(heights) + 0.5)
    figure.suptitle(drawable(title), x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for place, row in enumerate(rows):
        inner = grid[place].subgridspec(1, across)
        for column, panel in enumerate(row):
            _draw_panel(figure.add_subplot(inner[column]), panel)
    if entries:
        _draw_legend(figure.add_subplot(grid[len(rows)]), entries, columns)
    for start in range(0, len(scales), per_row):
        below = len(rows) + bool(entries) + start // per_row
        _draw_scales(figure, grid[below], scales[start : start + per_row], per_row)
    return save_figure(figure, path)


def _keys(panels: Sequence[Panel]) -> tuple[dict[int, tuple[str, Any]], list[Scale]]:
    """Return the classes of all legends by their numbers, and the scales that differ."""
    from kdcli.tasks.reports import Legend, Scale

    entries: dict[int, tuple[str, Any]] = {}
    scales: dict[Scale, None] = {}
    for panel in panels:
        if isinstance(panel.key, Legend):
            entries.update(panel.key.entries)
        elif isinstance(panel.key, Scale):
            scales[panel.key] = None
    return dict(sorted(entries.items(), key=lambda entry: (entry[0] < 0, abs(entry[0])))), list(scales)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.axis("off")
    is_small = max(panel.image.shape[:2]) < _SIDE * DPI * 0.9
    axes.imshow(panel.image, interpolation="nearest" if is_small else "hanning")
    axes.set_title(_cut(drawable(panel.title)), fontsize=8, color=GREY, parse_math=False)


def _cut(title: str) -> str:
    lines = title.split("\n")
    return "\n".join(line if len(line) <= _TITLE_WIDTH else f"{line[: _TITLE_WIDTH - 1]}…" for line in lines)


def _draw_legend(axes: Axes, entries: dict[int, tuple[str, Any]], columns: int) -> None:
    from matplotlib.patches import Patch

    axes.axis("off")
    shown = list(entries.values())
    if len(shown) > _MOST_ENTRIES:
        shown = [*shown[: _MOST_ENTRIES - 1], (f"and {len(shown) - _MOST_ENTRIES + 1} more", (255, 255, 255))]
    patches = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colour), edgecolor=GREY, linewidth=0.4, label=_named(name))
        for name, colour in shown
    ]
    drawn = axes.legend(
        handles=patches,
        loc="center left",
        ncols=columns,
        fontsize=8,
        frameon=False,
        borderaxespad=0.0,
        handlelength=1.2,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def _named(name: str) -> str:
    name = drawable(name)
    name = name if len(name) <= 18 else f"{name[:17]}…"
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves out what begins so


def _draw_scales(figure: Any, place: SubplotSpec, scales: Sequence[Scale], per_row: int) -> None:
    inner = place.subgridspec(1, per_row)
    for column, scale in enumerate(scales):
        axes = figure.add_subplot(inner[column])
        levels = np.linspace(0, 1, 256)[None]
        extent = (scale.low, scale.high, 0, 1)
        axes.imshow(levels, cmap=scale.colours, aspect="auto", extent=extent, interpolation="nearest", vmin=0, vmax=1)
        axes.set_yticks([])
        axes.tick_params(labelsize=7, colors=GREY, labelcolor=INK, length=2)
        axes.set_title(drawable(scale.label), fontsize=8, color=GREY, parse_math=False, pad=2)
