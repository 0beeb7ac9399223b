"""``kdcli generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import complete
from kdcli.cli.shared import BatchSize, Device


def generate(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DIR",
            help="A run of image-generation, or its exported folder.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ],
    number: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Random seed: the same seed gives the same images.")] = 0,
    truncation: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=10,
            help="Draw random numbers beyond this value again: fewer odd images, less variety. Default: no limit.",
            show_default=False,
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME|NUMBER",
            help="The class of all images. Default: each class in turn.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder to write. Default: RUN/generated.", show_default=False),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Continue even if files of the run have changed. The output then says so.")
    ] = False,
) -> None:
    """Make images with a trained generator: single PNG files, and a grid of them.

    Each image depends only on the seed, its number and its class. So a longer series begins with the images of a
    shorter one.

    Examples:

        kdcli generate runs/digits --number 64

        kdcli generate runs/cifar10 --number 100 --class horse --truncation 0.8 --output horses/
    """
    from kdcli.base.text import check_argument

    for what, value in (("A run", name), ("--output", output), ("--class", class_name)):
        if value is not None:
            check_argument(what, value)
    from kdcli.results.generate import GRID, Wish
    from kdcli.results.generate import generate as make
    from kdcli.terminal.console import show_lines, show_progress

    wish = Wish(number, seed, truncation, class_name)
    with show_progress() as advance:
        folder, notes = make(
            name,
            wish,
            output,
            device=device,
            batch_size=batch_size,
            force=force,
            progress=lambda done, total: advance("Making images", done, total),
        )
    show_lines([*notes, f"Wrote {number} image{'' if number == 1 else 's'} and {folder / GRID}."])
