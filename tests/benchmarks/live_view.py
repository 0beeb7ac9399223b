"""Draw the live view of ``kdcli distill`` as it was in the middle of a real run.

python tests/benchmarks/live_view.py RUN PICTURE.svg [--share 0.6] [--width 100]

Replays the run folder's metrics.jsonl; the clock goes as fast as its images_per_second says, validations take no time.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from kdcli.runs.folder import RunFolder
from kdcli.terminal.live import LiveReporter


def replay(run: RunFolder, console: Console, *, share: float) -> LiveReporter:
    """Return a reporter that was told the first ``share`` of the steps of ``run``; its lines are on ``console``."""
    config = run.read_config()
    train, validation = run.read_metrics("train"), run.read_metrics("validation")
    total_steps = max(line["step"] for line in train)
    stop = share * total_steps
    now = 0.0
    reporter = LiveReporter("distil", console, clock=lambda: now)
    reporter.started(total_steps=total_steps, steps_per_epoch=total_steps // config.train.epochs, step=0)
    step = 0
    for event in sorted(train + validation, key=lambda line: (line["step"], line["event"])):
        values: dict[str, Any] = {name: value for name, value in event.items() if name not in ("event", "best")}
        if event["event"] == "validation":
            reporter.validated(values, best=bool(event["best"]))
            continue
        while step < event["step"]:
            if step >= stop:
                return reporter
            step += 1
            now += config.train.batch_size / values["images_per_second"]
            reporter.stepped(step)
        reporter.logged(values)
    return reporter


def main(
    run: Annotated[Path, typer.Argument(help="A run folder of kdcli distill.", show_default=False)],
    picture: Annotated[Path, typer.Argument(help="The SVG file to write.", show_default=False)],
    share: Annotated[float, typer.Option(help="How much of the run is over, in [0, 1].")] = 0.6,
    width: Annotated[int, typer.Option(help="Of the terminal, in characters.")] = 100,
) -> None:
    """Write the picture and print the view as text."""
    console = Console(record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width)
    reporter = replay(RunFolder(run), console, share=share)
    console.print(reporter)
    console.save_svg(str(picture), title="kdcli distill", clear=False)
    print(console.export_text())


if __name__ == "__main__":
    typer.run(main)
