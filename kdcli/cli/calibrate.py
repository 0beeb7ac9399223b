"""``kdcli calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import complete
from kdcli.cli.newest import newest_or
from kdcli.cli.shared import AsJson, BatchSize, Device


def calibrate(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run folder. Default: the newest finished run under runs/.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    as_json: AsJson = False,
    force: Annotated[
        bool, typer.Option("--force", help="Continue even if files of the run have changed. The output then says so.")
    ] = False,
) -> None:
    """Fit the temperature of a student's probabilities on its validation split (temperature scaling).

    The temperature is stored in the run (calibration.json). kdcli predict divides the student's logits by it, and
    kdcli export writes it into the last layer, so that every program gets calibrated probabilities. Which class is the
    likeliest never changes. The table shows the mean cross-entropy (NLL) and the expected calibration error (ECE)
    before and after; the test split plays no part in the fit. Where the gain on validation is within noise, the
    temperature stays 1, and kdcli says so: it is measured on samples that the temperature was not fitted on.

    Examples:

        kdcli calibrate runs/photos

        kdcli calibrate --json
    """
    from kdcli.base.text import check_argument

    folder = newest_or(run)
    check_argument("A run", folder)
    from kdcli.results.calibration import FILE
    from kdcli.results.calibration import calibrate as fit
    from kdcli.terminal.console import show_lines, show_table

    found, notes = fit(str(folder), device=device, batch_size=batch_size, force=force)
    if as_json:
        typer.echo(json.dumps(found.to_json() | {"notes": notes}, indent=2))
        return
    rows = [
        [f"{split} {name.upper()}", f"{values['before'][name]:.4f}", f"{values['after'][name]:.4f}"]
        for split, values in found.splits.items()
        for name in ("nll", "ece")
    ]
    show_table(f"Temperature {found.temperature:.4f}", ["", "before", "after"], rows)
    count = found.splits["validation"]["samples"]
    if found.temperature != 1 and found.gain is not None:
        notes = [_gain(*found.gain), *notes]
    show_lines([*notes, f"Fitted on {count} validation samples. Wrote {Path(folder) / FILE}"])


def _gain(mean: float, low: float, high: float) -> str:
    return (
        f"On validation samples that it was not fitted on, the temperature lowers the NLL by {mean:.4f}, with a 95 %"
        f" interval from {low:.4f} to {high:.4f}."
    )
