"""The processes among which the runs of a sweep are shared."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from kdcli.base.errors import UserError
from kdcli.config.run import RunConfig
from kdcli.experiments.distill import Output
from kdcli.experiments.sweep_runs import Ending, Endings, Run, Signalled, raise_signalled, run_one
from kdcli.machine.launch import end_with_the_launcher, num_cores
from kdcli.machine.signals import stop_signals


def gpus_for(configs: Sequence[RunConfig]) -> list[str]:
    """Return the GPUs to share runs, as ``CUDA_VISIBLE_DEVICES`` names them; none where a run names its device."""
    if not all(config.train.device in ("auto", "cuda") for config in configs):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(torch.cuda.device_count())]
    return names if visible is None else visible.split(",")[: len(names)]


def num_workers(jobs: int | None, gpus: Sequence[str]) -> int:
    """Return how many processes share runs: as many as ``--jobs`` says, by default one for each GPU.

    Raises:
        UserError: more than there are cores.
    """
    if jobs is None:
        return max(len(gpus), 1)
    if not gpus and jobs > (most := max(num_cores(), 2)):
        raise UserError(f"--jobs {jobs}, and there are {num_cores()} CPU cores.", f"Use at most {most}.")
    return jobs


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    connection: Connection
    run: Run | None = None
    since: float = 0.0


class Workers:
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

    def run(self, runs: Iterator[Run]) -> Endings:
        """Yield each run when it has ended, with how and the seconds that it took.

        The next one is taken of ``runs`` after that, so that it may depend on how the last one ended.
        """
        try:
            for number, run in enumerate(itertools.islice(runs, self.count)):
                self._give(self._start(number), run)
            while busy := [worker for worker in self.workers.values() if worker.run is not None]:
                for connection in wait([worker.connection for worker in busy]):
                    assert isinstance(connection, Connection)
                    worker = self.workers[connection]
                    assert worker.run is not None
                    run, seconds = worker.run, time.monotonic() - worker.since
                    ending = self._ending(worker)
                    worker.run = None
                    yield run, ending, seconds
                    if not ending.code and (following := next(runs, None)) is not None:
                        if connection not in self.workers:
                            worker = self._start(worker.number)
                        self._give(worker, following)
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

    def _ending(self, worker: _Worker) -> Ending:
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
                return Ending(128 + signal.SIGTERM)
            if exit_code > 0:
                raise SystemExit(1) from None
            return Ending(
                error=UserError(
                    f"Its process was ended by {signal.Signals(-exit_code).name}.",
                    "If nobody did so, memory ran out: use fewer --jobs.",
                )
            )
        return Ending(code, None if message is None else UserError(message, hint))

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
            signal.signal(number, raise_signalled)
    output = Output("plain", quiet=not verbose)
    with contextlib.suppress(Signalled):
        while True:
            try:
                run: Run = connection.recv()
            except (EOFError, ConnectionError):
                return
            ending = run_one(run, output, command)
            told: tuple[Any, ...] = (None, None) if ending.error is None else (ending.error.message, ending.error.hint)
            with contextlib.suppress(ConnectionError):  # nobody waits for it any more
                connection.send((ending.code, *told))
            if ending.code:
                return
