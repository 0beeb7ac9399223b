"""One run of a sweep: begun or gone on with, and how it ended."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from kdcli.base.errors import UserError
from kdcli.config.keys import beside_the_recipe, may_change
from kdcli.config.run import RunConfig
from kdcli.experiments.distill import Output, distill_run, is_finished, resume_run
from kdcli.experiments.episodes import has_all_episodes, resume_episodes, run_episodes
from kdcli.experiments.variants import Variant
from kdcli.machine.signals import stop_signals
from kdcli.runs.folder import RunFolder
from kdcli.terminal.callbacks import Callback


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        variant: what is run.
        seed: with which seed.
        path: of its folder.
        force: go on with it although its data, its teacher or its files have changed.
        callback: told what happens in its trainings, in the process that runs it; it may raise :class:`GivenUp`.
    """

    variant: Variant
    seed: int
    path: Path
    force: bool = False
    callback: Callback | None = None

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
class Ending:
    """How a run ended: the exit code of a signal that stopped it or 0, and the user's error that it failed with."""

    code: int = 0
    error: UserError | None = None


Endings = Generator[tuple[Run, Ending, float], None, None]
"""Runs as they end, with the seconds that they took."""


class GivenUp(Exception):
    """A callback has seen enough of a run: it ends here, and nothing is wrong with it."""


class Signalled(BaseException):
    """A signal came; not an ``Exception``, as KeyboardInterrupt is none."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def raise_signalled(number: int, frame: FrameType | None) -> None:
    """Handle a signal to stop: raise :class:`Signalled`."""
    raise Signalled(128 + number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise :class:`Signalled` at the signals to stop where no training takes them, which saves first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, raise_signalled) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_here(runs: Iterable[Run], output: Output, command: str) -> Endings:
    """Yield each run when it has ended in this process, with how and the seconds that it took."""
    for run in runs:
        started = time.monotonic()
        ending = run_one(run, output, command)
        yield run, ending, time.monotonic() - started


def run_one(run: Run, output: Output, command: str) -> Ending:
    """Begin a run, or go on with it."""
    if run.callback is not None:
        output = replace(output, callbacks=(*output.callbacks, run.callback))
    try:
        if (run.path / "config.yaml").is_file():
            stored = RunFolder(run.path, force=run.force).read_config()
            config = _with_free_keys(stored, run.variant.config)
            if config.episodes is not None:
                return Ending(resume_episodes(config, run.path, output=output, dry_run=False, force=run.force))
            return Ending(resume_run(config, run.path, command=command, output=output, dry_run=False, force=run.force))
        begin = distill_run if run.config.episodes is None else run_episodes
        return Ending(begin(run.config, name=run.variant.name, command=command, output=output, dry_run=False))
    except GivenUp:
        return Ending()
    except UserError as error:
        return Ending(error=error)


def _with_free_keys(stored: RunConfig, config: RunConfig) -> RunConfig:
    """Return a run's own config, with ``config``'s values of the keys that do not make another recipe.

    What the run has settled for itself when it began stays.
    """
    for key in filter(may_change, beside_the_recipe()):
        section, _, name = key.rpartition(".")
        if section:
            value = getattr(getattr(config, section), name)
            stored = stored.model_copy(
                update={section: getattr(stored, section).model_copy(update={name: value})},
            )
        else:
            stored = stored.model_copy(update={name: getattr(config, name)})
    return stored
