"""``kdcli sweep``: variants of recipes over seeds, each run in its own folder; the same command goes on with them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.files import clear_os_errors
from kdcli.base.text import check_argument, redact_all
from kdcli.config.keys import flatten_settings
from kdcli.experiments.cluster import Cluster, Jobs
from kdcli.experiments.distill import Output
from kdcli.experiments.sweep_runs import Run, Signalled, ended_by_signals, run_here
from kdcli.experiments.variants import Variant
from kdcli.experiments.workers import Workers, gpus_for, num_workers
from kdcli.machine.launch import is_launched
from kdcli.runs.folder import RunFolder
from kdcli.terminal.console import show_lines

_JOBS = ".jobs"
"""In the folder of a sweep: what submitit writes, and what jobs of a cluster print."""
_RECIPE = "recipe.yaml"
"""In the folder of a variant: its config, as the next command's is compared with."""
EPISODES = "episodes distilled"
"""What the metric of the students of episodes is called in a comparison."""


@dataclass(frozen=True)
class Sweep:
    """Variants over seeds, below one folder: ``FOLDER/VARIANT/seed-S``; ``force`` is that of all runs."""

    folder: Path
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    force: bool = False

    @property
    def runs(self) -> tuple[Run, ...]:
        """Seed by seed: where it is stopped, all variants have about as many runs."""
        return tuple(
            Run(variant, seed, self.folder / variant.name / f"seed-{seed}", self.force)
            for seed in self.seeds
            for variant in self.variants
        )

    @property
    def is_untested(self) -> bool:
        """Whether all variants leave the test split alone."""
        return not any(variant.config.test for variant in self.variants)

    def find_variant(self, name: str) -> Variant:
        """Return the variant called ``name``, or the only one of the recipe of that name.

        Raises:
            UserError: there is none, or nothing beside it.
        """
        names = [variant.name for variant in self.variants]
        found = [variant for variant in self.variants if variant.name == name]
        found = found or [variant for variant in self.variants if variant.recipe == name]
        if len(found) != 1:
            known = f"{name} has {len(found)} variants." if found else did_you_mean(name, names)
            raise UserError(
                f"The baseline {name} is not one of the sweep's variants. {known}".rstrip(),
                f"They are: {', '.join(names)}.",
            )
        if len(names) == 1:
            raise UserError(
                f"The sweep has nothing but {name}: there is nothing to set against it.", "Drop --baseline."
            )
        return found[0]


def run_sweep(
    sweep: Sweep, *, jobs: int | None, command: str, verbose: bool, cluster: Cluster | None = None
) -> tuple[int, dict[str, UserError]]:
    """Run what is not finished, and print a line a run.

    Args:
        sweep: what to run.
        jobs: worker processes; by default one for each of several GPUs, or none: all runs in this process.
        command: the command line, for the records.
        verbose: show the runs' own output.
        cluster: give each run to a job of it, ``jobs`` at a time, or all.

    Returns:
        The exit code of the signal that stopped it, or 0; and the errors of the runs that failed, by their labels.

    Raises:
        UserError: nothing was run: a folder has another config's run, another process has the sweep, or ``jobs`` can't
            be.
    """
    if is_launched():
        raise UserError("kdcli sweep starts its processes itself.", "Start it without a launcher; see --jobs.")
    check_argument("--output", sweep.folder)
    if (sweep.folder / "config.yaml").is_file():
        raise UserError(f"{sweep.folder} is itself a run.", "Give another --output.")
    gpus = [] if cluster else gpus_for([variant.config for variant in sweep.variants])
    num_jobs = 1 if cluster else num_workers(jobs, gpus)
    for variant in sweep.variants:
        check_variant(variant, sweep.folder / variant.name)
    made = [folder for folder in (sweep.folder, *sweep.folder.parents) if not folder.exists()]
    with clear_os_errors(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, UserError] = {}
    try:
        with RunFolder(sweep.folder).locked(), ended_by_signals():
            for variant in sweep.variants:
                folder = sweep.folder / variant.name
                with clear_os_errors(folder):
                    folder.mkdir(exist_ok=True)
                RunFolder(folder).write_config(variant.config, _RECIPE)
            queue = None if cluster is None else Jobs(cluster, jobs, sweep.folder / _JOBS, command=command)
            code = _run_all(sweep, num_jobs, gpus, command, verbose, failed, queue)
    except Signalled as signalled:
        code = signalled.code
    finally:
        _tidy(sweep, made)
    return code, failed


