"""The jobs of a cluster among which the runs of a sweep are shared: SLURM's, or this machine's, by submitit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.yaml import parse_yaml
from kdcli.experiments.distill import Output
from kdcli.experiments.sweep_runs import Ending, Endings, Run, run_one

CLUSTERS = ("slurm", "local")
_POLL = {"slurm": 5.0, "local": 0.1}
"""Seconds between two looks at the jobs."""
_PATIENCE = 120.0
"""Seconds that cancelled jobs of this machine have to save what they have."""


@dataclass(frozen=True)
class Cluster:
    """Where jobs go.

    Attributes:
        name: one of :data:`CLUSTERS`.
        settings: as submitit's ``AutoExecutor.update_parameters`` takes them.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str | None, settings: Sequence[str]) -> Cluster | None:
        """Return what the options say; None without a cluster.

        Args:
            name: of it.
            settings: ``KEY=VALUE`` each.

        Raises:
            UserError: there is no such cluster, submitit is not installed, or a setting is none.
        """
        if name is None:
            if settings:
                raise UserError("--cluster-set is for --cluster, which is not given.", "Add --cluster slurm.")
            return None
        if name not in CLUSTERS:
            raise UserError(f"--cluster {name} is not known.", f"Choose one of: {', '.join(CLUSTERS)}.")
        if find_spec("submitit") is None:
            raise UserError("--cluster needs submitit, which is not installed.", "pip install 'kdcli[slurm]'")
        found: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or not key.isidentifier():
                raise UserError(f"--cluster-set {setting!r} is not KEY=VALUE.", "For example slurm_partition=gpu.")
            found[key] = parse_yaml(value)
        return cls(name, found)


class Jobs:
    """Gives each run to a job of its own, which may run anywhere that sees this folder.

    Args:
        cluster: where jobs go.
        most: jobs at a time; None for all at once, to wait in the cluster's own queue.
        folder: gets submitit's files and the jobs' output.
        command: the command line, for the records.

    Raises:
        UserError: there is no such cluster here, or it has not these settings.
    """

    def __init__(self, cluster: Cluster, most: int | None, folder: Path, *, command: str) -> None:
        from submitit import AutoExecutor

        self._cluster, self._most, self._command = cluster, most, command
        try:
            self._executor = AutoExecutor(folder=folder.absolute(), cluster=cluster.name)
            self._executor.update_parameters(**{"name": "kdcli", "timeout_min": 24 * 60, **cluster.settings})
        except Exception as error:  # submitit raises whatever it trips over: NameError, RuntimeError, TypeError
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"--cluster {cluster.name}: {lines[0] if lines else type(error).__name__}",
                "Settings are those of submitit's AutoExecutor, such as timeout_min, mem_gb, cpus_per_task,"
                " gpus_per_node and slurm_partition.",
            ) from None
        self._running: dict[Any, tuple[Run, float]] = {}

    def run(self, runs: Iterator[Run]) -> Endings:
        """Yield each run when its job has ended, with how and the seconds since it was handed in.

        With ``most``, the next one is taken of ``runs`` after that.
        """
        try:
            while self._fill(runs):
                ended = [job for job in self._running if job.done()]
                for job in ended:
                    run, since = self._running.pop(job)
                    yield run, _ending(job), time.monotonic() - since
                if not ended:
                    time.sleep(_POLL[self._cluster.name])
        finally:
            self._cancel()

    def _fill(self, runs: Iterator[Run]) -> bool:
        while self._most is None or len(self._running) < self._most:
            run = next(runs, None)
            if run is None:
                break
            since = time.monotonic()
            try:
                with _deaf_to_ctrl_c():  # which is answered here, for all jobs
                    job = self._executor.submit(_Task(run, self._command))
            except Exception as error:  # what the cluster says comes as whatever submitit makes of it
                raise UserError(f"--cluster {self._cluster.name} took no job: {error}", "Mend what it says.") from None
            self._running[job] = run, since
        return bool(self._running)

    def _cancel(self) -> None:
        """Cancel what still runs: a training saves first. Jobs of this machine are waited for."""
        for job in self._running:
            with contextlib.suppress(Exception):  # it has ended meanwhile
                if self._cluster.name == "local":  # where submitit cancels by Ctrl-C, with a traceback
                    os.kill(int(job.job_id), signal.SIGTERM)
                else:
                    job.cancel()
        until = time.monotonic() + (_PATIENCE if self._cluster.name == "local" else 0)
        while any(not job.done() for job in self._running) and time.monotonic() < until:
            time.sleep(_POLL["local"])


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let processes that are started meanwhile not hear what a terminal sends to all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@dataclass
class _Task:
    """What a job does; where its time is up, SLURM starts it again, and it goes on from the last checkpoint."""

    run: Run
    command: str

    def __call__(self) -> tuple[int, str | None, str | None]:
        """Return how the run ended: exit code, message and hint."""
        ending = run_one(self.run, Output("plain"), self.command)
        return ending.code, *((None, None) if ending.error is None else (ending.error.message, ending.error.hint))

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is handed in again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _ending(job: Any) -> Ending:
    """Return how a job's run ended; one that left no result has failed."""
    try:
        code, message, hint = job.result()
    except Exception:  # the job's own, as submitit wraps it
        return Ending(
            error=UserError(
                f"Its job {job.job_id} ended without a result ({job.state}).", f"It says why: {job.paths.stderr}"
            )
        )
    if code:  # it was told to stop, by somebody else than this command, and has saved
        return Ending(error=UserError(f"Its job {job.job_id} was stopped.", "The same command goes on with it."))
    return Ending(error=None if message is None else UserError(message, hint))
