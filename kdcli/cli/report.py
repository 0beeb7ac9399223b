"""``kdcli report``. Everything heavy is imported where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import complete
from kdcli.cli.newest import newest_or


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run folders, or folders of sweeps. Default: the newest finished run under runs/.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write. Default for one run: RUN/report.html.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Report even if files or data of the runs have changed. The page then says so."),
    ] = False,
) -> None:
    """Write one HTML page about a run, or about several side by side. The page needs no other file.

    One run: whether distillation helped, the numbers, the plan's decisions and reasons, curves, pictures of samples,
    the projector, the costs, how to use the student, how to repeat the run. Several runs: their comparison.

    Examples:

        kdcli report runs/quickstart

        kdcli report runs/sweeps/mine --output mine.html
    """
    from kdcli.results.report.runs import report_on
    from kdcli.terminal.console import show_lines

    show_lines([f"Wrote {report_on(runs or [newest_or(None)], output, force=force)}"])
