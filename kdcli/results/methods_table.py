"""A comparison as papers have it: a method in each row, a metric in each column, and what tells the methods apart."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import DASH
from kdcli.config.keys import written_out
from kdcli.results.compare import Comparison, Difference, Group, Summary
from kdcli.statistics.intervals import CONFIDENCE, confidence_interval
from kdcli.statistics.shares import is_share

_SPLITS = ("validation", "test", "episodes")
_METHODS = "methods"


@dataclass(frozen=True)
class Bar:
    """A method in a picture.

    Attributes:
        name: of the group.
        values: of each seed, as they are shown.
        mean: of them.
        low: end of the 95 % t-interval of the mean; None for one seed.
        high: its other end.
    """

    name: str
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def columns_of(comparison: Comparison, metrics: Sequence[str] = ()) -> list[str]:
    """Return the metrics that get a column, with their splits before them.

    Args:
        comparison: of at least one run.
        metrics: which, without splits; by default the one that students are chosen by. Of episodes it is all arms.

    Raises:
        UserError: no run has one of them.
    """
    known = [name for name in comparison.metrics if name.split()[0] in _SPLITS]
    names = list(dict.fromkeys(name.partition(" ")[2] for name in known))
    for metric in metrics:
        if metric not in names:
            raise UserError(
                f"No run has a metric {metric!r}. {did_you_mean(metric, names)}".rstrip(),
                f"They have {', '.join(names) or 'none yet'}.",
            )
    monitored = comparison.monitored
    if not metrics and monitored is not None:
        metrics = [monitored.partition(" ")[2]]
    wanted = metrics or names
    return [name for metric in wanted for name in known if name.partition(" ")[2] == metric]


def compared(comparison: Comparison, columns: Sequence[str]) -> str | None:
    """Return the metric that methods are judged by: the first of a test, else the first; None without one."""
    return next((name for name in columns if name.startswith("test ")), next(iter(columns), None))


def methods_table(comparison: Comparison, columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and a row for each method: its seeds, metrics, and the difference to the baseline.

    Shares are in percent, differences of them in points.

    Args:
        comparison: the groups.
        columns: from :func:`columns_of`.
    """
    headings = ["method", "seeds", *map(_heading, columns)]
    has_state = any(len(group.finished) < len(group.runs) for group in comparison.groups)
    judged = None if comparison.baseline is None else compared(comparison, columns)
    headings += ["state"] * has_state + ([] if judged is None else [f"Δ {_heading(judged)}"])
    rows = []
    for group in comparison.groups:
        row = [group.name, _seeds(group), *(show_summary(name, group.summary(name)) for name in columns)]
        row += [_state(group)] * has_state
        if judged is not None:
            is_reference = group is comparison.baseline
            row.append("baseline" if is_reference else show_difference(judged, comparison.difference(group, judged)))
        rows.append(row)
    return headings, rows


