"""What all pictures share: colours, text, axes, and how they are saved."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.base.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 150


# Okabe & Ito's palette: told apart with every common colour blindness.
BLUE, _ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"


INK, GREY, FAINT = "#222222", "#6B6B6B", "#C4C4C4"


RANK_STYLES: dict[str, dict[str, Any]] = {
    "numerical": {"color": BLUE, "linestyle": "-", "linewidth": 3.4},
    "effective": {"color": _ORANGE, "linestyle": "-", "linewidth": 2.2},
    "stable": {"color": INK, "linestyle": "--", "linewidth": 1.1},
}
"""Ever thinner in the order of drawing: the three coincide for an orthogonal projector."""


NOTHING = 1e-8
"""Terms and energies below this fraction of the largest are drawn as nothing."""


FEW_STEPS = 12
"""Up to this number of recorded steps each is marked."""


NAME_LENGTH = 24
"""Longer class names are cut."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """Give axes the lines, ticks and colours that all have."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
    axes.tick_params(which="minor", length=2)
    axes.grid(True, which="major", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def integer_ticks(axis: Any, *, num_ticks: int = 9) -> None:
    """Put ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(num_ticks, integer=True))


def draw_title(axes: Axes, title: str, subtitle: str, *, gap: float = 27) -> None:
    """Put both above the axes, with ``gap`` points below them, by default for a draw_legend."""
    # A run's name is no formula: between dollar signs matplotlib would look for one.
    title, subtitle = drawable(title), drawable(subtitle)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=gap + 15, parse_math=False)
    axes.annotate(
        subtitle,
        (0, 1),
        xytext=(0, gap),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9.5,
        color=GREY,
        annotation_clip=False,
        parse_math=False,
    )


def draw_legend(axes: Axes, *, source: Axes | None = None) -> None:
    """Put the legend of ``source`` in a row between subtitle and axes: inside, some spectrum would cross it."""
    axes.legend(
        *(source or axes).get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=4,
        fontsize=9,
        frameon=False,
        columnspacing=1.6,
        borderpad=0.0,
        borderaxespad=0.5,
        handlelength=1.8,
    )


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG whole or not at all, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    return path


def drawable(text: str) -> str:
    r"""Return ``text`` with characters that the font lacks as their code, ``\u82f9``: they would be drawn as boxes."""
    known = _characters() | set(map(ord, "\t\n"))
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in text)


@cache
def _characters() -> frozenset[int]:
    """Return the code points of matplotlib's fonts, by its own settings."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [findfont(FontProperties(family=[family])) for family in FontProperties().get_family()]
    return frozenset().union(*(get_font(file).get_charmap() for file in files))


def as_array(values: Any, ndim: int, name: str) -> np.ndarray:
    """Return a tensor, as_array or nested list as a float64 as_array with ``ndim`` dimensions, none empty."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of {ndim} dimension(s), got shape {array.shape}")
    return array


def log_limits(values: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return y limits that show the finite positive ``values`` and the threshold, at most two decades below it.

    What is smaller, zero included, runs off the lower edge: its exact size says nothing any more.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size == 0:
        return 1e-3, 1.0
    top = float(positive.max())
    if threshold <= 0:
        return float(positive.min()) * 0.5, top * 1.6
    return max(min(float(positive.min()), threshold) * 0.5, threshold * 1e-2), top * 1.6


def limit_x(axes: Axes, x: np.ndarray) -> None:
    """Let axes begin and end with the data ``x`` (n,)."""
    if x.size == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)
        axes.set_xticks([x[0]], [f"{x[0]:g}"])
        return
    margin = 0.015 * (x[-1] - x[0])
    axes.set_xlim(x[0] - margin, x[-1] + margin)
    if x.size == 2:
        axes.set_xticks(x, [f"{v:g}" for v in x])


GROUP_COLORS = (BLUE, VERMILLION, "#009E73", INK, "#CC79A7", _ORANGE, "#56B4E9")
"""Okabe & Ito's without the yellow, which a line on white can't carry."""


GROUP_STYLES = (("-", "o"), ("--", "s"), (":", "^"))
"""Line and marker of the first seven groups, the next seven, and so on."""


def group_style(number: int) -> dict[str, Any]:
    """Return colour, line and marker of the group with this number."""
    linestyle, marker = GROUP_STYLES[number // len(GROUP_COLORS) % len(GROUP_STYLES)]
    return {"color": GROUP_COLORS[number % len(GROUP_COLORS)], "linestyle": linestyle, "marker": marker}


_HEADING = 0.62
"""Inches for the two lines over the panels of a picture."""


def heading(figure: Figure, title: str, subtitle: str) -> None:
    """Put title and subtitle over all panels, which make room for them."""
    height = float(figure.get_figheight())
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - _HEADING / height))
    # A run's name is no formula: between dollar signs matplotlib would look for one.
    style: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    for text, down, size, color in ((title, 0.1, 12, INK), (subtitle, 0.36, 9.5, GREY)):
        weight = "bold" if color == INK else "normal"
        figure.text(0.012, 1 - down / height, drawable(text), fontsize=size, fontweight=weight, color=color, **style)
