"""One projector: its spectrum, how that evolved, and what its loss is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.projectors.spectra import DEFAULT_RELATIVE_THRESHOLD, Decomposition
from kdcli.results.pictures.style import (
    BLUE,
    FAINT,
    FEW_STEPS,
    GREY,
    INK,
    NOTHING,
    RANK_STYLES,
    VERMILLION,
    as_array,
    draw_legend,
    draw_title,
    integer_ticks,
    limit_x,
    log_limits,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CURVES = 64

_MANY = 80
"""Above this number of directions single markers and bars would merge; lines and filled steps are drawn instead."""


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
        values: singular values ``(k,)``, descending; tensor, as_array or list.
        rank: numerical rank, marked: the first ``rank`` values are kept.
        title: heading of the picture.
        reference: singular values at the start of the training, drawn lightly; None to leave them out.
        relative_threshold: the one ``rank`` was computed with.

    Returns:
        The path.
    """
    spectrum = as_array(values, 1, "values")
    initial = None if reference is None else as_array(reference, 1, "reference")
    threshold = relative_threshold * float(spectrum.max())
    shown = spectrum if initial is None else np.concatenate([spectrum, initial])
    low, high = log_limits(shown, threshold)

    figure = new_figure(8.0, 4.5)
    axes = figure.add_subplot()
    style_axes(axes)
    index = np.arange(1, spectrum.size + 1)
    marker: dict[str, Any] = {"marker": "o", "markersize": 4.0 if spectrum.size <= _MANY else 0.0, "linewidth": 1.6}
    if initial is not None:
        axes.plot(
            np.arange(1, initial.size + 1), np.maximum(initial, low / 10), color=FAINT, linewidth=3, label="initial"
        )
    drawn = np.maximum(spectrum, low / 10)
    if rank > 0:
        axes.axvspan(0.5, rank + 0.5, color=BLUE, alpha=0.08, linewidth=0)
        axes.plot(index[:rank], drawn[:rank], color=BLUE, label=f"kept ({rank})", **marker)
    if rank < spectrum.size:
        axes.plot(index[rank:], drawn[rank:], color=VERMILLION, label=f"dropped ({spectrum.size - rank})", **marker)
        axes.axvline(rank + 0.5, color=BLUE, linewidth=1.0, linestyle=":")
    if threshold > 0:
        label = f"threshold: {relative_threshold:g} of the largest"
        axes.axhline(threshold, color=GREY, linewidth=1.1, linestyle="--", label=label)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(0.5, max(spectrum.size, initial.size if initial is not None else 0) + 0.5)
    integer_ticks(axes.xaxis)
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value")
    draw_title(axes, title, f"numerical rank {rank} of {spectrum.size}, largest singular value {spectrum.max():.3g}")
    draw_legend(axes)
    return save_figure(figure, path)


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
    logarithmic axis, with the ranks below it. Of more than 64 singular values, 64 evenly spaced ones are drawn, the
    first and the last among them.

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
    spectra = as_array(values, 2, "values")
    x = as_array(steps, 1, "steps") / (epoch_steps or 1.0)
    if x.size != spectra.shape[0]:
        raise ValueError(f"values must hold one spectrum for each of the {x.size} steps, got {spectra.shape[0]}")
    rank_curves = {name: as_array(rank, 1, f"ranks[{name!r}]") for name, rank in ranks.items()}
    for name, rank in rank_curves.items():
        if len(rank) != x.size:
            raise ValueError(f"ranks[{name!r}] must have one value for each of the {x.size} steps, got {len(rank)}")

    figure = new_figure(8.0, 6.5)
    grid = figure.add_gridspec(2, 2, height_ratios=(3.0, 1.25), width_ratios=(1.0, 0.022))
    upper = figure.add_subplot(grid[0, 0])
    lower = figure.add_subplot(grid[1, 0], sharex=upper)
    _draw_curves(upper, figure.add_subplot(grid[0, 1]), x, spectra, relative_threshold)
    _draw_ranks(lower, x, rank_curves, num_values=spectra.shape[1])
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("training step" if epoch_steps is None else "epoch")
    if epoch_steps is None:
        integer_ticks(lower.xaxis)
    limit_x(lower, x)
    draw_title(upper, title, _evolution_subtitle(spectra, rank_curves))
    return save_figure(figure, path)


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


