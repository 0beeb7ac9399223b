"""The progress of a training run: a live view, plain lines or JSON lines. No torch here.

The trainer tells a :class:`Reporter` what happens; :func:`make_reporter` chooses one. In every process but the main one
it tells a :class:`SilentReporter`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdcli.base.result import show_metric
from kdcli.terminal.console import console, errors

LogFormat = Literal["auto", "plain", "json"]

_NOT_LOSSES = ("epoch", "step", "lr", "images_per_second", "texts_per_second", "data_wait")
_MUCH_WAITING = 0.3
"""Share of time spent waiting for data from which on it is marked."""
_PLAIN_SECONDS = 30.0
"""Least time between two plain lines of training."""
_RECENT_STEPS = 200
"""Fewest steps over which the time that is left is estimated."""
_MARKS = 5000
"""Most times kept for that."""
_REFRESH = 2
"""Frames a second; one takes some 10 ms of the training process."""
_MAX_WIDTH, _MAX_HEIGHT = 100, 18
"""Of the live view, in characters and lines."""
_BORDER = 4
"""Characters of a line that the frame takes."""
_ONE_COLUMN = 5
"""Most losses that get a line each, with their history."""
_MAX_LOSSES = 14
"""Most losses that are shown, in two columns."""
_VALIDATIONS = 3
"""Most validations that are shown."""
_HISTORY = 20
"""Characters of a loss's history."""
_METRIC = 10
"""Least characters of a metric's column."""
_BLOCKS = "▁▂▃▄▅▆▇█"


class Reporter(Protocol):
    """What the trainer tells while it runs."""

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Training begins, or goes on at ``step``."""

    def stepped(self, step: int) -> None:
        """One batch is done; called at every step, must not read the device and must be cheap."""

    def logged(self, values: dict[str, float]) -> None:
        """Means since the last call.

        Args:
            values: ``epoch``, ``step``, ``lr``, ``images_per_second`` or ``texts_per_second``, ``data_wait`` (share of the
                time spent waiting for data, in [0, 1]), ``loss`` (the weighted total) and every loss term by its name; statistics have a slash
                in theirs, such as ``feature_std/pooled``.
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


