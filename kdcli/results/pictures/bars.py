"""Methods by one metric, with the interval over their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.results.pictures.style import BLUE, INK, drawable, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from kdcli.results.methods_table import Bar

_ALIKE = 0.3
"""Where all values are within this share of the largest, bars from 0 would look the same."""


def plot_bars(path: Path, bars: Sequence[Bar], *, label: str) -> Path:
    """Draw a bar for each method, from 0 to the mean over its seeds, with its 95 % t-interval and a dot for each seed.

    Where the bars would look alike, the axis starts further on, and a dot at the mean stands in place of each bar.

    Args:
        path: the PNG to write.
        bars: at least one, the first at the top.
        label: of the axis.

    Returns:
        The path.
    """
    figure = new_figure(8.0, 1.1 + 0.42 * len(bars))
    axes = figure.subplots()
    style_axes(axes)
    values = [value for bar in bars for value in bar.values]
    ends = [end for bar in bars for end in (bar.low, bar.high) if end is not None]
    are_alike = min(values) > 0 and max(values) - min(values) < _ALIKE * max(values)
    for place, bar in enumerate(bars):
        if are_alike:
            axes.plot([bar.mean], [place], marker="D", markersize=7, color=BLUE, zorder=3)
        else:
            axes.barh(place, bar.mean, height=0.62, color=BLUE, alpha=0.35)
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.6, zorder=2)
        if len(bar.values) > 1:
            axes.plot(bar.values, [place] * len(bar.values), ".", color=INK, markersize=4, alpha=0.6, zorder=4)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    if are_alike:  # an interval of two seeds can be far wider than all values: it is cut off
        spread = (max(values) - min(values)) or abs(max(values)) * 0.1
        low, high = min([*values, *ends]), max([*values, *ends])
        axes.set_xlim(
            max(low, min(values) - 2 * spread) - 0.1 * spread, min(high, max(values) + 2 * spread) + 0.1 * spread
        )
    elif min(values) >= 0:
        axes.set_xlim(0, min(max([*values, *ends]), 2 * max(values)) * 1.05 or 1)
    names = [drawable(bar.name) for bar in bars]
    axes.set_yticks(range(len(bars)), [f"{name}\n{_told(bar)}" for name, bar in zip(names, bars, strict=True)])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_xlabel(drawable(label), parse_math=False)
    return save_figure(figure, path)


def _told(bar: Bar) -> str:
    number = f"{bar.mean:.2f}" if abs(bar.mean) >= 1 else f"{bar.mean:.4f}"
    return number if len(bar.values) == 1 else f"{number} ({len(bar.values)} seeds)"
