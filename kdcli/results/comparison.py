"""A comparison on paper: its table, notes and files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.text import DASH
from kdcli.results.compare import Comparison, Difference, Group, Run, Summary
from kdcli.results.methods_table import (
    axis_of,
    bars_of,
    columns_of,
    compared,
    explanation,
    is_of_one_loss,
    methods_table,
    settings_table,
    to_latex,
    to_markdown_table,
    to_table_csv,
)
from kdcli.results.pictures.bars import plot_bars
from kdcli.results.pictures.curves import plot_learning_curves
from kdcli.runs.folder import RunFolder


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return all there is: columns, one a group, and rows: seeds, settings that differ, metrics, differences."""
    groups = comparison.groups
    rows = [["seeds" if len(comparison.runs) > len(groups) else "seed", *(_seeds(group.runs) for group in groups)]]
    if any(len(group.finished) < len(group.runs) for group in groups):
        rows.append(["state", *(_state(group) for group in groups)])
    for key in comparison.settings:
        rows.append([key, *(_show_setting(group.settings.get(key)) for group in groups)])
    for metric in comparison.metrics:
        rows.append([metric, *(_show_summary(metric, group.summary(metric)) for group in groups)])
    if comparison.baseline is not None:
        evaluated = [metric for metric in comparison.metrics if _is_evaluated(metric)]
        for metric in evaluated:
            differences = (comparison.difference(group, metric) for group in groups)
            rows.append([f"Δ {metric}", *map(_show_difference, differences)])
        rows.append(["Δ pairs of seeds", *(_num_pairs(comparison, group) for group in groups)])
    return ["", *(group.name for group in groups)], rows


def notes(comparison: Comparison, metrics: Sequence[str] = ()) -> list[str]:
    """Return what a reader of the tables has to know, a line each; the warnings are not among them.

    Args:
        comparison: the groups.
        metrics: as for :func:`~kdcli.results.methods_table.columns_of`.
    """
    several = [group for group in comparison.groups if len(group.runs) > 1]
    lines = [f"{group.name}: {', '.join(str(run.path) for run in group.runs)}" for group in several]
    lines += explanation(comparison, columns_of(comparison, metrics))
    # Over several seeds their spread says more than the samples of one.
    alone = [group.runs[0] for group in comparison.groups if len(group.runs) == 1 and group.runs[0].outcome]
    lines += [f"{run.name}, beside its student alone: {run.outcome}" for run in alone]
    return lines


