"""``kdcli doctor``."""

from __future__ import annotations

import json

import typer

from kdcli.cli.shared import AsJson


def doctor(
    as_json: AsJson = False,
) -> None:
    """Show what a bug report needs: versions, devices, threads, caches, free space, and what extras would add.

    Downloads and writes nothing. The exit code is 1 if something is wrong.

    Examples:

        kdcli doctor

        kdcli doctor --json
    """
    from dataclasses import asdict
    from itertools import groupby

    from kdcli.base.text import redact_all
    from kdcli.machine.doctor import examine
    from kdcli.terminal.console import show_lines

    found = examine()
    amiss = [finding for finding in found if finding.problem and finding.part != "devices"]
    if as_json:
        typer.echo(json.dumps(redact_all([asdict(finding) for finding in found]), indent=2))
    else:
        for part, findings in groupby(found, key=lambda finding: finding.part):
            show_lines([f"{part}:"])
            for finding in findings:
                mark = f"  <- {finding.problem}" if finding.problem else ""
                show_lines([f"  {finding.name}: {finding.value}{mark}"])
    if amiss:
        raise typer.Exit(1)
