"""Learning curves of several runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.results.pictures.style import (
    FEW_STEPS,
    GREY,
    INK,
    drawable,
    group_style,
    limit_x,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_LABEL_LENGTH = 46
"""Characters of a draw_legend's entry: with more, two do not fit beside each other. The end of a long name is kept."""


def plot_learning_curves(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]],
    *,
    title: str,
    logarithmic: Collection[str] = (),
    epoch_steps: float | None = None,
) -> Path:
    """Draw panels below one another, each with a curve a group over the epochs, or the steps.

    A group's line is the mean over its runs at the steps that all of them recorded, its band their range, and its thin
    lines the runs; a run without any record is left out.

    Args:
        path: the PNG to write, 1350 pixels wide and the higher the more rows the draw_legend takes; its folder is
            created.
        panels: label of the vertical axis -> name of a group -> one curve a run, each from step to value. Every panel
            has the same groups.
        title: heading of the picture.
        logarithmic: labels of the panels that get a logarithmic axis where their values are positive and span more
            than a factor of ten.
        epoch_steps: optimiser steps in one epoch, to count epochs on the horizontal axis; None counts steps.

    Returns:
        The path.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    groups_of_first = next(iter(panels.values()))
    names = [
        name if len(name) <= _LABEL_LENGTH else f"…{name[1 - _LABEL_LENGTH :]}"
        for name in map(drawable, groups_of_first)
    ]
    num_columns = min(4, len(names), max(1, 112 // (max(map(len, names)) + 10)))
    num_rows = -(-len(names) // num_columns)
    figure = new_figure(9.0, 0.9 + 2.7 * len(panels) + 0.22 * num_rows)
    stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, groups) in zip(stack, panels.items(), strict=True):
        style_axes(axes)
        for number, curves in enumerate(groups.values()):
            scaled = [{step / (epoch_steps or 1): value for step, value in curve.items()} for curve in curves if curve]
            _draw_group(axes, scaled, number, opacity=1 if len(names) <= 4 else 0.5)
        values = [value for curves in groups.values() for curve in curves for value in curve.values()]
        if label in logarithmic and values and 0 < 10 * min(values) < max(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(drawable(label), parse_math=False)
    steps = {step for groups in panels.values() for curves in groups.values() for curve in curves for step in curve}
    if steps:
        limit_x(stack[-1], np.array(sorted(steps), dtype=np.float64) / (epoch_steps or 1))
    stack[-1].set_xlabel("step" if epoch_steps is None else "epoch")
    figure.suptitle(drawable(title), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    if any(len(curves) > 1 for curves in groups_of_first.values()):
        subtitle = "bold: mean over the seeds; band: their range; thin: each seed"
        stack[0].set_title(subtitle, loc="left", fontsize=9.5, color=GREY)
    lines = [_group_line(number) for number in range(len(names))]
    legend = figure.legend(
        lines, names, loc="outside lower left", ncols=num_columns, fontsize=9, frameon=False, handlelength=3.6
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return save_figure(figure, path)


def _group_line(number: int) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=2.0, markersize=4, **group_style(number))


def _draw_group(axes: Axes, curves: Sequence[Mapping[float, float]], number: int, *, opacity: float) -> None:
    if not curves:
        return
    style = group_style(number)
    color, marker = style["color"], style.pop("marker")
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for step in common] for curve in curves], dtype=np.float64)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=color, linewidth=0.7, alpha=0.5 * opacity)
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(common, low, high, color=color, alpha=0.12 * opacity, linewidth=0)
    marker = marker if len(common) <= FEW_STEPS else ""
    axes.plot(common, values.mean(axis=0), linewidth=2.0, markersize=4, marker=marker, **style)
