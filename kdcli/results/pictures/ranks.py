"""The ranks of several projectors side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.projectors.spectra import DEFAULT_RELATIVE_THRESHOLD, rank_evolution
from kdcli.results.pictures.style import (
    INK,
    RANK_STYLES,
    as_array,
    drawable,
    heading,
    log_limits,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_COLUMNS = 4


_MAX_PANEL_CURVES = 32


_PANEL_LINE = 32
"""Characters of a line of the name over a narrow panel."""


def plot_ranks(
    path: str | Path,
    panels: Sequence[tuple[str, str, Any, Any]],
    *,
    title: str,
    relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD,
) -> Path:
    """Draw how several projectors evolved side by side, with the same axes for all.

    A projector has two panels: its singular values relative to the largest one at the start, as in Figure 3 of
    "Learning to Project for Cross-Task Knowledge Distillation" (BMVC 2024, arXiv 2403.14494), on a logarithmic axis;
    and below them its three ranks as shares of the full one. Of more than 32 singular values 32 evenly spaced ones are
    drawn. Time is the share of the training.

    Args:
        path: the PNG to write, up to four projectors wide; its folder is created.
        panels: of each projector its name, a line below it, ``(T,)`` steps, and ``(T, r)`` singular values, descending
            along ``r``; T and r may differ.
        title: heading of the picture.
        relative_threshold: of the numerical rank.

    Returns:
        The path.
    """
    num_columns = min(_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = new_figure(max(1.2 + 2.9 * num_columns, 6.5), 1.2 + 4.3 * num_rows)
    grid = figure.add_gridspec(2 * num_rows, num_columns, height_ratios=(2.0, 1.2) * num_rows)
    curves = [_relative_spectra(steps, values) for _, _, steps, values in panels]
    top = max(float(spectra.max()) for _, spectra in curves)
    low = min(log_limits(spectra, relative_threshold * float(spectra.max()))[0] for _, spectra in curves)
    for number, ((name, remark, _, _), (x, spectra)) in enumerate(zip(panels, curves, strict=True)):
        row, column = divmod(number, num_columns)
        upper = figure.add_subplot(grid[2 * row, column])
        lower = figure.add_subplot(grid[2 * row + 1, column], sharex=upper)
        _draw_panel_values(upper, x, spectra, low=low, top=1.6 * top)
        _draw_panel_ranks(lower, x, spectra, relative_threshold)
        lines = textwrap.wrap(drawable(name).replace("/", "/ "), _PANEL_LINE)
        name = "\n".join(line.replace("/ ", "/") for line in lines)
        upper.set_title(f"{name}\n{drawable(remark)}", loc="left", fontsize=9.5, color=INK, parse_math=False)
        upper.tick_params(labelbottom=False)
        if column:
            upper.tick_params(labelleft=False, which="both")
            lower.tick_params(labelleft=False)
        else:
            upper.set_ylabel("singular value\nover the largest at the start", fontsize=9)
            lower.set_ylabel("rank, % of full", fontsize=9)
        if number + num_columns >= len(panels):
            lower.set_xlabel("% of the training", fontsize=9)
    heading(figure, title, "singular values from the largest (dark) to the smallest (light); the same axes for all")
    handles, names = lower.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=3, fontsize=9, frameon=False)
    return save_figure(figure, path)


def _relative_spectra(steps: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the training in percent (T,), and singular values (T, r) over the largest at the start."""
    x, spectra = as_array(steps, 1, "steps"), as_array(values, 2, "values")
    if x.size != len(spectra):
        raise ValueError(f"values must hold one spectrum for each of the {x.size} steps, got {len(spectra)}")
    return 100 * x / (x[-1] or 1.0), spectra / (float(spectra[0].max()) or 1.0)


def _draw_panel_values(axes: Axes, x: np.ndarray, spectra: np.ndarray, *, low: float, top: float) -> None:
    from matplotlib import colormaps

    style_axes(axes)
    num_values = spectra.shape[1]
    chosen = np.unique(np.linspace(0, num_values - 1, min(num_values, _MAX_PANEL_CURVES)).round().astype(int))
    marker = "o" if x.size == 1 else ""
    for index in chosen[::-1]:  # the largest values on top
        color = colormaps["viridis"](0.9 * index / max(num_values - 1, 1))
        axes.plot(x, np.maximum(spectra[:, index], low / 10), color=color, linewidth=1.0, marker=marker, markersize=3)
    axes.set_yscale("log")
    axes.set_ylim(low, top)


def _draw_panel_ranks(axes: Axes, x: np.ndarray, spectra: np.ndarray, relative_threshold: float) -> None:
    style_axes(axes)
    marker = "o" if x.size == 1 else ""
    for name, ranks in rank_evolution(list(spectra), relative_threshold=relative_threshold).items():
        axes.plot(
            x, 100 * np.asarray(ranks) / spectra.shape[1], label=f"{name} rank", marker=marker, **RANK_STYLES[name]
        )
    axes.set_xlim(-3, 103)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 50, 100])
