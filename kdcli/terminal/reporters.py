"""Who is told of a training run: a protocol, and those that print lines, JSON lines, warnings alone or nothing.

The trainer tells a :class:`Reporter` what happens. In every process but the main one it tells a
:class:`SilentReporter`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from rich.console import Console
from rich.text import Text

from kdcli.base.result import show_metric
from kdcli.terminal.pace import Pace, duration

_NOT_LOSSES = ("epoch", "step", "lr", "images_per_second", "texts_per_second", "data_wait")
_PLAIN_SECONDS = 30.0
"""Least time between two plain lines of training."""


class Reporter(Protocol):
    """What the trainer tells while it runs."""

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Training begins, or goes on at ``step``."""

    def stepped(self, step: int) -> None:
        """One batch is done; called at every step, must not read the device and must be cheap."""

    def logged(self, values: dict[str, float]) -> None:
        """Means since the last call.

        Args:
            values: ``epoch``, ``step``, ``lr``, ``images_per_second`` or ``texts_per_second``, ``data_wait`` (share of
                the time spent waiting for data, in [0, 1]), ``loss`` (the weighted total) and every loss term by its
                name; statistics have a slash in theirs, such as ``feature_std/pooled``.
        """

    def measured(self, values: Mapping[str, float]) -> None:
        """The teacher's own metrics on the validation split; called once, before the first step."""

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Metrics on the validation split, with ``epoch`` and ``step``; ``best`` so far or not."""

    def saved(self, step: int) -> None:
        """A checkpoint was written."""

    def warned(self, message: str) -> None:
        """Something the user should know, that does not stop the run."""

    def skipped(self, name: str) -> None:
        """A file could not be read and was left out."""


class SilentReporter:
    """Prints nothing; the other reporters say more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Training begins, or goes on at ``step``."""

    def stepped(self, step: int) -> None:
        """One batch is done."""

    def logged(self, values: dict[str, float]) -> None:
        """Means since the last call."""

    def measured(self, values: Mapping[str, float]) -> None:
        """The teacher's own metrics on the validation split; called once, before the first step."""

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Metrics on the validation split."""

    def saved(self, step: int) -> None:
        """A checkpoint was written."""

    def warned(self, message: str) -> None:
        """Something the user should know."""

    def skipped(self, name: str) -> None:
        """A file was left out."""


class QuietReporter(SilentReporter):
    """Prints warnings and skipped files."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def warned(self, message: str) -> None:
        """Print the warning."""
        self._print(("Warning:", "yellow"), " ", message)

    def skipped(self, name: str) -> None:
        """Name the file that could not be read."""
        self._print(("Skipped an unreadable image:", "yellow"), " ", _printable(name))

    def _print(self, *parts: str | tuple[str, str]) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=True)


class PlainReporter(QuietReporter):
    """Prints a line a validation, and one of training every 30 seconds at most."""

    def __init__(self, label: str, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self.label = label
        self.clock = clock
        self.pace: Pace | None = None
        self.values: dict[str, float] = {}
        self.printed = -math.inf

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Start the clock."""
        self.pace = Pace(total_steps, steps_per_epoch, step, self.clock)

    def stepped(self, step: int) -> None:
        """Take the time."""
        assert self.pace is not None
        self.pace.advance(step)

    def logged(self, values: dict[str, float]) -> None:
        """Print the losses, unless a line has just been printed."""
        assert self.pace is not None
        self.values = values
        if self.clock() - self.printed < _PLAIN_SECONDS:
            return
        self.printed = self.clock()
        losses = [f"{name} {four_digits(value)}" for name, value in losses_of(values).items()]
        rest = [*rates_of(values), f"ETA {duration(self.pace.seconds_left)}"]
        head = f"{self.label} epoch {values['epoch']:.0f}  step {self.pace.step}/{self.pace.total_steps}"
        self._print("  ".join([head, *losses, *rest]))

    def measured(self, values: Mapping[str, float]) -> None:
        """Print the teacher's metrics."""
        self._print(f"{self.label} teacher  validation {metric_line(values)}")

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Print the metrics."""
        metrics = metric_line(metrics_of(values))
        loss = f"train loss {self.values['loss']:.4f}  " if self.values else ""
        mark = [("  best", "green")] if best else []
        self._print(f"{self.label} epoch {values['epoch']:.0f}  {loss}validation {metrics}", *mark)


class JsonReporter(SilentReporter):
    """Writes every event as one JSON object a line: its ``event``, the ``run`` and what the event brings.

    Numbers have all their digits; one that is not finite is null.
    """

    def __init__(self, label: str, console: Console) -> None:
        self.label = label
        self.console = console

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Write ``started``."""
        self._write("started", {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch, "step": step})

    def logged(self, values: dict[str, float]) -> None:
        """Write ``train``."""
        self._write("train", values)

    def measured(self, values: Mapping[str, float]) -> None:
        """Write ``teacher``."""
        self._write("teacher", dict(values))

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Write ``validation``, with ``best``."""
        self._write("validation", {**values, "best": best})

    def saved(self, step: int) -> None:
        """Write ``saved``."""
        self._write("saved", {"step": step})

    def warned(self, message: str) -> None:
        """Write ``warning``."""
        self._write("warning", {"message": message})

    def skipped(self, name: str) -> None:
        """Write ``skipped``."""
        self._write("skipped", {"name": name})

    def _write(self, event: str, values: dict[str, Any]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps({"event": event, "run": self.label, **finite}, allow_nan=False)
        print(line, file=self.console.file, flush=True)


def losses_of(values: dict[str, float]) -> dict[str, float]:
    """Return the total and the terms, without statistics."""
    terms = {name: value for name, value in values.items() if name not in _NOT_LOSSES and "/" not in name}
    return {"loss": values["loss"], **terms}


def metrics_of(values: dict[str, float]) -> dict[str, float]:
    """Return what was measured, without epoch and step."""
    return {name: value for name, value in values.items() if name not in ("epoch", "step")}


def metric_line(metrics: Mapping[str, float]) -> str:
    """Return all metrics in a line."""
    return "  ".join(f"{name} {show_metric(name, value)}" for name, value in metrics.items())


def rates_of(values: dict[str, float]) -> tuple[str, str, str]:
    """Return learning rate, samples a second and share of waiting, in words."""
    ((key, speed),) = ((key, value) for key, value in values.items() if key.endswith("_per_second"))
    return (
        f"lr {values['lr']:.3g}",
        f"{speed:.0f} {key.partition('_')[0]}/s",
        f"{values['data_wait']:.0%} waiting for data",
    )


def four_digits(value: float) -> str:
    """Return a number with four significant digits."""
    return f"{value:#.4g}".removesuffix(".")


def _printable(name: str) -> str:
    """Write out what a terminal can't print: control characters, and bytes of a file name that are no text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
