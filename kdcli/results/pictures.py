"""Pictures of what ``analysis`` computes: PNG files for a run's README.

Figures are made through matplotlib's object API on the Agg canvas: no display, no pyplot, no global state changed.
matplotlib is imported on first use. Every file is written to a temporary name beside it and renamed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.base.files import write_atomically
from kdcli.projectors.spectra import DEFAULT_RELATIVE_THRESHOLD, Decomposition, rank_evolution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
MAX_CURVES = 64

# Okabe & Ito's palette: told apart with every common colour blindness.
_BLUE, _ORANGE, _VERMILLION = "#0072B2", "#E69F00", "#D55E00"
_INK, _GREY, _FAINT = "#222222", "#6B6B6B", "#C4C4C4"
_RANK_STYLES: dict[str, dict[str, Any]] = {
    "numerical": {"color": _BLUE, "linestyle": "-", "linewidth": 3.4},
    "effective": {"color": _ORANGE, "linestyle": "-", "linewidth": 2.2},
    "stable": {"color": _INK, "linestyle": "--", "linewidth": 1.1},
}
"""Ever thinner in the order of drawing: the three coincide for an orthogonal projector."""
_MANY = 80
"""Above this number of directions single markers and bars would merge; lines and filled steps are drawn instead."""
_NOTHING = 1e-8
"""Terms and energies below this fraction of the largest are drawn as nothing."""
_FEW_STEPS = 12
"""Up to this number of recorded steps each is marked."""
_MAX_COUNTED_CLASSES, _MAX_NAMED_CLASSES = 15, 100
"""Up to these numbers of classes a confusion matrix has counts in its cells, and names along its axes."""
_NAME_LENGTH = 24
"""Longer class names are cut."""


# --- shared ----------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_GREY, labelcolor=_INK, labelsize=9)
    axes.tick_params(which="minor", length=2)
    axes.grid(True, which="major", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def _integer_ticks(axis: Any, *, num_ticks: int = 9) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(num_ticks, integer=True))


def _title(axes: Axes, title: str, subtitle: str, *, gap: float = 27) -> None:
    """Put both above the axes, with ``gap`` points below them, by default for a legend."""
    # A run's name is no formula: between dollar signs matplotlib would look for one.
    title, subtitle = _drawable(title), _drawable(subtitle)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=gap + 15, parse_math=False)
    axes.annotate(
        subtitle,
        (0, 1),
        xytext=(0, gap),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9.5,
        color=_GREY,
        annotation_clip=False,
        parse_math=False,
    )


def _legend(axes: Axes, *, source: Axes | None = None) -> None:
    """Put the legend of ``source`` in a row between the subtitle and the axes: inside, some spectrum would cross it."""
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


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    return path


def _drawable(text: str) -> str:
    r"""Return ``text`` with characters that the font has not as their code, ``\u82f9``: they would be drawn as boxes."""
    known = _characters() | set(map(ord, "\t\n"))
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in text)


@cache
def _characters() -> frozenset[int]:
    """Return the code points of matplotlib's fonts, by its own settings."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [findfont(FontProperties(family=[family])) for family in FontProperties().get_family()]
    return frozenset().union(*(get_font(file).get_charmap() for file in files))


