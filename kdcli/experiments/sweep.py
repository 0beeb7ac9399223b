"""``kdcli sweep``: variants of recipes over seeds, each run in its own folder; the same command goes on with them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.files import clear_os_errors
from kdcli.base.text import check_argument, redact_all
from kdcli.config.keys import beside_the_recipe, flatten_settings
from kdcli.config.run import RunConfig
from kdcli.experiments.distill import Output, distill_run, is_finished, resume_run
from kdcli.experiments.episodes import has_all_episodes, resume_episodes, run_episodes
from kdcli.experiments.variants import Variant
from kdcli.machine.launch import end_with_the_launcher, is_launched, num_cores
from kdcli.machine.signals import stop_signals
from kdcli.runs.folder import RunFolder
from kdcli.terminal.console import show_lines

_RECIPE = "recipe.yaml"
"""In the folder of a variant: its config, as the next command's is compared with."""
EPISODES = "episodes distilled"
"""What the metric of the students of episodes is called in a comparison."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        variant: what is run.
        seed: with which seed.
        path: of its folder.
        force: go on with it although its data, its teacher or its files have changed.
    """

    variant: Variant
    seed: int
    path: Path
    force: bool = False

    @property
    def label(self) -> str:
        """What it is called in a line."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        config = self.variant.config
        return (is_finished if config.episodes is None else has_all_episodes)(self.path, config)

    @property
    def config(self) -> RunConfig:
        """The config to begin the run with."""
        return self.variant.config.model_copy(update={"seed": self.seed, "output": self.path})


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


@dataclass(frozen=True)
class _Ending:
    """How a run ended: the exit code of a signal that stopped it or 0, and the user's error that it failed with."""

    code: int = 0
    error: UserError | None = None


_Endings = Generator[tuple[Run, _Ending, float], None, None]
"""Runs as they end, with the seconds that they took."""


class _Signalled(BaseException):
    """A signal came; not an ``Exception``, as KeyboardInterrupt is none."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_sweep(sweep: Sweep, *, jobs: int | None, command: str, verbose: bool) -> tuple[int, dict[str, UserError]]:
    """Run what is not finished, and print a line a run.

    Args:
        sweep: what to run.
        jobs: worker processes; by default one for each of several GPUs, or none: all runs in this process.
        command: the command line, for the records.
        verbose: show the runs' own output.

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
    gpus = _gpus(sweep)
    num_jobs = _num_jobs(jobs, gpus)
    for variant in sweep.variants:
        check_variant(variant, sweep.folder / variant.name)
    made = [folder for folder in (sweep.folder, *sweep.folder.parents) if not folder.exists()]
    with clear_os_errors(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, UserError] = {}
    try:
        with RunFolder(sweep.folder).locked(), _signals():
            for variant in sweep.variants:
                folder = sweep.folder / variant.name
                with clear_os_errors(folder):
                    folder.mkdir(exist_ok=True)
                RunFolder(folder).write_config(variant.config, _RECIPE)
            code = _run_all(sweep, num_jobs, gpus, command, verbose, failed)
    except _Signalled as signalled:
        code = signalled.code
    finally:
        _tidy(sweep, made)
    return code, failed


def _run_all(
    sweep: Sweep, num_jobs: int, gpus: Sequence[str], command: str, verbose: bool, failed: dict[str, UserError]
) -> int:
    total, number, pending = len(sweep.runs), 0, []
    for run in sweep.runs:
        if run.is_finished:
            number += 1
            show_lines([f"[{number}/{total}] {run.label}: finished before: {_headline(run)}"])
        else:
            pending.append(run)
    if num_jobs > 1 and len(pending) > 1:
        workers = _Workers(min(num_jobs, len(pending)), gpus, command=command, verbose=verbose)
        endings = workers.run(pending)
    else:
        endings = _run_here(pending, Output(quiet=not verbose), command)
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


def _run_here(runs: Sequence[Run], output: Output, command: str) -> _Endings:
    for run in runs:
        started = time.monotonic()
        ending = _run_one(run, output, command)
        yield run, ending, time.monotonic() - started


def _run_one(run: Run, output: Output, command: str) -> _Ending:
    """Begin a run, or go on with it."""
    try:
        if (run.path / "config.yaml").is_file():
            stored = RunFolder(run.path, force=run.force).read_config()
            config = _with_free_keys(stored, run.variant.config)
            if config.episodes is not None:
                return _Ending(resume_episodes(config, run.path, output=output, dry_run=False, force=run.force))
            return _Ending(resume_run(config, run.path, command=command, output=output, dry_run=False, force=run.force))
        begin = distill_run if run.config.episodes is None else run_episodes
        return _Ending(begin(run.config, name=run.variant.name, command=command, output=output, dry_run=False))
    except UserError as error:
        return _Ending(error=error)


