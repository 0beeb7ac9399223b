"""Compare runs: seeds grouped, the settings that differ, metrics, paired differences. Nothing is printed here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.base.errors import UserError, did_you_mean, reading
from kdcli.base.result import Finished
from kdcli.base.tasks import TASKS
from kdcli.base.text import check_argument
from kdcli.config.keys import find_option, flatten_settings
from kdcli.runs.folder import RunFolder
from kdcli.statistics.intervals import confidence_interval
from kdcli.training.provenance import changes_since, read_record

_NOT_METRICS = ("event", "epoch", "step", "best")
_ORDER = ("episodes", "validation", "test", "teacher", "embedding", "best", "steps", "seconds")
"""First words of the metrics' names, in the order of the table."""


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        path: of the folder, as it was given.
        name: the path below the folder that all compared runs have in common.
        seed: of the run.
        settings: the resolved config by dotted key, without what is beside the recipe.
        metrics: ``validation NAME`` of the best epoch so far, ``test NAME``, ``teacher SPLIT NAME``, ``embedding NAME``
            of an earlier stage, ``best epoch``, ``steps`` and ``seconds``, where recorded.
        curves: ``validation NAME`` and ``training loss``, each from step to value.
        finished: whether training and test are done.
        recipe: of a run of a sweep, in ``RECIPE/seed-S``: its name without the seed.
        data: of a finished run a digest of every split, where recorded.
        forced: what was forced in the run or now, a sentence each.
        outcome: how it stands to its student alone, in a sentence; empty where that is not known.
        epoch_steps: optimiser steps in one epoch; None before the first validation, and of a run of no epochs.
    """

    path: Path
    name: str
    seed: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    curves: Mapping[str, Mapping[int, float]]
    finished: bool
    recipe: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    forced: tuple[str, ...] = ()
    outcome: str = ""
    epoch_steps: float | None = None


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (divisor n - 1; None for one run) over ``num_runs`` runs."""

    mean: float
    std: float | None
    num_runs: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of ``num_pairs`` pairs and its 95 % t-interval, ``low`` to ``high``; None for one pair."""

    mean: float
    low: float | None
    high: float | None
    num_pairs: int


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, each with another seed; named after the recipe in a sweep, else after the first."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The name of the recipe in a sweep, else of the first run."""
        return self.runs[0].recipe or self.runs[0].name

    @property
    def settings(self) -> Mapping[str, Any]:
        """What all its runs have in common."""
        return self.runs[0].settings

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that are finished."""
        return tuple(run for run in self.runs if run.finished)

    def values(self, metric: str) -> dict[int, float]:
        """Return ``metric`` by seed over the finished runs or, when none is finished, over all; only where recorded."""
        return {run.seed: run.metrics[metric] for run in self.finished or self.runs if metric in run.metrics}

    def summary(self, metric: str) -> Summary | None:
        """Return mean and standard deviation of :meth:`values`; None when there are none."""
        values = list(self.values(metric).values())
        return summarize(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """Groups side by side.

    Attributes:
        groups: in the order of their first runs.
        settings: the dotted keys whose value is not the same in all groups.
        baseline: the group that the others' differences are taken to, or None.
        warnings: what has to be known to read the numbers, one sentence each.
    """

    groups: tuple[Group, ...]
    settings: tuple[str, ...]
    baseline: Group | None
    warnings: tuple[str, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run, group by group."""
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def metrics(self) -> list[str]:
        """The names of every metric that some run recorded: validation, test, best epoch, steps."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        return sorted(names, key=lambda name: _ORDER.index(name.split()[0]))

    @property
    def monitored(self) -> str | None:
        """The validation metric that the best student is chosen by: the first one recorded; higher is better."""
        return next((metric for metric in self.metrics if metric.startswith("validation ")), None)

    def difference(self, group: Group, metric: str) -> Difference | None:
        """Return ``group`` minus the baseline, paired by seed over finished runs; None where there is no pair."""
        if self.baseline is None or group is self.baseline or not (group.finished and self.baseline.finished):
            return None
        return paired_difference(group.values(metric), self.baseline.values(metric))


def read_runs(paths: Sequence[Path], *, force: bool = False) -> list[Run]:
    """Read run folders, finished or not.

    Args:
        paths: of the folders.
        force: go on although files have changed, or data of one name were not the same for all runs.

    Raises:
        UserError: for a folder that is no run or is given twice, a damaged or changed file, or data that have changed
            between the runs.
    """
    whole = [RunFolder.started(path).path.resolve() for path in paths]
    for path, count in Counter(whole).items():
        if count > 1:
            raise UserError(f"The run {path} is given {count} times.", "Give each run once.")
    recipes = [_split_seed(path)[0] for path in whole]
    root = os.path.commonpath([(recipe or path).parent for path, recipe in zip(whole, recipes, strict=True)])
    runs = [
        _read_run(
            RunFolder.started(given, force=force),
            path.relative_to(root).as_posix(),
            None if recipe is None else recipe.relative_to(root).as_posix(),
        )
        for given, path, recipe in zip(paths, whole, recipes, strict=True)
    ]
    return _with_same_data(runs, force=force)


def _with_same_data(runs: Sequence[Run], *, force: bool) -> list[Run]:
    """Return the runs, after looking whether those with the same settings of data had the same samples held out.

    The validation split may depend on the seed, the test split does not.

    Raises:
        UserError: they had others, and nobody insists; or they are of several tasks.
    """
    task = _task_of(runs)
    first: dict[tuple[Any, ...], Run] = {}
    checked = []
    for run in runs:
        told = []
        for split, seed in (("validation", run.seed), ("test", None)):
            if split not in run.data:
                continue
            same = sorted(
                (key, repr(value)) for key, value in run.settings.items() if _is_of_evaluation(key, task=task)
            )
            other = first.setdefault((split, seed, *same), run)
            if other.data[split] != run.data[split] and (changes := _held_out_changes(other, run, split)):
                found = f"{other.name} and {run.name} name the same data, but these have changed in between: {changes}."
                if not force:
                    raise UserError(
                        found, "Their metrics are of different samples: repeat one of them. --force compares them."
                    )
                told.append(f"Compared with --force although {found}")
        checked.append(replace(run, forced=(*run.forced, *told)))
    return checked


def _task_of(runs: Sequence[Run]) -> str:
    """Return the task of the runs.

    Raises:
        UserError: they have several.
    """
    tasks = {run.settings["task"]: run.name for run in runs}
    if len(tasks) > 1:
        told = ", ".join(f"{name} is {task}" for task, name in tasks.items())
        raise UserError(f"Runs of different tasks can't be compared: {told}.", "Compare the runs of one task.")
    return next(iter(tasks))


def _held_out_changes(first: Run, second: Run, split: str) -> str:
    records = [read_record(RunFolder(run.path, force=True)) for run in (first, second)]
    if records[0] is None or records[1] is None:
        return f"{split} has other samples or labels"
    return "; ".join(changes_since(records[0], records[1], splits=(split,), teacher=False))


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return ``paths`` with all its runs in the place of the folder of a sweep."""
    for path in paths:
        check_argument("A run folder", path)
    return [run for path in paths for run in _runs_of_sweep(path) or [path]]


