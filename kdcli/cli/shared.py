"""Options that several commands have, each with the same words."""

from __future__ import annotations

from typing import Annotated

import typer

from kdcli.cli import complete

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", autocompletion=complete.devices)]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        help="Number of worker processes. Default: one per GPU if there are several, otherwise none.",
        show_default=False,
    ),
]