def _array(values: Any, ndim: int, name: str) -> np.ndarray:
    """Return a tensor, array or nested list as a float64 array with ``ndim`` dimensions, none empty."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of {ndim} dimension(s), got shape {array.shape}")
    return array


def _log_limits(values: np.ndarray, threshold: float) -> tuple[float, float]:
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


# --- the spectrum of one projector -----------------------------------------------------------------------------------


def plot_spectrum(
    path: str | Path,
    values: Any,
    *,
    rank: int,
    title: str,
    reference: Any | None = None,
    relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD,
) -> Path:
    """Draw the singular values of a projector on a logarithmic axis, with the threshold of the numerical rank.

    Args:
        path: the PNG to write, 1200 x 675 pixels; its folder is created.
        values: singular values ``(k,)``, descending; tensor, array or list.
        rank: numerical rank, marked: the first ``rank`` values are kept.
        title: heading of the picture.
        reference: singular values at the start of the training, drawn lightly; None to leave them out.
        relative_threshold: the one ``rank`` was computed with.

    Returns:
        The path.
    """
    spectrum = _array(values, 1, "values")
    initial = None if reference is None else _array(reference, 1, "reference")
    threshold = relative_threshold * float(spectrum.max())
    shown = spectrum if initial is None else np.concatenate([spectrum, initial])
    low, high = _log_limits(shown, threshold)

    figure = _figure(8.0, 4.5)
    axes = figure.add_subplot()
    _style(axes)
    index = np.arange(1, spectrum.size + 1)
    marker: dict[str, Any] = {"marker": "o", "markersize": 4.0 if spectrum.size <= _MANY else 0.0, "linewidth": 1.6}
    if initial is not None:
        axes.plot(
            np.arange(1, initial.size + 1), np.maximum(initial, low / 10), color=_FAINT, linewidth=3, label="initial"
        )
    drawn = np.maximum(spectrum, low / 10)
    if rank > 0:
        axes.axvspan(0.5, rank + 0.5, color=_BLUE, alpha=0.08, linewidth=0)
        axes.plot(index[:rank], drawn[:rank], color=_BLUE, label=f"kept ({rank})", **marker)
    if rank < spectrum.size:
        axes.plot(index[rank:], drawn[rank:], color=_VERMILLION, label=f"dropped ({spectrum.size - rank})", **marker)
        axes.axvline(rank + 0.5, color=_BLUE, linewidth=1.0, linestyle=":")
    if threshold > 0:
        label = f"threshold: {relative_threshold:g} of the largest"
        axes.axhline(threshold, color=_GREY, linewidth=1.1, linestyle="--", label=label)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(0.5, max(spectrum.size, initial.size if initial is not None else 0) + 0.5)
    _integer_ticks(axes.xaxis)
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value")
    _title(axes, title, f"numerical rank {rank} of {spectrum.size}, largest singular value {spectrum.max():.3g}")
    _legend(axes)
    return _save(figure, path)


# --- the spectrum over the training ----------------------------------------------------------------------------------


def plot_evolution(
    path: str | Path,
    steps: Any,
    values: Any,
    *,
    ranks: Mapping[str, Sequence[float]],
    title: str,
    epoch_steps: float | None = None,
    relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD,
) -> Path:
    """Draw the singular values over the training, one curve each, with the region of the numerical rank shaded.

    As in Figure 3 of "Learning to Project for Cross-Task Knowledge Distillation" (BMVC 2024, arXiv 2403.14494), on a
    logarithmic axis, with the ranks below it. Of more than 64 singular values, 64 evenly spaced ones are drawn, the first
    and the last among them.

    Args:
        path: the PNG to write, 1200 x 975 pixels; its folder is created.
        steps: ``(T,)`` optimiser steps, ascending; one or two are enough.
        values: ``(T, r)`` singular values, descending along ``r``.
        ranks: name to ``(T,)``, as ``analysis.rank_evolution`` returns them.
        title: heading of the picture.
        epoch_steps: optimiser steps in one epoch, to count epochs on the x axis; None counts steps.
        relative_threshold: of the numerical rank; the shaded region lies above this fraction of each step's largest.

    Returns:
        The path.
    """
    spectra = _array(values, 2, "values")
    x = _array(steps, 1, "steps") / (epoch_steps or 1.0)
    if x.size != spectra.shape[0]:
        raise ValueError(f"values must hold one spectrum for each of the {x.size} steps, got {spectra.shape[0]}")
    rank_curves = {name: _array(rank, 1, f"ranks[{name!r}]") for name, rank in ranks.items()}
    for name, rank in rank_curves.items():
        if len(rank) != x.size:
            raise ValueError(f"ranks[{name!r}] must have one value for each of the {x.size} steps, got {len(rank)}")

    figure = _figure(8.0, 6.5)
    grid = figure.add_gridspec(2, 2, height_ratios=(3.0, 1.25), width_ratios=(1.0, 0.022))
    upper = figure.add_subplot(grid[0, 0])
    lower = figure.add_subplot(grid[1, 0], sharex=upper)
    _draw_curves(upper, figure.add_subplot(grid[0, 1]), x, spectra, relative_threshold)
    _draw_ranks(lower, x, rank_curves, num_values=spectra.shape[1])
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("training step" if epoch_steps is None else "epoch")
    if epoch_steps is None:
        _integer_ticks(lower.xaxis)
    _limit_x(lower, x)
    _title(upper, title, _evolution_subtitle(spectra, rank_curves))
    return _save(figure, path)


def _evolution_subtitle(spectra: np.ndarray, ranks: Mapping[str, np.ndarray]) -> str:
    num_values = spectra.shape[1]
    parts = [f"{num_values} singular values" if num_values > 1 else "1 singular value"]
    if num_values > MAX_CURVES:
        parts[0] += f" ({MAX_CURVES} drawn)"
    if "numerical" in ranks:
        first, last = int(ranks["numerical"][0]), int(ranks["numerical"][-1])
        parts.append(f"numerical rank {first} → {last}" if first != last else f"numerical rank {last}")
    low, high = float(spectra.min()), float(spectra.max())
    if num_values > 1 and high - low <= 1e-3 * high:
        parts.append(f"all curves coincide at {high:.4g}")
    return ", ".join(parts)


def _limit_x(axes: Axes, x: np.ndarray) -> None:
    if x.size == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)
        axes.set_xticks([x[0]], [f"{x[0]:g}"])
        return
    margin = 0.015 * (x[-1] - x[0])
    axes.set_xlim(x[0] - margin, x[-1] + margin)
    if x.size == 2:
        axes.set_xticks(x, [f"{v:g}" for v in x])


def _draw_curves(
    axes: Axes, colorbar_axes: Axes, x: np.ndarray, spectra: np.ndarray, relative_threshold: float
) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    _style(axes)
    largest = spectra.max(axis=1)
    thresholds = relative_threshold * largest
    low, high = _log_limits(spectra, float(thresholds.max()))
    # Viridis without its pale end, which a thin line on white can't carry.
    colormap = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.9, 256)))
    num_values = spectra.shape[1]
    colors = Normalize(1, max(num_values, 2))
    chosen = np.unique(np.linspace(0, num_values - 1, min(num_values, MAX_CURVES)).round().astype(int))

    band_x, bottom, top = x, thresholds, largest
    if x.size == 1:  # a band needs a width
        band_x, bottom, top = np.array([x[0] - 1, x[0] + 1]), np.repeat(bottom, 2), np.repeat(top, 2)
    axes.fill_between(
        band_x,
        np.maximum(bottom, low / 10),
        np.maximum(top, low / 10),
        color=_BLUE,
        alpha=0.10,
        linewidth=0,
        label="region of the numerical rank",
    )
    label = f"threshold: {relative_threshold:g} of the largest"
    axes.plot(
        band_x, np.maximum(bottom, low / 10), color=_VERMILLION, linewidth=1.6, linestyle="--", label=label, zorder=4
    )
    width = float(np.interp(chosen.size, [8, MAX_CURVES], [1.8, 0.9]))
    marker: dict[str, Any] = {"marker": "o", "markersize": 4} if x.size <= _FEW_STEPS else {}
    for index in chosen[::-1]:  # the largest values on top
        curve = np.maximum(spectra[:, index], low / 10)
        axes.plot(x, curve, color=colormap(colors(index + 1)), linewidth=width, **marker)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_ylabel("singular value")
    _legend(axes)

    bar = axes.figure.colorbar(ScalarMappable(colors, colormap), cax=colorbar_axes)
    bar.set_label("index (1 = largest)", fontsize=9, color=_INK)
    bar.set_ticks(np.unique(np.linspace(1, num_values, min(num_values, 5)).round().astype(int)).tolist())
    bar.ax.invert_yaxis()
    bar.ax.tick_params(labelsize=8.5, colors=_GREY, labelcolor=_INK)
    bar.outline.set_visible(False)


def _draw_ranks(axes: Axes, x: np.ndarray, ranks: Mapping[str, np.ndarray], num_values: int) -> None:
    _style(axes)
    axes.axhline(num_values, color=_FAINT, linewidth=1.0)
    marker: dict[str, Any] = {"marker": "o", "markersize": 4} if x.size <= _FEW_STEPS else {}
    for name, rank in ranks.items():
        label = f"{name} ({rank[-1]:.3g} at the end)" if x.size > 1 else f"{name} ({rank[-1]:.3g})"
        axes.plot(x, rank, label=label, **_RANK_STYLES.get(name, {}), **marker)
    axes.set_ylim(0, 1.12 * num_values)
    _integer_ticks(axes.yaxis, num_ticks=4)
    axes.set_ylabel("rank")
    if ranks:
        _legend(axes)


# --- the decomposition of the loss -----------------------------------------------------------------------------------


def plot_decomposition(path: str | Path, decomposition: Decomposition, *, title: str) -> Path:
    """Draw the projection loss: the shares of its two parts, and its terms by direction.

    The line is the target's own energy along each direction: a term that touches it explains nothing of it. The terms'
    axis is logarithmic where they span more than two decades, as those of an inverted projector do.

    Args:
        path: the PNG to write, 1200 x 675 pixels; its folder is created.
        decomposition: what ``analysis.decompose`` returned.
        title: heading of the picture.

    Returns:
        The path.
    """
    figure = _figure(8.0, 4.5)
    upper, lower = figure.subplots(2, 1, height_ratios=(1.0, 11.0))
    _draw_shares(upper, decomposition)
    _draw_terms(lower, decomposition)
    rank, num_directions = decomposition.rank, len(decomposition.terms)
    subtitle = f"loss {decomposition.total_per_sample:.3g} per sample, numerical rank {rank} of {num_directions}"
    _title(upper, title, subtitle)
    _legend(upper, source=lower)
    return _save(figure, path)


def _draw_shares(axes: Axes, decomposition: Decomposition) -> None:
    left = 0.0
    for share, color in ((decomposition.transfer_share, _BLUE), (decomposition.spectral_share, _VERMILLION)):
        axes.barh(0, share, left=left, height=1.0, color=color)
        left += share
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, 0.5)
    axes.set_axis_off()


def _draw_terms(axes: Axes, decomposition: Decomposition) -> None:
    _style(axes)
    axes.grid(False, axis="x")
    terms = np.asarray(decomposition.terms) / decomposition.num_samples
    energy = np.asarray(decomposition.target_energy) / decomposition.num_samples
    rank, num_directions = decomposition.rank, terms.size
    both = np.concatenate([terms, energy])
    top = float(both.max())
    positive = both[both > _NOTHING * top]
    logarithmic = positive.size > 0 and top > 100 * float(positive.min())
    bottom = 0.5 * float(positive.min()) if logarithmic else 0.0

    edges = np.arange(num_directions + 1) + 0.5
    directions = np.arange(1, num_directions + 1)
    parts = (
        ("knowledge transfer", _BLUE, directions <= rank, decomposition.transfer_share),
        ("spectral part", _VERMILLION, directions > rank, decomposition.spectral_share),
    )
    for name, color, part, share in parts:
        # An empty part is drawn too, so that the legend always names both.
        height = np.where(part, np.maximum(terms - bottom, 0.0), 0.0)
        label = f"{name}: {100 * share:.3g} %"
        if num_directions <= _MANY:
            axes.bar(
                directions, height, bottom=bottom, width=1.0, color=color, edgecolor="white", linewidth=0.6, label=label
            )
        else:  # one polygon: thousands of bars would take seconds
            axes.stairs(bottom + height, edges, baseline=bottom, fill=True, color=color, linewidth=0, label=label)
    width = 1.2 if num_directions <= _MANY else 0.6
    label = "energy of the target"
    axes.stairs(np.maximum(energy, bottom), edges, baseline=None, color=_INK, linewidth=width, label=label)
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(bottom, 1.6 * top)
    else:
        axes.set_ylim(0, 1.08 * top or 1.0)
    axes.set_xlim(0.5, num_directions + 0.5)
    _integer_ticks(axes.xaxis)
    axes.set_xlabel("right singular direction of the projector, by descending singular value")
    axes.set_ylabel("squared distance per sample")


# --- learning curves of several runs ---------------------------------------------------------------------------------

_GROUP_COLORS = (_BLUE, _VERMILLION, "#009E73", _INK, "#CC79A7", _ORANGE, "#56B4E9")
"""Okabe & Ito's without the yellow, which a line on white can't carry."""
_GROUP_STYLES = (("-", "o"), ("--", "s"), (":", "^"))
"""Line and marker of the first seven groups, the next seven, and so on."""
_LABEL_LENGTH = 46
"""Characters of a legend's entry: with more, two do not fit beside each other. The end of a long name is kept."""


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
        path: the PNG to write, 1350 pixels wide and the higher the more rows the legend takes; its folder is created.
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
        for name in map(_drawable, groups_of_first)
    ]
    num_columns = min(4, len(names), max(1, 112 // (max(map(len, names)) + 10)))
    num_rows = -(-len(names) // num_columns)
    figure = _figure(9.0, 0.9 + 2.7 * len(panels) + 0.22 * num_rows)
    stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, groups) in zip(stack, panels.items(), strict=True):
        _style(axes)
        for number, curves in enumerate(groups.values()):
            scaled = [{step / (epoch_steps or 1): value for step, value in curve.items()} for curve in curves if curve]
            _draw_group(axes, scaled, number, opacity=1 if len(names) <= 4 else 0.5)
        values = [value for curves in groups.values() for curve in curves for value in curve.values()]
        if label in logarithmic and values and 0 < 10 * min(values) < max(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(_drawable(label), parse_math=False)
    steps = {step for groups in panels.values() for curves in groups.values() for curve in curves for step in curve}
    if steps:
        _limit_x(stack[-1], np.array(sorted(steps), dtype=np.float64) / (epoch_steps or 1))
    stack[-1].set_xlabel("step" if epoch_steps is None else "epoch")
    figure.suptitle(_drawable(title), x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK, parse_math=False)
    if any(len(curves) > 1 for curves in groups_of_first.values()):
        subtitle = "bold: mean over the seeds; band: their range; thin: each seed"
        stack[0].set_title(subtitle, loc="left", fontsize=9.5, color=_GREY)
    lines = [_group_line(number) for number in range(len(names))]
    legend = figure.legend(
        lines, names, loc="outside lower left", ncols=num_columns, fontsize=9, frameon=False, handlelength=3.6
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _save(figure, path)


def _group_line(number: int) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=2.0, markersize=4, **_group_style(number))


def _group_style(number: int) -> dict[str, Any]:
    linestyle, marker = _GROUP_STYLES[number // len(_GROUP_COLORS) % len(_GROUP_STYLES)]
    return {"color": _GROUP_COLORS[number % len(_GROUP_COLORS)], "linestyle": linestyle, "marker": marker}


def _draw_group(axes: Axes, curves: Sequence[Mapping[float, float]], number: int, *, opacity: float) -> None:
    if not curves:
        return
    style = _group_style(number)
    color, marker = style["color"], style.pop("marker")
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for step in common] for curve in curves], dtype=np.float64)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=color, linewidth=0.7, alpha=0.5 * opacity)
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(common, low, high, color=color, alpha=0.12 * opacity, linewidth=0)
    marker = marker if len(common) <= _FEW_STEPS else ""
    axes.plot(common, values.mean(axis=0), linewidth=2.0, markersize=4, marker=marker, **style)