def _runs_of_sweep(folder: Path) -> list[Path]:
    """Return the runs ``RECIPE/seed-S`` below ``folder`` and their baselines, by recipe and by seed."""
    with reading(folder):
        if (folder / "config.yaml").is_file():  # it is a run
            return []
        found = [file.parent for pattern in ("", "baseline/") for file in folder.glob(f"*/seed-*/{pattern}config.yaml")]
    seeded = [(recipe, int(seed), path) for path in found for recipe, seed in [_split_seed(path)] if recipe is not None]
    return [path for _, _, path in sorted(seeded)]


def _split_seed(path: Path) -> tuple[Path | None, str]:
    """Split ``RECIPE/seed-S`` into recipe and seed, ``RECIPE/seed-S/baseline`` into ``RECIPE/baseline`` and seed."""
    seeded, rest = (path.parent, path.name) if path.name == "baseline" else (path, "")
    match = re.fullmatch(r"seed-(\d{1,10})", seeded.name, re.ASCII)
    return (None, "") if match is None else (seeded.parent / rest, match[1])


def _read_run(folder: RunFolder, name: str, recipe: str | None) -> Run:
    path = folder.path
    config = folder.read_config()
    settings = flatten_settings(config) | {"relation": folder.read_plan()["relation"]}
    if config.episodes is not None:  # one recipe, whatever the number of episodes so far
        means = folder.read_episodes_result()
        found = {} if means is None else {f"episodes {arm}": value.mean for arm, value in means.accuracy.items()}
        curves: dict[str, dict[int, float]] = {"training loss": {}}
        return Run(path, name, config.seed, settings, found, curves, means is not None, recipe, *_origin(folder, means))
    training, validation, test = (folder.read_metrics(event) for event in ("train", "validation", "test"))
    metrics: dict[str, float] = {}
    best = [line for line in validation if line["best"]][-1:]
    for event, lines in (("validation", best), ("test", test[-1:])):
        metrics |= {f"{event} {key}": value for line in lines for key, value in _metrics(line)}
    if best:
        metrics["best epoch"] = best[0]["epoch"]
    if training or validation:
        metrics["steps"] = max(line["step"] for line in training + validation)
    # Of two lines for one step the later holds: a run may have been taken up again before it.
    curves = {}
    for line in validation:
        for key, value in _metrics(line):
            curves.setdefault(f"validation {key}", {})[line["step"]] = value
    curves["training loss"] = {line["step"]: line["loss"] for line in training}
    result = folder.read_result()
    if result is not None:
        metrics["seconds"] = result.seconds
        metrics |= {f"embedding {key}": value for key, value in _metrics(result.embedding)}
        for split, values in result.teacher.items():
            metrics |= {f"teacher {split} {key}": value for key, value in _metrics(values)}
    epoch_steps = next((line["step"] / line["epoch"] for line in validation if line.get("epoch")), None)
    origin = _origin(folder, result)
    outcome = "" if result is None or result.outcome is None else result.outcome.sentence
    return Run(
        path,
        name,
        config.seed,
        settings,
        metrics,
        curves,
        result is not None,
        recipe,
        *origin,
        outcome=outcome,
        epoch_steps=epoch_steps,
    )


