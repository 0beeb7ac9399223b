"""Features in the plane, and the loss around an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.results.pictures.style import (
    BLUE,
    FAINT,
    GREY,
    GROUP_COLORS,
    GROUP_STYLES,
    INK,
    NAME_LENGTH,
    NOTHING,
    VERMILLION,
    as_array,
    drawable,
    group_style,
    heading,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MAX_MARKED_CLASSES = len(GROUP_COLORS) * len(GROUP_STYLES)
"""So many classes are told apart by colour and marker; the others are grey."""


def plot_tsne(
    path: str | Path,
    panels: Mapping[str, Any],
    *,
    title: str,
    subtitle: str,
    remarks: Mapping[str, str],
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
) -> Path:
    """Draw four layouts of the same samples, coloured by class.

    As in Figure 3 of VkD (CVPR 2024, arXiv 2403.06213). Classes are told apart by one of 7 colours and 3 markers; of
    more than 21 classes the most frequent get them.

    Args:
        path: the PNG to write, 1350 pixels wide and the higher the more rows the draw_legend takes; its folder is
            created.
        panels: name -> ``(N, 2)`` points, up to four.
        title: heading of the picture.
        subtitle: the line below it.
        remarks: what to write beside a panel's name, by the name.
        labels: N class indices, negative for none; None to leave the colours out.
        class_names: by index.

    Returns:
        The path.
    """
    points = {name: as_array(values, 2, f"panels[{name!r}]") for name, values in panels.items()}
    count = len(next(iter(points.values())))
    classes = np.full(count, -1) if labels is None else np.asarray(labels)
    if any(values.shape != (count, 2) for values in points.values()) or classes.shape != (count,):
        raise ValueError(f"every panel must hold {count} points (x, y) and every point have a label")
    groups = _class_groups(classes, class_names, has_labels=labels is not None)
    num_columns = min(5, len(groups), max(1, 120 // (max(len(name) for name, _, _ in groups) + 6)))
    num_rows = -(-len(groups) // num_columns)

    figure = new_figure(9.0, 9.2 + 0.2 * num_rows)
    grid = figure.subplots(2, 2, squeeze=False).ravel()
    for axes in grid[len(points) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid, points.items(), strict=False):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(FAINT)
        for _, style, members in groups:
            axes.scatter(*values[members].T, s=15, linewidths=0, alpha=0.8, **style)
        axes.margins(0.04)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(name, loc="left", fontsize=10.5, color=INK)
        if remark := remarks.get(name):
            axes.set_title(remark, loc="right", fontsize=9.5, color=GREY)
    heading(figure, title, subtitle)
    if labels is not None:
        legend = figure.legend(
            [_class_marker(style) for _, style, _ in groups],
            [name for name, _, _ in groups],
            loc="outside lower left",
            ncols=num_columns,
            fontsize=9,
            frameon=False,
            handletextpad=0.2,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return save_figure(figure, path)


def _class_groups(
    classes: np.ndarray, class_names: Sequence[str], *, has_labels: bool
) -> list[tuple[str, dict[str, Any], np.ndarray]]:
    """Return name, style and members (N,) of every group of points, those without a class of their own first."""
    found, counts = np.unique(classes[classes >= 0], return_counts=True)
    most_frequent = found[np.argsort(-counts, kind="stable")][:_MAX_MARKED_CLASSES]
    others = np.setdiff1d(found, most_frequent)
    groups: list[tuple[str, dict[str, Any], np.ndarray]] = []
    if (classes < 0).any():
        color = FAINT if has_labels else BLUE
        groups.append(("no label", {"color": color, "marker": "o"}, classes < 0))
    if others.size:
        name = "1 other class" if others.size == 1 else f"{others.size} other classes"
        groups.append((name, {"color": FAINT, "marker": "s"}, np.isin(classes, others)))
    for number, index in enumerate(np.sort(most_frequent)):
        name = drawable(class_names[index])
        name = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
        style = group_style(number)
        groups.append((name, {"color": style["color"], "marker": style["marker"]}, classes == index))
    return groups


def _class_marker(style: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", markersize=6, markeredgewidth=0, **style)


def plot_landscape(
    path: str | Path,
    positions: Sequence[float],
    panels: Mapping[str, Any],
    *,
    title: str,
    subtitle: str,
    remarks: Mapping[str, str],
) -> Path:
    """Draw a loss over two directions of the input, a panel a loss, each with a scale of its own.

    As in Figure 4 of VkD (CVPR 2024, arXiv 2403.06213).

    Args:
        path: the PNG to write, 750 pixels wide a panel; its folder is created.
        positions: n values along both directions.
        panels: name -> ``(n, n)`` losses, by the first and the second direction.
        title: heading of the picture.
        subtitle: the line below it.
        remarks: the line below a panel's name, by the name.

    Returns:
        The path.
    """
    grids = {name: as_array(values, 2, f"panels[{name!r}]") for name, values in panels.items()}
    if any(grid.shape != (len(positions),) * 2 for grid in grids.values()):
        raise ValueError(f"every panel must be {len(positions)} x {len(positions)}")
    figure = new_figure(5.0 * len(grids), 5.2)
    for axes, (name, grid) in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids.items(), strict=True):
        _draw_landscape(axes, positions, grid)
        axes.set_title(f"{name}\n{remarks.get(name, '')}".rstrip(), loc="left", fontsize=10, color=INK)
    heading(figure, title, subtitle)
    return save_figure(figure, path)


def _draw_landscape(axes: Axes, positions: Sequence[float], losses: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_aspect("equal")
    axes.spines[:].set_color(FAINT)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
    axes.set_xlabel("along the first direction")
    axes.set_ylabel("along the second direction")
    low, high = float(losses.min()), float(losses.max())
    if high - low <= NOTHING * abs(high):  # a contour needs a difference
        levels: Sequence[float] = [low - max(abs(low), 1.0) / 2, low + max(abs(low), 1.0) / 2]
    else:
        levels = MaxNLocator(14).tick_values(low, high)
    filled = axes.contourf(positions, positions, losses.T, levels=levels, cmap="viridis")
    axes.contour(filled, colors="white", linewidths=0.5, alpha=0.6)
    axes.plot(0, 0, marker="P", markersize=9, color=VERMILLION, markeredgecolor="white", linestyle="")
    axes.set_box_aspect(1)
    bar = axes.figure.colorbar(filled, ax=axes, fraction=0.045, pad=0.02)
    bar.ax.tick_params(labelsize=8.5, colors=GREY, labelcolor=INK)
    bar.outline.set_visible(False)
