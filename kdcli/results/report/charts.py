"""Line charts as SVG inside a page, in the page's own colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
"""Of a line, from left to right."""

_WIDTH, _HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 12, 40
COLOURS = 6
"""Lines beyond so many begin again with the first colour, dashed."""


def line_chart(lines: Mapping[str, Points], *, x_label: str, y_label: str, from_zero: bool = False) -> Markup:
    """Return a chart with a legend; lines without a finite point are left out.

    Args:
        lines: by their names in the legend.
        x_label: of the horizontal axis.
        y_label: of the vertical one.
        from_zero: let the vertical axis begin there.
    """
    kept = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in lines.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return Markup("")
    xs, ys = ([point[axis] for points in kept.values() for point in points] for axis in (0, 1))
    x_ticks, y_ticks = _ticks(xs, whole=True), _ticks([*ys, 0.0] if from_zero else ys, whole=False)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + _share(point[0], x_ticks) * (_WIDTH - _LEFT - _RIGHT)
        return round(x, 1), round(_HEIGHT - _BOTTOM - _share(point[1], y_ticks) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">',
        *(_gridline(place((x_ticks[0], tick))[1], tick) for tick in y_ticks),
        *(_x_tick(place((tick, y_ticks[0]))[0], tick) for tick in x_ticks),
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
    ]
    for number, (name, points) in enumerate(kept.items()):
        style = f"line c{number % COLOURS}{' dashed' if number >= COLOURS else ''}"
        drawn = " ".join(f"{x},{y}" for x, y in map(place, points))
        if len(points) == 1:
            (x, y) = place(points[0])
            parts.append(f'<circle class="dot c{number % COLOURS}" cx="{x}" cy="{y}" r="4"/>')
        title = f"<title>{escape(name)}: {points[-1][1]:.4g} at {points[-1][0]:g}</title>"
        parts.append(f'<polyline class="{style}" points="{drawn}">{title}</polyline>')
    parts.append("</svg>")
    keys = (
        f'<span class="key c{number % COLOURS}{" dashed" if number >= COLOURS else ""}"></span>{escape(name)}'
        for number, name in enumerate(kept)
    )
    legend = "".join(f'<span class="entry">{key}</span>' for key in keys)
    caption = f"<figcaption><b>{escape(y_label)}</b> {legend}</figcaption>"
    return Markup(f'<figure class="chart">{caption}{"".join(parts)}</figure>')


def _share(value: float, ticks: Sequence[float]) -> float:
    """Return where a value lies between the first and the last tick, 0 to 1."""
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _ticks(values: Sequence[float], *, whole: bool) -> list[float]:
    """Return four to nine round numbers that enclose the values."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(step for factor in (1, 2, 2.5, 5, 10) if (step := factor * power) >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _gridline(y: float, tick: float) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(tick)}</text>'
    )


def _x_tick(x: float, tick: float) -> str:
    return f'<text class="tick" x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>'


def _number(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.2g}"
