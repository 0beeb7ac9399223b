"""The progress of a training run: a live view, plain lines or JSON lines. No torch here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

from kdcli.terminal.console import console, errors
from kdcli.terminal.live import LiveReporter
from kdcli.terminal.reporters import JsonReporter, PlainReporter, QuietReporter, Reporter

LogFormat = Literal["auto", "plain", "json"]


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
