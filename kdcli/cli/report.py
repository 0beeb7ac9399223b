"""``kdcli report``. Everything heavy is imported where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcli.base.errors import UserError
from kdcli.cli import complete


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders, or folders of sweeps.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ],
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
    from kdcli.base.text import check_argument
    from kdcli.results.compare import compare_runs, find_runs, read_runs
    from kdcli.results.report.page import write_page
    from kdcli.results.report.runs import REPORT, page_of, page_of_several
    from kdcli.runs.folder import RunFolder
    from kdcli.terminal.console import show_lines

    found = find_runs(runs)
    is_one = len(found) == 1
    if not is_one and output is None:
        raise UserError(
            "A page of several runs is in none of their folders.", "Say where to write it: --output FILE.html"
        )
    if is_one:
        run = RunFolder.started(found[0], force=force)
        page, target = page_of(run), output or run.path / REPORT
    else:
        assert output is not None
        page, target = page_of_several(compare_runs(read_runs(found, force=force))), output
    check_argument("--output", target)
    if target.is_dir():
        raise UserError(f"--output {target} is a folder.", f"Give a file: {target / REPORT}")
    write_page(page, target)
    show_lines([f"Wrote {target}"])