def make_reporter(label: str, *, log_format: LogFormat, quiet: bool) -> AbstractContextManager[Reporter]:
    """Return the reporter of the main process.

    Args:
        label: of the run, beside every number.
        log_format: ``json`` writes one object a line to stdout; ``plain`` writes lines; ``auto`` is a live view on a
            terminal and ``plain`` elsewhere.
        quiet: whatever the format, only warnings and skipped files are printed, to stderr.
    """
    if quiet:
        return QuietReporter(errors)
    if log_format == "json":
        return JsonReporter(label, console)
    # Rich takes FORCE_COLOR for a terminal; a log file in colour still is no place for a live view.
    if log_format == "auto" and console.file.isatty() and console.is_interactive and not console.options.ascii_only:
        return LiveReporter(label, console)
    return PlainReporter(label, console)


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
        self.pace: _Pace | None = None
        self.values: dict[str, float] = {}
        self.printed = -math.inf

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Start the clock."""
        self.pace = _Pace(total_steps, steps_per_epoch, step, self.clock)

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
        losses = [f"{name} {_number(value)}" for name, value in _losses(values).items()]
        rest = [*_rates(values), f"ETA {_duration(self.pace.seconds_left)}"]
        head = f"{self.label} epoch {values['epoch']:.0f}  step {self.pace.step}/{self.pace.total_steps}"
        self._print("  ".join([head, *losses, *rest]))

    def measured(self, values: Mapping[str, float]) -> None:
        """Print the teacher's metrics."""
        self._print(f"{self.label} teacher  validation {_metric_line(values)}")

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Print the metrics."""
        metrics = _metric_line(_metrics(values))
        loss = f"train loss {self.values['loss']:.4f}  " if self.values else ""
        mark = [("  best", "green")] if best else []
        self._print(f"{self.label} epoch {values['epoch']:.0f}  {loss}validation {metrics}", *mark)


class LiveReporter(PlainReporter):
    """A view that is redrawn in place; it prints a line a validation above, and goes when the run is over.

    At most 18 lines high and 100 characters wide. Rendering the reporter itself gives the view as it is now.
    """

    def __init__(self, label: str, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(label, console, clock=clock)
        self.losses: list[_Loss] = []
        self.history: dict[str, list[float]] = {}
        self.validations: list[_Validation] = []
        self.teacher: dict[str, float] = {}
        self.checkpoint: int | None = None
        self.live = Live(
            self,
            console=console,
            refresh_per_second=_REFRESH,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # else it goes where the user sends it
        )

    def __enter__(self) -> Self:
        streams = sys.stdout, sys.stderr
        self.live.start()

        def give_back_streams() -> None:
            # While the view is on, they draw it, under a lock that the drawing thread may hold at the time of the fork.
            if self.live.is_started:
                sys.stdout, sys.stderr = streams

        if sys.platform != "win32":
            os.register_at_fork(after_in_child=give_back_streams)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()
        if self.pace is not None and self.pace.step > self.pace.first:
            done = f"steps {self.pace.first + 1} to {self.pace.step} of {self.pace.total_steps}"
            self._print(f"{self.label}: {done} in {_duration(self.pace.elapsed)}")

    def logged(self, values: dict[str, float]) -> None:
        """Show the losses, learning rate, images/s and waiting."""
        losses = []
        for name, value in _losses(values).items():
            history = self.history.setdefault(name, [])
            change = value - history[-1] if history else None
            history.append(value)
            losses.append(_Loss(name, value, change, sparkline(history, width=_HISTORY)))
        self.values, self.losses = values, losses

    def measured(self, values: Mapping[str, float]) -> None:
        """Print the teacher's metrics above the view, and show them in it."""
        super().measured(values)
        self.teacher = dict(values)

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Print the metrics above the view, and show them in it."""
        super().validated(values, best=best)
        self.validations = [*self.validations, _Validation(round(values["epoch"]), _metrics(values), best)]

    def saved(self, step: int) -> None:
        """Show the step."""
        self.checkpoint = step

    def __rich__(self) -> RenderableType:
        if self.pace is None:
            return Text(f"{self.label}: starting", style="dim")
        width = min(self.console.width, _MAX_WIDTH)
        space = width - _BORDER
        parts: list[RenderableType] = [_bars(self.pace)]
        height = 4
        if self.values:
            parts += [self._status(), Text(), _loss_table(self.losses, width=space)]
            height += 2 + _num_loss_rows(self.losses)
        height += 3 + bool(self.teacher)
        rows = min(_VALIDATIONS, min(_MAX_HEIGHT, self.console.height) - height)
        if self.validations and rows > 0:
            parts += [Text(), _validation_table(self.validations, self.teacher, rows=rows, width=space)]
        return Panel(Group(*parts), title=Text(self.label), title_align="left", border_style="cyan", width=width)

    def _status(self) -> RenderableType:
        learning_rate, speed, waiting = _rates(self.values)
        style = "yellow" if self.values["data_wait"] > _MUCH_WAITING else ""
        saved = "" if self.checkpoint is None else f"   checkpoint at step {self.checkpoint}"
        status = Text.assemble(f"{learning_rate}   {speed}   ", (waiting, style), (saved, "dim"))
        status.no_wrap, status.overflow = True, "ellipsis"
        return status


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


class _Pace:
    """How far a run is, and how long the rest of it takes.

    Timed over whole epochs, so that validations count in, and over at least 200 steps. The first step after a start is
    left out: loader processes start in it, and kernels are compiled.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, step: int, clock: Callable[[], float]) -> None:
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.first = self.step = step
        self.clock = clock
        self.since = clock()
        window = steps_per_epoch * math.ceil(_RECENT_STEPS / steps_per_epoch)
        self.every = math.ceil(window / _MARKS)
        self.marks: deque[tuple[int, float]] = deque(maxlen=math.ceil(window / self.every) + 1)

    def advance(self, step: int) -> None:
        """Take the time of ``step``."""
        self.step = step
        if not self.marks or step % self.every == 0:
            self.marks.append((step, self.clock()))

    @property
    def elapsed(self) -> float:
        """Seconds since the start, or since it went on."""
        return self.clock() - self.since

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step; None while too little is known."""
        if len(self.marks) < 2:
            return None
        (first, start), (last, end) = self.marks[0], self.marks[-1]
        return (self.total_steps - self.step) * (end - start) / (last - first)

    @property
    def epoch(self) -> tuple[int, int]:
        """The epoch, counted from 1, and how many of its steps are done; it ends with its last step."""
        epoch = max(math.ceil(self.step / self.steps_per_epoch), 1)
        return epoch, self.step - (epoch - 1) * self.steps_per_epoch


@dataclass(frozen=True)
class _Loss:
    name: str
    value: float
    change: float | None
    history: str


@dataclass(frozen=True)
class _Validation:
    epoch: int
    metrics: dict[str, float]
    best: bool


def sparkline(values: Sequence[float], *, width: int) -> str:
    """Return ``values`` as at most ``width`` blocks from lowest to highest, several to a block where there are more.

    A block without a finite value is a space.
    """
    num = min(len(values), width)
    edges = [number * len(values) // num for number in range(num + 1)] if num else []
    finite = [[value for value in values[start:end] if math.isfinite(value)] for start, end in pairwise(edges)]
    means = [sum(group) / len(group) if group else None for group in finite]
    known = [mean for mean in means if mean is not None]
    low, spread = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    top = len(_BLOCKS) - 1
    return "".join(
        " " if mean is None else _BLOCKS[round((mean - low) / spread * top) if spread else 0] for mean in means
    )


def _bars(pace: _Pace) -> Table:
    epoch, done = pace.epoch
    epochs = math.ceil(pace.total_steps / pace.steps_per_epoch)
    times = f"elapsed {_duration(pace.elapsed)}  ETA {_duration(pace.seconds_left)}"
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(ratio=1)
    table.add_column(no_wrap=True)
    table.add_row(
        f"epoch {min(epoch, epochs)}/{epochs}",
        ProgressBar(total=pace.steps_per_epoch, completed=done, complete_style="cyan"),
        f"step {done}/{pace.steps_per_epoch}",
    )
    table.add_row(
        f"step {pace.step}/{pace.total_steps}",
        ProgressBar(total=pace.total_steps, completed=pace.step, complete_style="cyan"),
        times,
    )
    return table


def _num_loss_rows(losses: Sequence[_Loss]) -> int:
    return len(losses) if len(losses) <= _ONE_COLUMN else math.ceil(min(len(losses), _MAX_LOSSES) / 2)


def _loss_table(losses: Sequence[_Loss], *, width: int) -> Table:
    """Lay the losses out in one column with their history, or in two without."""
    table = Table.grid(padding=(0, 2, 0, 0))
    if len(losses) <= _ONE_COLUMN:
        for loss in losses:
            table.add_row(*_loss_cells(loss, width=width - _HISTORY - 25), Text(loss.history, "cyan"))
        return table
    shown: list[list[RenderableType]] = [_loss_cells(loss, width=width // 2 - 24) for loss in losses]
    if len(losses) > _MAX_LOSSES:
        more = Text(f"{len(losses) - _MAX_LOSSES + 1} more", "dim")
        shown[_MAX_LOSSES - 1 :] = [[more, "", ""]]
    rows = _num_loss_rows(losses)
    for row in range(rows):
        right = shown[rows + row] if rows + row < len(shown) else ["", "", ""]
        table.add_row(*shown[row], *right)
    return table


def _loss_cells(loss: _Loss, *, width: int) -> list[RenderableType]:
    name = Text(_shorten(loss.name, max(width, _METRIC)), "bold" if loss.name == "loss" else "")
    return [name, Text(_number(loss.value), justify="right"), _change(loss.change)]


def _change(change: float | None) -> Text:
    if change is None or not math.isfinite(change):
        return Text()
    if change == 0:
        return Text("=", "dim")
    return Text(f"↓ {-change:.2g}", "green") if change < 0 else Text(f"↑ {change:.2g}", "yellow")


def _validation_table(
    validations: Sequence[_Validation], teacher: Mapping[str, float], *, rows: int, width: int
) -> Table:
    """Show the last ``rows`` validations, the best one among them, and the teacher, where it has the same metrics.

    The metrics that ``width`` can't hold are left out.
    """
    best = max((index for index, validation in enumerate(validations) if validation.best), default=None)
    first = max(len(validations) - rows, 0)
    shown = list(range(first, len(validations)))
    if best is not None and best < first:
        shown[0] = best
    labels = {index: f"epoch {validations[index].epoch}{' best' if index == best else ''}" for index in shown}
    metrics = [_shorten(name, 16) for name in validations[-1].metrics]
    widths = [max(len(name), _METRIC) + 2 for name in metrics]
    space = width - max(map(len, ["validation", *labels.values()])) - 2
    num_metrics = sum(sum(widths[: count + 1]) <= space for count in range(len(widths)))
    names = list(validations[-1].metrics)[:num_metrics]

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for _ in names:
        table.add_column(justify="right", no_wrap=True, min_width=_METRIC)
    table.add_row(Text("validation"), *map(Text, metrics[:num_metrics]), style="bold")
    for index in shown:
        values = validations[index].metrics  # another stage of a method has other metrics
        cells = [_number(values[name]) if name in values else "" for name in names]
        table.add_row(labels[index], *cells, style="green" if index == best else "")
    if any(name in teacher for name in names):
        table.add_row("teacher", *(_number(teacher[name]) if name in teacher else "" for name in names))
    if len(validations) > 1:
        history = [[each.metrics[name] for each in validations if name in each.metrics] for name in names]
        table.add_row(f"all {len(validations)}", *(Text(sparkline(h, width=_METRIC), "cyan") for h in history))
    return table


def _losses(values: dict[str, float]) -> dict[str, float]:
    """Return the total and the terms, without statistics."""
    terms = {name: value for name, value in values.items() if name not in _NOT_LOSSES and "/" not in name}
    return {"loss": values["loss"], **terms}


def _metrics(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in ("epoch", "step")}


def _metric_line(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {show_metric(name, value)}" for name, value in metrics.items())


def _rates(values: dict[str, float]) -> tuple[str, str, str]:
    ((key, speed),) = ((key, value) for key, value in values.items() if key.endswith("_per_second"))
    return (
        f"lr {values['lr']:.3g}",
        f"{speed:.0f} {key.partition('_')[0]}/s",
        f"{values['data_wait']:.0%} waiting for data",
    )


def _number(value: float) -> str:
    return f"{value:#.4g}".removesuffix(".")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _shorten(name: str, width: int) -> str:
    """Cut the middle out of a long name: its number is at the end."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 3
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def _printable(name: str) -> str:
    """Write out what a terminal can't print: control characters, and bytes of a file name that are no text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