def _run_all(
    sweep: Sweep,
    num_jobs: int,
    gpus: Sequence[str],
    command: str,
    verbose: bool,
    failed: dict[str, UserError],
    queue: Jobs | None,
) -> int:
    total, number, pending = len(sweep.runs), 0, []
    for run in sweep.runs:
        if run.is_finished:
            number += 1
            show_lines([f"[{number}/{total}] {run.label}: finished before: {_headline(run)}"])
        else:
            pending.append(run)
    if queue is not None:
        endings = queue.run(iter(pending))
    elif num_jobs > 1 and len(pending) > 1:
        workers = Workers(min(num_jobs, len(pending)), gpus, command=command, verbose=verbose)
        endings = workers.run(iter(pending))
    else:
        endings = run_here(pending, Output(quiet=not verbose), command)
    with contextlib.closing(endings):  # at a signal too, so that the workers end
        for run, ending, seconds in endings:
            if ending.code:
                return ending.code
            number += 1
            if ending.error is not None:
                failed[run.label] = ending.error
                told = f"failed: {ending.error.message}"
            else:
                told = f"{_headline(run)}, {seconds:.0f} s"
            show_lines([f"[{number}/{total}] {run.label}: {told}"])
    return 0


def _headline(run: Run) -> str:
    """Return the first metric of each split, the one that the best student is chosen by; of episodes the student's."""
    if run.config.episodes is not None:
        episodes = RunFolder(run.path).read_episodes_result()
        assert episodes is not None, f"{run.path} is finished"
        return f"{EPISODES} {episodes.accuracy['distilled'].mean:.4f}"
    result = RunFolder(run.path).read_result()
    assert result is not None, f"{run.path} is finished"
    told = []
    for split, found in (("validation", result.validation), ("test", result.test)):
        metrics = [(name, value) for name, value in found.items() if name not in ("epoch", "step")]
        told += [f"{split} {name} {value:.4f}" for name, value in metrics[:1]]
    return ", ".join(told)


# --- folders ----------------------------------------------------------------------------------------------------------


def check_variant(variant: Variant, folder: Path) -> None:
    """Raise a UserError where ``folder`` has runs that are not of ``variant``; it says what differs."""
    check_argument("A folder of runs", folder)
    runs = [RunFolder(file.parent) for file in sorted(folder.glob("seed-*/config.yaml"))]
    if not runs:
        return
    other = "Give another --output, or remove that folder."
    if not (folder / _RECIPE).is_file():
        raise UserError(f"{folder} holds runs that are of no sweep: it has no {_RECIPE}.", other)
    stored = RunFolder(folder).read_config(_RECIPE)
    old, new = (redact_all(flatten_settings(config.with_absolute_paths())) for config in (stored, variant.config))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if keys:
        differences = "; ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in keys)
        raise UserError(f"{folder} holds runs of another config: {differences}.", other)
    for run in runs:
        if not variant.config.test and run.read_metrics("test"):
            raise UserError(f"The run {run.path} has been tested already.", "Drop --no-test, or give another --output.")


def _tidy(sweep: Sweep, made: Sequence[Path]) -> None:
    """Remove the folders in which no run came to be."""
    for variant in sweep.variants:
        folder = sweep.folder / variant.name
        if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {_RECIPE}:
            (folder / _RECIPE).unlink(missing_ok=True)
            folder.rmdir()
    if (jobs := sweep.folder / _JOBS).is_dir() and not any(jobs.iterdir()):
        jobs.rmdir()
    if made and {entry.name for entry in sweep.folder.iterdir()} <= {".lock"}:
        (sweep.folder / ".lock").unlink(missing_ok=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