def _draw_curves(
    axes: Axes, colorbar_axes: Axes, x: np.ndarray, spectra: np.ndarray, relative_threshold: float
) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    style_axes(axes)
    largest = spectra.max(axis=1)
    thresholds = relative_threshold * largest
    low, high = log_limits(spectra, float(thresholds.max()))
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
        color=BLUE,
        alpha=0.10,
        linewidth=0,
        label="region of the numerical rank",
    )
    label = f"threshold: {relative_threshold:g} of the largest"
    axes.plot(
        band_x, np.maximum(bottom, low / 10), color=VERMILLION, linewidth=1.6, linestyle="--", label=label, zorder=4
    )
    width = float(np.interp(chosen.size, [8, MAX_CURVES], [1.8, 0.9]))
    marker: dict[str, Any] = {"marker": "o", "markersize": 4} if x.size <= FEW_STEPS else {}
    for index in chosen[::-1]:  # the largest values on top
        curve = np.maximum(spectra[:, index], low / 10)
        axes.plot(x, curve, color=colormap(colors(index + 1)), linewidth=width, **marker)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_ylabel("singular value")
    draw_legend(axes)

    bar = axes.figure.colorbar(ScalarMappable(colors, colormap), cax=colorbar_axes)
    bar.set_label("index (1 = largest)", fontsize=9, color=INK)
    bar.set_ticks(np.unique(np.linspace(1, num_values, min(num_values, 5)).round().astype(int)).tolist())
    bar.ax.invert_yaxis()
    bar.ax.tick_params(labelsize=8.5, colors=GREY, labelcolor=INK)
    bar.outline.set_visible(False)


def _draw_ranks(axes: Axes, x: np.ndarray, ranks: Mapping[str, np.ndarray], num_values: int) -> None:
    style_axes(axes)
    axes.axhline(num_values, color=FAINT, linewidth=1.0)
    marker: dict[str, Any] = {"marker": "o", "markersize": 4} if x.size <= FEW_STEPS else {}
    for name, rank in ranks.items():
        label = f"{name} ({rank[-1]:.3g} at the end)" if x.size > 1 else f"{name} ({rank[-1]:.3g})"
        axes.plot(x, rank, label=label, **RANK_STYLES.get(name, {}), **marker)
    axes.set_ylim(0, 1.12 * num_values)
    integer_ticks(axes.yaxis, num_ticks=4)
    axes.set_ylabel("rank")
    if ranks:
        draw_legend(axes)


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
    figure = new_figure(8.0, 4.5)
    upper, lower = figure.subplots(2, 1, height_ratios=(1.0, 11.0))
    _draw_shares(upper, decomposition)
    _draw_terms(lower, decomposition)
    rank, num_directions = decomposition.rank, len(decomposition.terms)
    subtitle = f"loss {decomposition.total_per_sample:.3g} per sample, numerical rank {rank} of {num_directions}"
    draw_title(upper, title, subtitle)
    draw_legend(upper, source=lower)
    return save_figure(figure, path)


def _draw_shares(axes: Axes, decomposition: Decomposition) -> None:
    left = 0.0
    for share, color in ((decomposition.transfer_share, BLUE), (decomposition.spectral_share, VERMILLION)):
        axes.barh(0, share, left=left, height=1.0, color=color)
        left += share
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, 0.5)
    axes.set_axis_off()


def _draw_terms(axes: Axes, decomposition: Decomposition) -> None:
    style_axes(axes)
    axes.grid(False, axis="x")
    terms = np.asarray(decomposition.terms) / decomposition.num_samples
    energy = np.asarray(decomposition.target_energy) / decomposition.num_samples
    rank, num_directions = decomposition.rank, terms.size
    both = np.concatenate([terms, energy])
    top = float(both.max())
    positive = both[both > NOTHING * top]
    logarithmic = positive.size > 0 and top > 100 * float(positive.min())
    bottom = 0.5 * float(positive.min()) if logarithmic else 0.0

    edges = np.arange(num_directions + 1) + 0.5
    directions = np.arange(1, num_directions + 1)
    parts = (
        ("knowledge transfer", BLUE, directions <= rank, decomposition.transfer_share),
        ("spectral part", VERMILLION, directions > rank, decomposition.spectral_share),
    )
    for name, color, part, share in parts:
        # An empty part is drawn too, so that the draw_legend always names both.
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
    axes.stairs(np.maximum(energy, bottom), edges, baseline=None, color=INK, linewidth=width, label=label)
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(bottom, 1.6 * top)
    else:
        axes.set_ylim(0, 1.08 * top or 1.0)
    axes.set_xlim(0.5, num_directions + 0.5)
    integer_ticks(axes.xaxis)
    axes.set_xlabel("right singular direction of the projector, by descending singular value")
    axes.set_ylabel("squared distance per sample")