def _origin(folder: RunFolder, result: Finished | None) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return a digest of every split, and what was forced."""
    return ({}, tuple(folder.forced)) if result is None else (result.data, (*result.forced, *folder.forced))


def _metrics(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((key, value) for key, value in line.items() if key not in _NOT_METRICS)


def compare_runs(runs: Sequence[Run], *, baseline: str | None = None) -> Comparison:
    """Group runs by recipe and put the groups side by side.

    Args:
        runs: at least one.
        baseline: name or path of a run: the differences are taken to its group.

    Raises:
        UserError: for runs of different tasks, or a baseline that is not among the runs or has nothing beside it.
    """
    task = _task_of(runs)
    kinds: dict[str | None, Mapping[str, Any]] = {}
    mixed = {run.recipe for run in runs if kinds.setdefault(run.recipe, run.settings) != run.settings}
    groups, warnings = _group([replace(run, recipe=None) if run.recipe in mixed else run for run in runs])
    warnings += [f"{run.name}: {sentence}" for run in runs for sentence in run.forced]
    settings = _differing_settings(groups)
    elsewhere = [key for key in settings if _is_of_evaluation(key, task=task)]
    if elsewhere:
        warnings.append(
            f"The runs are evaluated on different data ({', '.join(elsewhere)}): don't compare their metrics."
        )
    if read := [key for key in settings if _is_of_input(key) and key not in elsewhere]:
        warnings.append(
            f"The students read their samples at different sizes ({', '.join(read)}): their metrics are of the same"
            " samples, but not of the same input."
        )
    reference = None
    if baseline is not None:
        reference = _find_group(groups, baseline)
        seeds = {run.seed for run in reference.finished}
        others = [group for group in groups if group is not reference]
        unpaired = [group.name for group in others if seeds.isdisjoint(run.seed for run in group.finished)]
        if unpaired:
            warnings.append(f"No difference without a finished run of a common seed: {', '.join(unpaired)}.")
    return Comparison(tuple(groups), settings, reference, tuple(warnings))


def _is_of_evaluation(key: str, *, task: str) -> bool:
    """Whether runs that differ in this setting are validated or tested on something else."""
    option = find_option(key)
    return option is not None and option.settles_evaluation(TASKS[task])


def _is_of_input(key: str) -> bool:
    """Whether it settles how students read their samples: a part of the recipe, but one that metrics depend on."""
    option = find_option(key)
    return option is not None and bool(option.says(lambda key: key.of_input))


def _differing_settings(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the keys whose value is not the same in all ``groups``; an unset one equals a missing one."""
    first = groups[0].settings
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    return tuple(key for key in keys if any(group.settings.get(key) != first.get(key) for group in groups))


def _group(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Return the groups, and a sentence for every run that repeats recipe and seed: it goes to a group of its own."""
    members: list[list[Run]] = []
    warnings = []
    for run in runs:
        alike = [group for group in members if (group[0].recipe, group[0].settings) == (run.recipe, run.settings)]
        free = [group for group in alike if run.seed not in {other.seed for other in group}]
        if free:
            free[0].append(run)
            continue
        members.append([run])
        if alike:
            twin = next(other for other in alike[-1] if other.seed == run.seed)
            warnings.append(f"{run.name} repeats the recipe and the seed of {twin.name}: it is in a group of its own.")
    return [Group(tuple(group)) for group in members], warnings


def _find_group(groups: Sequence[Group], baseline: str) -> Group:
    for group in sorted(groups, key=lambda group: group.name != baseline):  # a group of that name before a run
        for run in group.runs:
            path = run.path.resolve()
            if baseline in (group.name, run.name) or Path(baseline).resolve() in (path, _split_seed(path)[0]):
                if len(groups) > 1:
                    return group
                raise UserError(
                    f"All runs are of the baseline's recipe, {group.name}: there is nothing to set against it.",
                    "Give runs of another recipe, or drop --baseline.",
                )
    names = list(dict.fromkeys(run.recipe or run.name for group in groups for run in group.runs))
    raise UserError(
        f"The baseline {baseline} is not among the runs. {did_you_mean(baseline, names)}".rstrip(),
        f"Give it as a run too; these are compared: {', '.join(names)}.",
    )


def summarize(values: Sequence[float]) -> Summary:
    """Return mean and sample standard deviation of at least one value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), std, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Return the mean of ``values`` minus ``baseline`` over their common seeds, with its 95 % t-interval.

    Args:
        values: seed to metric.
        baseline: seed to metric.

    Returns:
        None when no seed is in both.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    low, high = confidence_interval(differences)
    return Difference(summarize(differences).mean, low, high, len(seeds))