def to_csv(comparison: Comparison) -> str:
    """Return a row a run: its folder, group and seed, the settings that differ and all metrics, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "group", "seed", "finished", *comparison.settings, *comparison.metrics])
    for group in comparison.groups:
        for run in group.runs:
            settings = [run.settings.get(key) for key in comparison.settings]
            metrics = [run.metrics.get(metric) for metric in comparison.metrics]
            cells = [str(run.path), group.name, run.seed, run.finished, *settings, *metrics]
            writer.writerow(["" if cell is None else _text(cell) for cell in cells])
    return text.getvalue()


def to_markdown(comparison: Comparison, metrics: Sequence[str] = (), *, pictures: Sequence[str] = ()) -> str:
    """Return the methods' table, what tells them apart, notes, ``pictures`` and at the end the table of all."""
    headings, rows = methods_table(comparison, columns_of(comparison, metrics))
    keys, settings = settings_table(comparison)
    parts = ["# Comparison", to_markdown_table(headings, rows)]
    if settings:
        parts.append(to_markdown_table(keys, settings, numbers_from=len(keys)))
    points = [*(f"**Warning:** {warning}" for warning in comparison.warnings), *notes(comparison, metrics)]
    if points:
        parts.append("\n".join(f"- {point}" for point in points))
    parts += [f"![{name.partition('.')[0]}]({name})" for name in pictures]
    parts += ["## All settings and metrics", to_markdown_table(*table(comparison))]
    return "\n\n".join(parts) + "\n"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return everything that the table shows, in full precision; numbers that are not finite become None."""
    groups = []
    for group in comparison.groups:
        summaries = {metric: group.summary(metric) for metric in comparison.metrics}
        differences = {metric: comparison.difference(group, metric) for metric in filter(_is_evaluated, summaries)}
        groups.append(
            {
                "name": group.name,
                "settings": {key: group.settings.get(key) for key in comparison.settings},
                "metrics": {name: None if value is None else asdict(value) for name, value in summaries.items()},
                "differences": {name: asdict(value) for name, value in differences.items() if value is not None},
                "runs": [
                    {
                        "path": str(run.path),
                        "seed": run.seed,
                        "finished": run.finished,
                        "metrics": dict(run.metrics),
                        "outcome": run.outcome,
                    }
                    for run in group.runs
                ],
            }
        )
    baseline = None if comparison.baseline is None else comparison.baseline.name
    values: dict[str, Any] = _finite({"groups": groups, "baseline": baseline, "warnings": list(comparison.warnings)})
    return values


def write_comparison(comparison: Comparison, output: Path, metrics: Sequence[str] = ()) -> list[Path]:
    """Write tables and pictures to the folder ``output`` and return them.

    ``compare.md`` has all of them; ``compare.csv`` has a row a run, in full precision; ``table.csv`` and ``table.tex``
    have a row a method, as shown; ``bars.png`` is of the metric that methods are judged by, where there is one.

    Args:
        comparison: the groups.
        output: the folder.
        metrics: as for :func:`~kdcli.results.methods_table.columns_of`.

    Raises:
        UserError: when the folder can't be written to, or no run has one of ``metrics``.
    """
    columns = columns_of(comparison, metrics)
    shown = methods_table(comparison, columns)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't write to {output}: {error.strerror}.", "Give another --output.") from None
    folder = RunFolder(output)
    judged = compared(comparison, columns)
    bars = [] if judged is None else bars_of(comparison, judged)
    drawn = [*(["bars.png"] if bars else []), "curves.png"]
    texts = {
        "compare.csv": to_csv(comparison),
        "compare.md": to_markdown(comparison, metrics, pictures=drawn),
        "table.csv": to_table_csv(*shown),
        "table.tex": to_latex(*shown),
    }
    for name, text in texts.items():
        folder.write_text(name, text)
    if bars and judged is not None:
        plot_bars(output / "bars.png", bars, label=axis_of(judged))
    labels = [] if comparison.monitored is None else [comparison.monitored]
    if is_of_one_loss(comparison) or not labels:
        labels.append("training loss")
    panels = {
        label: {_legend(group): [run.curves.get(label, {}) for run in group.runs] for group in comparison.groups}
        for label in labels
    }
    epochs = {run.epoch_steps for run in comparison.runs if run.epoch_steps is not None}
    plot_learning_curves(
        output / "curves.png",
        panels,
        title="Learning curves",
        logarithmic=["training loss"],
        epoch_steps=epochs.pop() if len(epochs) == 1 else None,
    )
    return [output / name for name in (*texts, *drawn)]


def _legend(group: Group) -> str:
    return group.name if len(group.runs) == 1 else f"{group.name} ({len(group.runs)} seeds)"


def _is_evaluated(metric: str) -> bool:
    return metric.startswith(("episodes ", "validation ", "test "))


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.seed) for run in runs)


def _state(group: Group) -> str:
    unfinished = [run for run in group.runs if not run.finished]
    if not unfinished:
        return "finished"
    if not group.finished:
        return "unfinished"
    return f"seed {_seeds(unfinished)} unfinished, left out"


def _num_pairs(comparison: Comparison, group: Group) -> str:
    pairs = [comparison.difference(group, metric) for metric in comparison.metrics if _is_evaluated(metric)]
    counts = sorted({pair.num_pairs for pair in pairs if pair is not None})
    return ", ".join(map(str, counts)) or DASH


def _show_setting(value: Any) -> str:
    return DASH if value is None else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _show_summary(metric: str, summary: Summary | None) -> str:
    if summary is None:
        return DASH
    is_count = metric.split()[-1] in ("epoch", "steps", "seconds")
    if not summary.std and is_count:  # the same in every run
        return f"{summary.mean:g}"
    digits = 1 if is_count else 4
    spread = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread}"


def _show_difference(difference: Difference | None) -> str:
    if difference is None:
        return DASH
    interval = "" if difference.low is None else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"{difference.mean:+.4f}{interval}"


def _finite(value: Any) -> Any:
    """Return ``value`` with None for every number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
