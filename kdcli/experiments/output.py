"""What a run prints, and who else is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kdcli.machine.launch import rank
from kdcli.terminal.callbacks import BarReporter, Callback, CallingReporter, SeveralReporters
from kdcli.terminal.console import console
from kdcli.terminal.progress import LogFormat, make_reporter
from kdcli.terminal.reporters import Reporter


@dataclass(frozen=True)
class Output:
    """What is printed.

    Attributes:
        log_format: of the training's progress; with ``json``, standard output has JSON lines alone.
        quiet: nothing but warnings and errors.
        whole_plan: every decision of the plan with its reason, in place of its summary.
        bar: a bar in place of lines.
        callbacks: functions that are told what happens, beside what is printed.
    """

    log_format: LogFormat = "auto"
    quiet: bool = False
    whole_plan: bool = False
    bar: bool = False
    callbacks: tuple[Callback, ...] = ()

    def reporter(self, label: str) -> AbstractContextManager[Reporter]:
        """Return who is told of a training that is called ``label``."""
        shown = BarReporter(label) if self.bar else make_reporter(label, log_format=self.log_format, quiet=self.quiet)
        return SeveralReporters([shown, *map(CallingReporter, self.callbacks)]) if self.callbacks else shown

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Print plan, tables and lines only where they are wanted, and in the main process alone."""
        before = console.quiet
        console.quiet = before or self.quiet or self.log_format == "json" or rank() != 0
        try:
            yield
        finally:
            console.quiet = before