# --- the confusion of one model --------------------------------------------------------------------------------------


def plot_confusion(path: str | Path, counts: Any, *, class_names: Sequence[str], title: str, subtitle: str) -> Path:
    """Draw a confusion matrix: each row is a true class, its colours are the shares of its predictions.

    Up to 15 classes the counts stand in the cells; up to 100 the classes are named, above that numbered. A class without
    images is a grey row.

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

    matrix = _array(counts, 2, "counts")
    num_classes = len(matrix)
    if matrix.shape != (num_classes, num_classes) or len(class_names) != num_classes:
        raise ValueError(
            f"counts must be square with a name for each row, got {matrix.shape}, {len(class_names)} names"
        )
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)

    side = float(np.clip(3.5 + 0.13 * num_classes, 6.0, 16.5))
    figure = _figure(side, side)
    axes = figure.add_subplot()
    # The square root makes a share of 1 % visible.
    colormap = colormaps["Blues"].with_extremes(bad="#D9D9D9")
    image = axes.imshow(shares, cmap=colormap, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    axes.spines[:].set_color(_FAINT)
    axes.tick_params(colors=_GREY, labelcolor=_INK, length=2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_classes <= _MAX_NAMED_CLASSES:
        names = [
            name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
            for name in map(_drawable, class_names)
        ]
        font_size = float(np.interp(num_classes, [15, _MAX_NAMED_CLASSES], [9, 6]))
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=font_size, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=font_size, parse_math=False)
    if num_classes <= _MAX_COUNTED_CLASSES:
        for row, column in np.ndindex(matrix.shape):
            color = "white" if shares[row, column] > 0.4 else _INK if matrix[row, column] else _GREY
            axes.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", fontsize=9, color=color)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"])
    bar.set_label("share of the true class", fontsize=9, color=_INK)
    bar.ax.tick_params(labelsize=8.5, colors=_GREY, labelcolor=_INK)
    bar.outline.set_visible(False)
    _title(axes, title, subtitle if totals.all() else f"{subtitle}; grey: no images", gap=8)
    return _save(figure, path)


# --- t-SNE of features under maps ------------------------------------------------------------------------------------

_MAX_MARKED_CLASSES = len(_GROUP_COLORS) * len(_GROUP_STYLES)
"""So many classes are told apart by colour and marker; the others are grey."""
_HEADING = 0.62
"""Inches for the two lines over the panels of a picture."""


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

    As in Figure 3 of VkD (CVPR 2024, arXiv 2403.06213). Classes are told apart by one of 7 colours and 3 markers; of more
    than 21 classes the most frequent get them.

    Args:
        path: the PNG to write, 1350 pixels wide and the higher the more rows the legend takes; its folder is created.
        panels: name -> ``(N, 2)`` points, up to four.
        title: heading of the picture.
        subtitle: the line below it.
        remarks: what to write beside a panel's name, by the name.
        labels: N class indices, negative for none; None to leave the colours out.
        class_names: by index.

    Returns:
        The path.
    """
    points = {name: _array(values, 2, f"panels[{name!r}]") for name, values in panels.items()}
    count = len(next(iter(points.values())))
    classes = np.full(count, -1) if labels is None else np.asarray(labels)
    if any(values.shape != (count, 2) for values in points.values()) or classes.shape != (count,):
        raise ValueError(f"every panel must hold {count} points (x, y) and every point have a label")
    groups = _class_groups(classes, class_names, has_labels=labels is not None)
    num_columns = min(5, len(groups), max(1, 120 // (max(len(name) for name, _, _ in groups) + 6)))
    num_rows = -(-len(groups) // num_columns)

    figure = _figure(9.0, 9.2 + 0.2 * num_rows)
    grid = figure.subplots(2, 2, squeeze=False).ravel()
    for axes in grid[len(points) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid, points.items(), strict=False):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(_FAINT)
        for _, style, members in groups:
            axes.scatter(*values[members].T, s=15, linewidths=0, alpha=0.8, **style)
        axes.margins(0.04)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(name, loc="left", fontsize=10.5, color=_INK)
        if remark := remarks.get(name):
            axes.set_title(remark, loc="right", fontsize=9.5, color=_GREY)
    _heading(figure, title, subtitle)
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
    return _save(figure, path)


def _class_groups(
    classes: np.ndarray, class_names: Sequence[str], *, has_labels: bool
) -> list[tuple[str, dict[str, Any], np.ndarray]]:
    """Return name, style and members (N,) of every group of points, those without a class of their own first."""
    found, counts = np.unique(classes[classes >= 0], return_counts=True)
    most_frequent = found[np.argsort(-counts, kind="stable")][:_MAX_MARKED_CLASSES]
    others = np.setdiff1d(found, most_frequent)
    groups: list[tuple[str, dict[str, Any], np.ndarray]] = []
    if (classes < 0).any():
        color = _FAINT if has_labels else _BLUE
        groups.append(("no label", {"color": color, "marker": "o"}, classes < 0))
    if others.size:
        name = "1 other class" if others.size == 1 else f"{others.size} other classes"
        groups.append((name, {"color": _FAINT, "marker": "s"}, np.isin(classes, others)))
    for number, index in enumerate(np.sort(most_frequent)):
        name = _drawable(class_names[index])
        name = name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
        style = _group_style(number)
        groups.append((name, {"color": style["color"], "marker": style["marker"]}, classes == index))
    return groups


def _class_marker(style: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", markersize=6, markeredgewidth=0, **style)


def _heading(figure: Figure, title: str, subtitle: str) -> None:
    """Put title and subtitle over all panels, which make room for them."""
    height = float(figure.get_figheight())
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - _HEADING / height))
    # A run's name is no formula: between dollar signs matplotlib would look for one.
    style: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    for text, down, size, color in ((title, 0.1, 12, _INK), (subtitle, 0.36, 9.5, _GREY)):
        weight = "bold" if color == _INK else "normal"
        figure.text(0.012, 1 - down / height, _drawable(text), fontsize=size, fontweight=weight, color=color, **style)


# --- a loss over two directions of the input -------------------------------------------------------------------------


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
    grids = {name: _array(values, 2, f"panels[{name!r}]") for name, values in panels.items()}
    if any(grid.shape != (len(positions),) * 2 for grid in grids.values()):
        raise ValueError(f"every panel must be {len(positions)} x {len(positions)}")
    figure = _figure(5.0 * len(grids), 5.2)
    for axes, (name, grid) in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids.items(), strict=True):
        _draw_landscape(axes, positions, grid)
        axes.set_title(f"{name}\n{remarks.get(name, '')}".rstrip(), loc="left", fontsize=10, color=_INK)
    _heading(figure, title, subtitle)
    return _save(figure, path)


def _draw_landscape(axes: Axes, positions: Sequence[float], losses: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_aspect("equal")
    axes.spines[:].set_color(_FAINT)
    axes.tick_params(colors=_GREY, labelcolor=_INK, labelsize=9)
    axes.set_xlabel("along the first direction")
    axes.set_ylabel("along the second direction")
    low, high = float(losses.min()), float(losses.max())
    if high - low <= _NOTHING * abs(high):  # a contour needs a difference
        levels: Sequence[float] = [low - max(abs(low), 1.0) / 2, low + max(abs(low), 1.0) / 2]
    else:
        levels = MaxNLocator(14).tick_values(low, high)
    filled = axes.contourf(positions, positions, losses.T, levels=levels, cmap="viridis")
    axes.contour(filled, colors="white", linewidths=0.5, alpha=0.6)
    axes.plot(0, 0, marker="P", markersize=9, color=_VERMILLION, markeredgecolor="white", linestyle="")
    axes.set_box_aspect(1)
    bar = axes.figure.colorbar(filled, ax=axes, fraction=0.045, pad=0.02)
    bar.ax.tick_params(labelsize=8.5, colors=_GREY, labelcolor=_INK)
    bar.outline.set_visible(False)


# --- the ranks of several projectors ---------------------------------------------------------------------------------

_COLUMNS = 4
_MAX_PANEL_CURVES = 32
_MAX_PANEL_NAME = 32
"""Characters of a name over a narrow panel; the end of a longer one is kept."""


def plot_ranks(
    path: str | Path,
    panels: Sequence[tuple[str, str, Any, Any]],
    *,
    title: str,
    relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD,
) -> Path:
    """Draw how several projectors evolved side by side, with the same axes for all.

    A projector has two panels: its singular values relative to the largest one at the start, as in Figure 3 of "Learning
    to Project for Cross-Task Knowledge Distillation" (BMVC 2024, arXiv 2403.14494), on a logarithmic axis; and below them
    its three ranks as shares of the full one. Of more than 32 singular values 32 evenly spaced ones are drawn. Time is
    the share of the training.

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
    figure = _figure(max(1.2 + 2.9 * num_columns, 6.5), 1.2 + 4.3 * num_rows)
    grid = figure.add_gridspec(2 * num_rows, num_columns, height_ratios=(2.0, 1.2) * num_rows)
    curves = [_relative_spectra(steps, values) for _, _, steps, values in panels]
    top = max(float(spectra.max()) for _, spectra in curves)
    low = min(_log_limits(spectra, relative_threshold * float(spectra.max()))[0] for _, spectra in curves)
    for number, ((name, remark, _, _), (x, spectra)) in enumerate(zip(panels, curves, strict=True)):
        row, column = divmod(number, num_columns)
        upper = figure.add_subplot(grid[2 * row, column])
        lower = figure.add_subplot(grid[2 * row + 1, column], sharex=upper)
        _draw_panel_values(upper, x, spectra, low=low, top=1.6 * top)
        _draw_panel_ranks(lower, x, spectra, relative_threshold)
        name = _drawable(name)
        name = name if len(name) <= _MAX_PANEL_NAME else f"…{name[1 - _MAX_PANEL_NAME :]}"
        upper.set_title(f"{name}\n{_drawable(remark)}", loc="left", fontsize=9.5, color=_INK, parse_math=False)
        upper.tick_params(labelbottom=False)
        if column:
            upper.tick_params(labelleft=False, which="both")
            lower.tick_params(labelleft=False)
        else:
            upper.set_ylabel("singular value\nover the largest at the start", fontsize=9)
            lower.set_ylabel("rank, % of full", fontsize=9)
        if number + num_columns >= len(panels):
            lower.set_xlabel("% of the training", fontsize=9)
    _heading(figure, title, "singular values from the largest (dark) to the smallest (light); the same axes for all")
    handles, names = lower.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=3, fontsize=9, frameon=False)
    return _save(figure, path)


def _relative_spectra(steps: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the training in percent (T,), and singular values (T, r) over the largest at the start."""
    x, spectra = _array(steps, 1, "steps"), _array(values, 2, "values")
    if x.size != len(spectra):
        raise ValueError(f"values must hold one spectrum for each of the {x.size} steps, got {len(spectra)}")
    return 100 * x / (x[-1] or 1.0), spectra / (float(spectra[0].max()) or 1.0)


def _draw_panel_values(axes: Axes, x: np.ndarray, spectra: np.ndarray, *, low: float, top: float) -> None:
    from matplotlib import colormaps

    _style(axes)
    num_values = spectra.shape[1]
    chosen = np.unique(np.linspace(0, num_values - 1, min(num_values, _MAX_PANEL_CURVES)).round().astype(int))
    marker = "o" if x.size == 1 else ""
    for index in chosen[::-1]:  # the largest values on top
        color = colormaps["viridis"](0.9 * index / max(num_values - 1, 1))
        axes.plot(x, np.maximum(spectra[:, index], low / 10), color=color, linewidth=1.0, marker=marker, markersize=3)
    axes.set_yscale("log")
    axes.set_ylim(low, top)


def _draw_panel_ranks(axes: Axes, x: np.ndarray, spectra: np.ndarray, relative_threshold: float) -> None:
    _style(axes)
    marker = "o" if x.size == 1 else ""
    for name, ranks in rank_evolution(list(spectra), relative_threshold=relative_threshold).items():
        axes.plot(
            x, 100 * np.asarray(ranks) / spectra.shape[1], label=f"{name} rank", marker=marker, **_RANK_STYLES[name]
        )
    axes.set_xlim(-3, 103)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 50, 100])
