"""When to save and when to stop: signals and the clock, agreed on by all training processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
from torch import distributed

from kdcli.machine.signals import stop_signals
from kdcli.machine.team import ALONE, Team


class Verdict(IntEnum):
    """What to do after a step; the highest that any process says holds for all."""

    GO_ON = 0
    SAVE = 1
    STOP_HUP = 2
    STOP_INT = 3
    STOP_TERM = 4

    @property
    def is_stop(self) -> bool:
        """Whether a signal asked for it."""
        return self >= Verdict.STOP_HUP

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal that asked to stop, as shells report it."""
        return 128 + signal.Signals[self.name.replace("STOP_", "SIG")]


class Stopped(Exception):
    """Training was asked to stop, and did so with everything saved.

    Attributes:
        exit_code: 128 and the signal's number, as shells report it.
    """

    def __init__(self, exit_code: int, step: int, total_steps: int) -> None:
        super().__init__(f"stopped at step {step} of {total_steps}")
        self.exit_code = exit_code
        self.step = step
        self.total_steps = total_steps


@dataclass(frozen=True)
class Every:
    """How often to save: by steps or by time; the other is None.

    Attributes:
        steps: of training.
        seconds: by a clock that does not jump.
    """

    steps: int | None
    seconds: float | None

    @classmethod
    def parse(cls, text: str) -> Every:
        """Read ``200`` (steps), ``30s``, ``10m`` or ``2h``."""
        unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1])
        return cls(int(text), None) if unit is None else cls(None, float(int(text[:-1]) * unit))


class Control:
    """Says after each step whether to save or to stop.

    Args:
        every: how often to save.
        team: of the processes that train together. What one of them was told, all do at the same step; they agree over
            a CPU process group of their own, so that no accelerator is waited for.

    Attributes:
        saved_step: of the last checkpoint, the same in all processes; 0 before the first.
    """

    def __init__(self, every: Every, team: Team = ALONE) -> None:
        self._every = every
        self._group: Any = None if team.is_alone else distributed.new_group(backend="gloo")
        self._saved_at, self.saved_step = time.monotonic(), 0
        self._asked = Verdict.GO_ON

    @property
    def stop_asked(self) -> bool:
        """Whether this process was told to stop."""
        return self._asked != Verdict.GO_ON

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT (Ctrl-C), SIGTERM and SIGHUP as wishes; a second one of a kind is carried out at once.

        SIGHUP stays ignored where it was ignored from the start, as under ``nohup``.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return
        before = {number: signal.getsignal(number) for number in stop_signals()}

        def ask(number: int, frame: FrameType | None) -> None:
            wish = Verdict[signal.Signals(number).name.replace("SIG", "STOP_")]
            self._asked = max(self._asked, wish)
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def after(self, step: int) -> Verdict:
        """Return what all processes do now that ``step`` is done."""
        verdict = self._asked
        if verdict == Verdict.GO_ON and self._is_due(step):
            verdict = Verdict.SAVE
        if self._group is not None:
            agreed = torch.tensor(int(verdict))
            distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX, group=self._group)
            verdict = Verdict(int(agreed))
        return verdict

    def saved(self, step: int) -> None:
        """Count anew: there is a checkpoint of ``step``."""
        self._saved_at, self.saved_step = time.monotonic(), step

    def _is_due(self, step: int) -> bool:
        if self._every.steps is not None:
            return step - self.saved_step >= self._every.steps
        assert self._every.seconds is not None
        return time.monotonic() - self._saved_at >= self._every.seconds
