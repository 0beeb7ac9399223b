"""Pictures of samples in a grid: input, target, and what each model makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.results.pictures.style import GREY, INK, drawable, new_figure, save_figure

if TYPE_CHECKING:
    from kdcli.tasks.reports import Panel

_SIDE = 1.9
"""Inches of a picture."""
_ACROSS = 6
"""Samples of one picture each, side by side."""


def plot_samples(path: str | Path, rows: Sequence[Sequence[Panel]], *, title: str) -> Path:
    """Draw the pictures of every sample in a row, or where each has but one, several samples in a row.

    Args:
        path: the PNG to write; its folder is created.
        rows: of every sample as many pictures.
        title: heading.

    Returns:
        The path.
    """
    panels = [panel for row in rows for panel in row]
    across = len(rows[0]) if len(rows[0]) > 1 else min(_ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(max(_SIDE * across, 4.0), (_SIDE + 0.35) * down + 0.5)
    figure.suptitle(drawable(title), x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.imshow(panel.image, interpolation="nearest")
        axes.set_title(drawable(panel.title), fontsize=8, color=GREY, parse_math=False)
    return save_figure(figure, path)
