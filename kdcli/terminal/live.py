"""A view of a training run that is redrawn in place."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdcli.terminal.pace import Pace, duration
from kdcli.terminal.reporters import PlainReporter, four_digits, losses_of, metrics_of, rates_of

_MUCH_WAITING = 0.3
"""Share of time spent waiting for data from which on it is marked."""
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
_NAME = 26
"""Characters of a metric's name that are shown whole; of a longer one the middle is cut out."""
_BLOCKS = "▁▂▃▄▅▆▇█"


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
            self._print(f"{self.label}: {done} in {duration(self.pace.elapsed)}")

    def logged(self, values: dict[str, float]) -> None:
        """Show the losses, learning rate, images/s and waiting."""
        losses = []
        for name, value in losses_of(values).items():
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
        self.validations = [*self.validations, _Validation(round(values["epoch"]), metrics_of(values), best)]

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
        learning_rate, speed, waiting = rates_of(self.values)
        style = "yellow" if self.values["data_wait"] > _MUCH_WAITING else ""
        saved = "" if self.checkpoint is None else f"   checkpoint at step {self.checkpoint}"
        status = Text.assemble(f"{learning_rate}   {speed}   ", (waiting, style), (saved, "dim"))
        status.no_wrap, status.overflow = True, "ellipsis"
        return status


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


def _bars(pace: Pace) -> Table:
    epoch, done = pace.epoch
    epochs = math.ceil(pace.total_steps / pace.steps_per_epoch)
    times = f"elapsed {duration(pace.elapsed)}  ETA {duration(pace.seconds_left)}"
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
    return [name, Text(four_digits(loss.value), justify="right"), _change(loss.change)]


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
    metrics = [_shorten(name, _NAME) for name in validations[-1].metrics]
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
        cells = [four_digits(values[name]) if name in values else "" for name in names]
        table.add_row(labels[index], *cells, style="green" if index == best else "")
    if any(name in teacher for name in names):
        table.add_row("teacher", *(four_digits(teacher[name]) if name in teacher else "" for name in names))
    if len(validations) > 1:
        history = [[each.metrics[name] for each in validations if name in each.metrics] for name in names]
        table.add_row(f"all {len(validations)}", *(Text(sparkline(h, width=_METRIC), "cyan") for h in history))
    return table


def _shorten(name: str, width: int) -> str:
    """Cut the middle out of a long name: its number is at the end."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 3
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"