def _with_free_keys(stored: RunConfig, config: RunConfig) -> RunConfig:
    """Return a run's own config, with ``config``'s values of the keys that do not make another recipe."""
    for key in beside_the_recipe():
        section, _, name = key.rpartition(".")
        if section:
            value = getattr(getattr(config, section), name)
            stored = stored.model_copy(
                update={section: getattr(stored, section).model_copy(update={name: value})},
            )
        elif name not in ("seed", "output"):
            stored = stored.model_copy(update={name: getattr(config, name)})
    return stored


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
    if made and {entry.name for entry in sweep.folder.iterdir()} <= {".lock"}:
        (sweep.folder / ".lock").unlink(missing_ok=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


# --- processes --------------------------------------------------------------------------------------------------------


def _gpus(sweep: Sweep) -> list[str]:
    """Return the GPUs to share the runs, as ``CUDA_VISIBLE_DEVICES`` names them; none where a run names its device."""
    if not all(variant.config.train.device in ("auto", "cuda") for variant in sweep.variants):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(torch.cuda.device_count())]
    return names if visible is None else visible.split(",")[: len(names)]


def _num_jobs(jobs: int | None, gpus: Sequence[str]) -> int:
    if jobs is None:
        return max(len(gpus), 1)
    if not gpus and jobs > (most := max(num_cores(), 2)):
        raise UserError(f"--jobs {jobs}, and there are {num_cores()} CPU cores.", f"Use at most {most}.")
    return jobs


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Raise ``_Signalled`` at the signals to stop where no training takes them, which saves first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, _raise_signalled) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_signalled(number: int, frame: FrameType | None) -> None:
    raise _Signalled(128 + number)


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    connection: Connection
    run: Run | None = None
    since: float = 0.0


class _Workers:
    """Processes that take one run after another; each sees one GPU, or has its share of the cores.

    Args:
        count: of the processes.
        gpus: in turn for the processes.
        command: the command line, for the records.
        verbose: show the runs' own output.
    """

    def __init__(self, count: int, gpus: Sequence[str], *, command: str, verbose: bool) -> None:
        self.count, self.gpus, self.command, self.verbose = count, gpus, command, verbose
        self.workers: dict[Connection, _Worker] = {}

    def run(self, runs: Sequence[Run]) -> _Endings:
        """Yield each run when it has ended, with how and the seconds that it took."""
        waiting = list(reversed(runs))
        try:
            for number in range(self.count):
                self._give(self._start(number), waiting.pop())
            while busy := [worker for worker in self.workers.values() if worker.run is not None]:
                for connection in wait([worker.connection for worker in busy]):
                    assert isinstance(connection, Connection)
                    worker = self.workers[connection]
                    assert worker.run is not None
                    run, seconds = worker.run, time.monotonic() - worker.since
                    ending = self._ending(worker)
                    worker.run = None
                    if waiting and not ending.code:
                        if connection not in self.workers:
                            worker = self._start(worker.number)
                        self._give(worker, waiting.pop())
                    yield run, ending, seconds
        finally:
            self._stop()

    def _start(self, number: int) -> _Worker:
        values = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(num_cores() // self.count, 1)))}
        if self.gpus:
            values["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.command, self.verbose))
        # A terminal sends Ctrl-C to all; the workers leave it to this process, but for a training that saves at it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        self.workers[ours] = worker = _Worker(number, process, ours)
        return worker

    def _give(self, worker: _Worker, run: Run) -> None:
        worker.run, worker.since = run, time.monotonic()
        worker.connection.send(run)

    def _ending(self, worker: _Worker) -> _Ending:
        """Return how the worker's run ended.

        Raises:
            SystemExit: by an error that is none of the user's; the process has printed its traceback.
        """
        try:
            code, message, hint = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            del self.workers[worker.connection]
            worker.process.join()
            exit_code = worker.process.exitcode
            assert exit_code is not None
            if exit_code == 0:  # it was told to stop between two steps
                return _Ending(128 + signal.SIGTERM)
            if exit_code > 0:
                raise SystemExit(1) from None
            return _Ending(
                error=UserError(
                    f"Its process was ended by {signal.Signals(-exit_code).name}.",
                    "If nobody did so, memory ran out: use fewer --jobs.",
                )
            )
        return _Ending(code, None if message is None else UserError(message, hint))

    def _stop(self) -> None:
        """End all workers; those that train save first, unless they are told a second time."""
        processes = [worker.process for worker in self.workers.values()]
        try:
            for worker in self.workers.values():
                worker.process.terminate()
                worker.connection.close()  # a training that took the signal ends, and then the worker
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.kill()


def _work(connection: Connection, command: str, verbose: bool) -> None:
    """Take runs until the process is told to stop, or nobody gives it any."""
    end_with_the_launcher()
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # it has ended while this process started
        return
    for number in stop_signals():
        if number != signal.SIGINT:  # which is left to the process that started this one
            signal.signal(number, _raise_signalled)
    output = Output("plain", quiet=not verbose)
    with contextlib.suppress(_Signalled):
        while True:
            try:
                run: Run = connection.recv()
            except (EOFError, ConnectionError):
                return
            ending = _run_one(run, output, command)
            told: tuple[Any, ...] = (None, None) if ending.error is None else (ending.error.message, ending.error.hint)
            with contextlib.suppress(ConnectionError):  # nobody waits for it any more
                connection.send((ending.code, *told))
            if ending.code:
                return