def settings_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and a row for each setting that tells the methods apart; no rows where none does.

    Which methods a group has is one row. Left out is what follows from another row: what the plan made methods of, and
    settings of a method or a model that the other groups do not have.
    """
    groups = comparison.groups
    rows = []
    names = [list(_methods_of(group.settings)) for group in groups]
    if any(name != names[0] for name in names):
        rows.append([_METHODS, *(" + ".join(name) for name in names)])
    methods_differ = any(key.startswith(f"{_METHODS}.") for key in comparison.settings)
    for key in comparison.settings:
        if not (methods_differ and key in written_out()) and not _follows(key, comparison):
            rows.append([key, *(_show_setting(group.settings.get(key)) for group in groups)])
    return ["setting", *(group.name for group in groups)], rows


def _methods_of(settings: Mapping[str, Any]) -> dict[str, None]:
    return dict.fromkeys(key.split(".")[1] for key in settings if key.startswith(f"{_METHODS}."))


def _follows(key: str, comparison: Comparison) -> bool:
    """Whether a setting differs only in that some groups lack what it belongs to, which another row says."""
    values = [group.settings.get(key) for group in comparison.groups]
    there = [value for value in values if value is not None]
    if len(there) == len(values) or any(value != there[0] for value in there[1:]):
        return False
    section, *rest = key.split(".")
    if section == _METHODS:
        has_it = [rest[0] in _methods_of(group.settings) for group in comparison.groups]
        return not all(has_it)
    whole = f"{section}.name"
    return bool(rest) and key != whole and whole in comparison.settings


def is_of_one_loss(comparison: Comparison) -> bool:
    """Whether all methods train on the same loss, so that its values can be compared."""
    return not any(key.startswith((f"{_METHODS}.", "embedding")) for key in comparison.settings)


def bars_of(comparison: Comparison, metric: str) -> list[Bar]:
    """Return a bar for each group that has the metric, in the units in which it is shown; only of finite values."""
    times, bars = 100 if _is_share(metric) else 1, []
    for group in comparison.groups:
        values = [times * value for value in group.values(metric).values() if math.isfinite(value)]
        if values:
            low, high = confidence_interval(values)
            bars.append(Bar(group.name, tuple(values), math.fsum(values) / len(values), low, high))
    return bars


def axis_of(metric: str) -> str:
    """Return what a metric is called beside an axis."""
    return _heading(metric)


def to_table_csv(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as csv, as it is shown."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *rows])
    return text.getvalue()


def to_markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int = 1) -> str:
    """Return a table in Markdown; columns from ``numbers_from`` on are set right."""
    rule = ["---" if place < numbers_from else "---:" for place in range(len(headings))]
    lines = [headings, rule, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def to_latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table in LaTeX, for the package booktabs; needs no other."""
    body = [*map(_latex_row, rows)]
    columns = "l" + "r" * (len(headings) - 1)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(headings),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$",
}  # fmt: skip


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(_latex_text(cell)) for cell in cells) + r" \\"


def _latex_text(cell: str) -> Iterator[str]:
    """Yield what stands for each character; a hyphen before a number is a minus."""
    for before, here, after in zip(" " + cell, cell, cell[1:] + " ", strict=False):
        is_minus = here == "-" and before in " [" and after.isdigit()
        yield "$-$" if is_minus else _LATEX.get(here, here)


def show_summary(metric: str, summary: Summary | None) -> str:
    """Return mean ± standard deviation, of a share in percent."""
    if summary is None:
        return DASH
    times, digits = (100, 2) if _is_share(metric) else (1, 4)
    spread = "" if summary.std is None else f" ± {times * summary.std:.{digits}f}"
    return f"{times * summary.mean:.{digits}f}{spread}"


def show_difference(metric: str, difference: Difference | None) -> str:
    """Return a difference with its interval, of shares in points."""
    if difference is None:
        return DASH
    times, digits = (100, 2) if _is_share(metric) else (1, 4)
    mean = f"{times * difference.mean:+.{digits}f}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{times * difference.low:+.{digits}f}, {times * difference.high:+.{digits}f}]"


def _show_setting(value: Any) -> str:
    if value is None:
        return DASH
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _heading(metric: str) -> str:
    return f"{metric} %" if _is_share(metric) else metric


def _is_share(metric: str) -> bool:
    split, _, name = metric.partition(" ")
    return split == "episodes" or is_share(name)


def _seeds(group: Group) -> str:
    """Return the seeds of a group: ``0-4``, ``3, 7``, and in words how many where they are many."""
    seeds = sorted(run.seed for run in group.runs)
    if len(seeds) > 2 and all(after - before == 1 for before, after in pairwise(seeds)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds)) if len(seeds) <= 6 else f"{len(seeds)} seeds"


def _state(group: Group) -> str:
    left = ", ".join(str(run.seed) for run in group.runs if not run.finished)
    if not left:
        return "finished"
    return f"seed {left} unfinished, left out" if group.finished else "unfinished"


def explanation(comparison: Comparison, columns: Sequence[str]) -> list[str]:
    """Return what a reader of the table has to know of its numbers, a line each."""
    lines = []
    if any(len(group.runs) > 1 for group in comparison.groups):
        lines.append("Mean ± standard deviation over the seeds of a method.")
    if comparison.baseline is not None and columns:
        lines.append(
            f"Δ: mean difference to {comparison.baseline.name}, paired by seed, with its {100 * CONFIDENCE:.0f} %"
            " t-interval where there are two pairs or more."
        )
    return lines
