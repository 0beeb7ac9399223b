"""``kdcli lr-range``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import complete
from kdcli.cli.shared import AsJson

_ROWS = 12
"""Of the table."""


def lr_range(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe by name or file.",
            show_default=False,
            autocompletion=complete.recipes,
        ),
    ],
    low: Annotated[float, typer.Option(help="The first learning rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="The last learning rate.")] = 1.0,
    steps: Annotated[
        int, typer.Option(min=20, max=100_000, help="Steps of the optimiser, of train.accumulation batches each.")
    ] = 100,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of the recipe. May be repeated.",
            autocompletion=complete.settings,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the losses over the rates as a PNG.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe for a few steps at growing learning rates, and suggest one (learning-rate range test).

    The job is the recipe's own: teacher, losses, augmentation, optimiser, batch size. No run is written, and validation
    and test data play no part. The first fifth of the steps says nothing: a new student's loss falls at any rate. After
    it, the suggestion is the rate where the running mean of the loss falls steepest over the logarithm of the rate,
    before its lowest point. It is a place to start from; kdcli tune compares rates by results.

    Examples:

        kdcli lr-range quickstart

        kdcli lr-range mine.yaml --set train.batch_size=64 --output rates.png
    """
    from kdcli.base.text import check_argument
    from kdcli.config.parse import parse_config
    from kdcli.config.recipes import apply_overrides, find_recipe, load_recipe

    if output is not None:
        check_argument("--output", output)
    file = find_recipe(recipe)
    config = parse_config(apply_overrides(load_recipe(file), set_ or []), source=str(file))
    from kdcli.experiments.lr_range import plot_range, run_range_test
    from kdcli.experiments.output import Output
    from kdcli.terminal.console import show_lines, show_progress, show_table

    with Output(quiet=as_json).applied(), show_progress() as advance:
        found = run_range_test(
            config, low=low, high=high, steps=steps, progress=lambda done, total: advance("Testing rates", done, total)
        )
    written = None if output is None else plot_range(output, found, title=f"Learning-rate range test of {file.stem}")
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    places = sorted({round(number * (len(found.rates) - 1) / (_ROWS - 1)) for number in range(_ROWS)})
    rows = [[f"{found.rates[place]:.3g}", f"{found.smoothed[place]:.4f}"] for place in places]
    show_table("Learning rates", ["rate", "loss, running mean"], rows)
    told = f"The loss is lowest at {found.least:.2g}."
    if found.diverged:
        told += f" It diverged at {found.rates[-1]:.2g}, and the test ended there."
    if found.suggestion is not None:
        of = f", for steps of {found.accumulation} batches" if found.accumulation > 1 else ""
        suggested = [f"Suggested, where it falls steepest{of}: --set optim.lr={found.suggestion:.2g}"]
    else:
        suggested = [] if found.warnings else ["It never fell: try other bounds (--low, --high) or more --steps."]
    warned = (f"Warning: {sentence}" for sentence in found.warnings)
    show_lines([told, *suggested, *warned, *([] if written is None else [f"Wrote {written}"])])
