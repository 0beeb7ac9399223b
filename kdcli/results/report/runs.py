"""From run folders to pages: what is read of a finished run, or of several, and in which order it is told."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.result import Result, show_metric
from kdcli.base.text import check_argument, without_dashes
from kdcli.config.run import RunConfig
from kdcli.models.libraries import library_of
from kdcli.projectors.spectra import rank_evolution
from kdcli.results.compare import Comparison, compare_runs, find_runs, read_runs
from kdcli.results.comparison import notes, table
from kdcli.results.outcome import show_difference
from kdcli.results.ranks import conclude
from kdcli.results.report.charts import Points, line_chart
from kdcli.results.report.page import Code, Fact, Page, Picture, Section, Table, write_page
from kdcli.runs.folder import SAMPLES, RunFolder
from kdcli.runs.snapshots import STRIP, WORST

REPORT = "report.html"
"""The page of a run, in its folder."""

_DECIDING = (
    *(
        "relation",
        "data",
        "projector",
        "teacher's layer",
        "layers",
        "logit KD",
        "seen in our bench",
        "seen in our claims",
    ),
    *("teacher measured", "teacher probed", "training"),
)
"""Decisions that a reader wants first; losses are among them too."""
_COSTS = ("teacher", "student", "compression", "trainable parameters", "memory")
_HIDDEN = ("event", "epoch", "step", "best")
_PICTURES = (
    (SAMPLES, "Some validation samples, and what the models make of them"),
    (WORST, "Where the student is worst, of the validation samples"),
    (STRIP, "The same samples over the training"),
)


def page_of(run: RunFolder) -> Page:
    """Return the page of a finished run.

    Raises:
        UserError: it is not finished, or its files are damaged or have changed.
    """
    if not run.is_finished:
        again = f"kdcli distill --resume {shlex.quote(str(run.path))}"
        raise UserError(f"The run {run.path} is not finished.", f"Go on with it: {again}")
    config, plan = run.read_config(), run.read_plan()
    if config.episodes is not None:
        return _page_of_episodes(run, config, plan)
    result = run.read_result()
    assert result is not None
    page = Page(
        title=f"{config.student.name} from {config.teacher.name}"
        if plan["relation"] != "none"
        else config.student.name,
        lead=(f"{config.task_facts.words.capitalize()} on {config.data.name}, seed {config.seed}.",),
        verdict="Whether distillation helped was not measured: --baseline trains the student alone, too.",
    )
    if result.outcome is not None:
        page.verdict, page.verdict_kind = result.outcome.sentence, result.outcome.verdict
        page.tries = result.outcome.tries
    elif plan["relation"] == "none":
        page.verdict = ""
    page.sections = [
        _numbers(run, result),
        _decisions(plan),
        Section("Over the training", charts=list(_curves(run))),
        Section("Samples", pictures=_pictures(run)),
        _projectors(run, config),
        Section("What it costs", facts=[_fact(entry) for name in _COSTS for entry in _named(plan, name)]),
        _use(run, config),
        _repeat(run, config, result, plan),
    ]
    return page


def write_report(run: RunFolder) -> Path:
    """Write the page of a finished run into its folder, and return the file."""
    file = run.path / REPORT
    write_page(page_of(run), file)
    return file


def report_on(runs: Sequence[Path], output: Path | None, *, force: bool) -> Path:
    """Write the page about one run, or about several side by side, and return its file.

    Args:
        runs: folders of runs or of sweeps.
        output: the file; by default :data:`REPORT` in the folder of one run.
        force: go on although files or data of the runs have changed.

    Raises:
        UserError: a folder is no run, or there is no file to write.
    """
    found = find_runs(runs)
    if len(found) == 1:
        run = RunFolder.started(found[0], force=force)
        page, target = page_of(run), output or run.path / REPORT
    elif output is None:
        raise UserError(
            "A page of several runs is in none of their folders.", "Say where to write it: --output FILE.html"
        )
    else:
        page, target = page_of_several(compare_runs(read_runs(found, force=force))), output
    check_argument("--output", target)
    if target.is_dir():
        raise UserError(f"--output {target} is a folder.", f"Give a file: {target / REPORT}")
    write_page(page, target)
    return target


def leave_report(run: RunFolder) -> list[str]:
    """Write the page at the end of a run, and return what is to be said; the run is not lost for want of a page."""
    try:
        return [f"Report: {write_report(run)}"]
    except Exception as error:  # a page is made of what others may have changed meanwhile, and the disk may be full
        reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return [f"Warning: no report could be written, all else of the run is complete: {reason}"]


def page_of_several(comparison: Comparison) -> Page:
    """Return the page of several runs, side by side."""
    columns, rows = table(comparison)
    monitored = comparison.monitored
    labels = [label for label in (monitored, "training loss") if label is not None]
    charts = [
        line_chart(
            {
                group.name: _mean_curve([run.curves[label] for run in group.runs if label in run.curves])
                for group in comparison.groups
            },
            x_label="step",
            y_label=label,
        )
        for label in labels
    ]
    return Page(
        title=f"{len(comparison.runs)} runs of {len(comparison.groups)} kinds",
        lead=comparison.warnings,
        sections=[
            Section("Side by side", table=Table(columns, rows), lines=notes(comparison)),
            Section("Over the training", charts=charts, lines=["Means over the seeds of a kind."]),
        ],
    )


def _page_of_episodes(run: RunFolder, config: RunConfig, plan: Mapping[str, Any]) -> Page:
    result = run.read_episodes_result()
    assert result is not None
    rows = [
        [
            arm.replace("_", " "),
            f"{value.mean:.4f}",
            "-" if value.low is None else f"{value.low:.4f} to {value.high:.4f}",
        ]
        for arm, value in result.accuracy.items()
    ]
    rows.append(["distilled minus fine-tuned, paired", show_difference(result.distilled_minus_fine_tuned), ""])
    return Page(
        title=f"{config.student.name} from {config.teacher.name}, in {result.episodes} episodes",
        lead=(f"{config.task_facts.words.capitalize()} on {config.data.name}, seed {config.seed}.",),
        sections=[
            Section("Accuracy on the queries", table=Table(["", "mean", "95 % interval"], rows)),
            _decisions(plan),
            Section("Repeat it", code=[Code("As a recipe", f"kdcli distill --recipe {_quoted(run, 'config.yaml')}")]),
        ],
    )


def _numbers(run: RunFolder, result: Result) -> Section:
    split = "test" if result.test else "validation"
    found: Mapping[str, float] = getattr(result, split)
    teacher = result.teacher.get(split, {})
    alone_run = RunFolder(run.path / "baseline")
    alone = alone_run.read_result() if (alone_run.path / "result.json").is_file() else None
    reference: Mapping[str, float] = {} if alone is None else getattr(alone, split)
    differences = {} if result.outcome is None or result.outcome.split != split else result.outcome.differences
    columns = [
        "",
        "student",
        *(["teacher"] if teacher else []),
        *(["student alone", "difference"] if reference else []),
    ]
    rows = []
    for name, value in found.items():
        if name in _HIDDEN:
            continue
        row = [name, show_metric(name, value)]
        if teacher:
            row.append(show_metric(name, teacher[name]) if name in teacher else "-")
        if reference:
            row.append(show_metric(name, reference[name]) if name in reference else "-")
            row.append(show_difference(differences[name]) if name in differences else "-")
        rows.append(row)
    lines = [f"Of the best student by validation, on the {split} split."]
    if any(difference.low is not None for difference in differences.values()):
        lines.append(
            "Differences with 95 % intervals by bootstrap over the samples; the spread between seeds is not in them."
        )
    return Section("What it reached", lines=lines, table=Table(*without_dashes(columns, rows)) if rows else None)


def _decisions(plan: Mapping[str, Any]) -> Section:
    deciding = [entry for name in _DECIDING for entry in _named(plan, name)]
    losses = [entry for entry in plan["decisions"] if entry["name"].startswith("loss: ")]
    return Section(
        "What the plan decided, and why",
        facts=[_fact(entry) for entry in (*deciding[:2], *losses, *deciding[2:])],
        more_title=f"The whole plan: {len(plan['decisions'])} decisions",
        more=[_fact(entry) for entry in plan["decisions"]],
    )


def _curves(run: RunFolder) -> Iterator[Any]:
    """Yield the charts: the metric that chose the student, beside the student alone, and the losses."""
    validations, alone = run.read_metrics("validation"), RunFolder(run.path / "baseline")
    names = [name for name in (validations[-1] if validations else {}) if name not in _HIDDEN]
    beside = alone.read_metrics("validation") if (alone.path / "metrics.jsonl").is_file() else []
    if names:
        lines = {"distilled" if beside else "student": _points(validations, names[0])}
        if any(names[0] in line for line in beside):
            lines["alone"] = _points(beside, names[0])
        yield line_chart(lines, x_label="step", y_label=f"validation {names[0]}")
    steps = run.read_metrics("train")
    terms = [name for name in (steps[-1] if steps else {}) if name not in _HIDDEN and "/" not in name]
    terms = [name for name in terms if name not in ("lr", "loss", "images_per_second", "data_wait")]
    if terms:
        yield line_chart({name: _points(steps, name) for name in terms}, x_label="step", y_label="training losses")


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> Points:
    return [(float(line["step"]), float(line[name])) for line in lines if name in line and "step" in line]


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> Points:
    """Return the mean at every step that all the curves have."""
    steps = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return [(step, sum(curve[step] for curve in curves) / len(curves)) for step in sorted(steps)]


def _pictures(run: RunFolder) -> list[Picture]:
    found = [(run.path / name, caption) for name, caption in _PICTURES]
    found += [
        (file, f"{file.stem.removeprefix('confusion-').capitalize()}: what was taken for what")
        for file in sorted((run.path / "evaluation").glob("confusion-*.png"))
    ]
    return [Picture.of(file, caption) for file, caption in found if file.is_file()]


def _projectors(run: RunFolder, config: RunConfig) -> Section:
    """Return what the projectors did, in words and pictures; from the analysis where there is one."""
    spectra = run.read_tensors("spectra.safetensors")
    steps = spectra.pop("steps", None)
    section = Section("What the projector did")
    if steps is None or not spectra:
        return section
    analysis = _read_analysis(run)
    lines, charts = [], []
    for name, values in spectra.items():
        if values.ndim != 2 or len(values) != len(steps) or not len(steps):
            continue
        evolution = {"steps": steps.tolist(), **rank_evolution(values)}
        known = analysis.get(name) or {"kind": _kind_of(config, name), "evolution": evolution, "moved": None}
        prefix = f"{name}: " if len(spectra) > 1 else ""
        lines.append(prefix + conclude(known))
        ranks = {f"{kind} rank": list(zip(steps.tolist(), evolution[kind], strict=True)) for kind in _RANKS}
        label = f"{prefix}rank, of at most {values.shape[1]}"
        charts.append(line_chart(ranks, x_label="step", y_label=label, from_zero=True))
    section.lines, section.charts = lines, charts
    section.pictures = [
        Picture.of(file, file.stem.replace("-", " ")) for file in sorted((run.path / "analysis").glob("*.png"))
    ]
    if not analysis:
        command = f"kdcli analyze-projector {shlex.quote(str(run.path))}"
        section.code = [Code("Its spectrum, and what it kept of held-out data", command)]
    return section


_RANKS = ("numerical", "effective", "stable")


def _kind_of(config: RunConfig, name: str) -> str:
    method, _, _ = name.partition(".")
    kinds = {options.method: getattr(options, "projector", None) for options in config.methods or ()}
    return str(kinds.get(method) or "linear")


def _read_analysis(run: RunFolder) -> Mapping[str, Any]:
    """Return what ``kdcli analyze-projector`` found of each projector; nothing where it was not run."""
    file = run.path / "analysis" / "analysis.json"
    if not file.is_file():
        return {}
    try:
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))["projectors"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged: {error}.", f"Make it anew: kdcli analyze-projector {shlex.quote(str(run.path))}"
        ) from None
    return found


def _use(run: RunFolder, config: RunConfig) -> Section:
    snippet = library_of(run.student).snippet(run.student, config.task_facts)
    path = shlex.quote(str(run.path))
    commands = f"kdcli export {path}\nkdcli evaluate {path}"
    return Section("Use it", code=[Code("Export and measure it", commands), Code("Load it, without kdcli", snippet)])


def _repeat(run: RunFolder, config: RunConfig, result: Result, plan: Mapping[str, Any]) -> Section:
    data = [
        Fact(f"{split} data", f"{counts.get('images', counts.get('texts', ''))} samples, digest {counts['digest']}")
        for split, counts in result.data.items()
        if "digest" in counts
    ]
    return Section(
        "Repeat it",
        code=[
            Code("As it was begun", plan["command"]),
            Code("As a recipe", f"kdcli distill --recipe {_quoted(run, 'config.yaml')}"),
        ],
        more_title="Versions and data",
        more=[
            Fact("seed", str(config.seed)),
            Fact("training", f"{result.steps} steps in {result.seconds:.0f} s"),
            Fact("versions", ", ".join(f"{name} {version}" for name, version in plan["versions"].items())),
            *data,
            *(Fact("forced", sentence) for sentence in dict.fromkeys((*result.forced, *run.forced))),
        ],
    )


def _quoted(run: RunFolder, name: str) -> str:
    return shlex.quote(str(run.path / name))


def _named(plan: Mapping[str, Any], name: str) -> list[Mapping[str, str]]:
    return [entry for entry in plan["decisions"] if entry["name"] == name]


def _fact(entry: Mapping[str, str]) -> Fact:
    return Fact(entry["name"], entry["value"], entry["reason"])
