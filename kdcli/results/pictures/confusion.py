"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.results.pictures.style import (
    FAINT,
    GREY,
    INK,
    NAME_LENGTH,
    as_array,
    draw_title,
    drawable,
    new_figure,
    save_figure,
)

_MAX_COUNTED_CLASSES, _MAX_NAMED_CLASSES = 15, 100
"""Up to these numbers of classes a confusion matrix has counts in its cells, and names along its axes."""


def plot_confusion(path: str | Path, counts: Any, *, class_names: Sequence[str], title: str, subtitle: str) -> Path:
    """Draw a confusion matrix: each row is a true class, its colours are the shares of its predictions.

    Up to 15 classes the counts stand in the cells; up to 100 the classes are named, above that numbered. A class
    without images is a grey row.

    Args:
        path: the PNG to write, a square that grows with the number of classes; its folder is created.
        counts: ``(C, C)`` images, rows are true classes, columns predicted ones.
        class_names: ``(C,)``, in the order of the rows.
        title: heading of the picture.
        subtitle: the line below it.

    Returns:
        The path.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    matrix = as_array(counts, 2, "counts")
    num_classes = len(matrix)
    if matrix.shape != (num_classes, num_classes) or len(class_names) != num_classes:
        raise ValueError(
            f"counts must be square with a name for each row, got {matrix.shape}, {len(class_names)} names"
        )
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)

    side = float(np.clip(3.5 + 0.13 * num_classes, 6.0, 16.5))
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    # The square root makes a share of 1 % visible.
    colormap = colormaps["Blues"].with_extremes(bad="#D9D9D9")
    image = axes.imshow(shares, cmap=colormap, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    axes.spines[:].set_color(FAINT)
    axes.tick_params(colors=GREY, labelcolor=INK, length=2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_classes <= _MAX_NAMED_CLASSES:
        names = [
            name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…" for name in map(drawable, class_names)
        ]
        font_size = float(np.interp(num_classes, [15, _MAX_NAMED_CLASSES], [9, 6]))
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=font_size, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=font_size, parse_math=False)
    if num_classes <= _MAX_COUNTED_CLASSES:
        for row, column in np.ndindex(matrix.shape):
            color = "white" if shares[row, column] > 0.4 else INK if matrix[row, column] else GREY
            axes.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", fontsize=9, color=color)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"])
    bar.set_label("share of the true class", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, colors=GREY, labelcolor=INK)
    bar.outline.set_visible(False)
    draw_title(axes, title, subtitle if totals.all() else f"{subtitle}; grey: no images", gap=8)
    return save_figure(figure, path)
