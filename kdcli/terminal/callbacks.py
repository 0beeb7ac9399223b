"""Reporters of a program's own: functions that are told what happens, and a bar for notebooks. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Self

from kdcli.terminal.reporters import Reporter, SilentReporter

Callback = Callable[[str, Mapping[str, Any]], None]
"""Called with an event and its values: ``started``, ``logged``, ``measured``, ``validated`` (with ``best``), ``saved``,
``warned``, ``skipped``; the values are those of the method of that name of :class:`Reporter`. Not called at every
step."""


class CallingReporter(SilentReporter):
    """Calls a function for every event."""

    def __init__(self, callback: Callback) -> None:
        self._call = callback

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Tell that training begins, or goes on at ``step``."""
        self._call("started", {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch, "step": step})

    def logged(self, values: dict[str, float]) -> None:
        """Tell the means since the last call."""
        self._call("logged", dict(values))

    def measured(self, values: Mapping[str, float]) -> None:
        """Tell the teacher's own metrics."""
        self._call("measured", dict(values))

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Tell metrics on the validation split."""
        self._call("validated", {**values, "best": best})

    def saved(self, step: int) -> None:
        """Tell that a checkpoint was written."""
        self._call("saved", {"step": step})

    def warned(self, message: str) -> None:
        """Tell what the user should know."""
        self._call("warned", {"message": message})

    def skipped(self, name: str) -> None:
        """Tell that a file was left out."""
        self._call("skipped", {"name": name})


class BarReporter(SilentReporter):
    """Shows tqdm's bar: a widget in a notebook, a line on a terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None
        self._told: dict[str, str] = {}

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Open the bar at ``step``."""
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total_steps, initial=step, desc=self._label, unit="step")

    def stepped(self, step: int) -> None:
        """Move it."""
        self._bar.update(step - self._bar.n)

    def logged(self, values: dict[str, float]) -> None:
        """Show the loss."""
        self._show(loss=values.get("loss"))

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Show the metrics."""
        self._show(**{name: value for name, value in values.items() if name not in ("epoch", "step")})

    def warned(self, message: str) -> None:
        """Write the warning above the bar."""
        from tqdm.auto import tqdm

        tqdm.write(f"Warning: {message}")

    def _show(self, **values: float | None) -> None:
        self._told |= {name: f"{value:.4f}" for name, value in values.items() if value is not None}
        self._bar.set_postfix(self._told)


class SeveralReporters:
    """Tells each of several."""

    def __init__(self, reporters: Iterable[AbstractContextManager[Reporter]]) -> None:
        self._entered = ExitStack()
        self._given = list(reporters)
        self._reporters: list[Reporter] = []

    def __enter__(self) -> Self:
        self._reporters = [self._entered.enter_context(reporter) for reporter in self._given]
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def started(self, *, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Training begins, or goes on at ``step``."""
        for reporter in self._reporters:
            reporter.started(total_steps=total_steps, steps_per_epoch=steps_per_epoch, step=step)

    def stepped(self, step: int) -> None:
        """One batch is done."""
        for reporter in self._reporters:
            reporter.stepped(step)

    def logged(self, values: dict[str, float]) -> None:
        """Means since the last call."""
        for reporter in self._reporters:
            reporter.logged(values)

    def measured(self, values: Mapping[str, float]) -> None:
        """The teacher's own metrics on the validation split."""
        for reporter in self._reporters:
            reporter.measured(values)

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Metrics on the validation split."""
        for reporter in self._reporters:
            reporter.validated(values, best=best)

    def saved(self, step: int) -> None:
        """A checkpoint was written."""
        for reporter in self._reporters:
            reporter.saved(step)

    def warned(self, message: str) -> None:
        """Something the user should know."""
        for reporter in self._reporters:
            reporter.warned(message)

    def skipped(self, name: str) -> None:
        """A file was left out."""
        for reporter in self._reporters:
            reporter.skipped(name)
