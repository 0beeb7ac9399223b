"""``kdcli bench``: with the options of ``kdcli distill``, but for those of records and of what is told."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcli.base.errors import UserError
from kdcli.cli.distill import distill
from kdcli.cli.given import config_given, tell_demo
from kdcli.cli.quick_imports import without_collections
from kdcli.cli.sets import given_keys
from kdcli.cli.shared import AsJson

if TYPE_CHECKING:
    from kdcli.experiments.bench.measure import Bench
    from kdcli.training.parts import Time

_LEFT_OUT = {
    *("resume", "force", "output", "baseline", "test", "checkpoint_every", "track", "log_format", "quiet", "plan"),
    *("ways", "shots", "episodes", "queries", "eval_data", "dry_run", "num_processes"),
}
"""Options of ``distill`` that make no difference to what a step costs."""


def bench(
    context: typer.Context,
    steps: Annotated[int, typer.Option(help="Batches of each loop in a repeat.")] = 5,
    repeats: Annotated[int, typer.Option(help="Repeats, in which the loops take turns; medians are told.")] = 5,
    largest: Annotated[
        bool, typer.Option("--largest/--no-largest", help="Look for the largest batch that fits.")
    ] = True,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Measure what a training costs: the time of its parts, beside a loop written by hand, and its memory.

    Takes the command line of the training, with 'bench' in place of 'distill'. The training's own code is run on its
    own batches for some steps, and nothing of it is kept. Without --data it is the task's demo data.

    Examples:

        kdcli bench --teacher random:cifar:resnet20 --student cifar:resnet8

        kdcli bench --recipe quickstart --steps 3 --repeats 3

        kdcli bench --teacher resnet50 --student resnet18 --data photos/ --batch-size 64 --json
    """
    for name, value in (("--steps", steps), ("--repeats", repeats)):
        if value < 1:
            raise UserError(f"{name} {value} is less than 1.", "Give 1 or more.")
    config, is_demo = config_given(given_keys(context, bench), options["set_"] or [], recipe=options["recipe"])
    if is_demo and not as_json:
        tell_demo(config, log_format="auto", quiet=False)
    with without_collections():
        from kdcli.experiments.bench.measure import bench as measure
        from kdcli.experiments.output import Output
    from kdcli.terminal.console import console

    with Output(quiet=as_json).applied(), console.status("Loading data and models") as status:
        found = measure(
            config,
            steps=steps,
            repeats=repeats,
            with_memory=largest,
            told=lambda what: status.update(f"Measuring: {what}"),
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _show(found)


def _show(found: Bench) -> None:
    from kdcli.base.text import human_count
    from kdcli.terminal.console import show_lines, show_table

    whole = found.whole
    rows = [_row(name, part, whole) for name, part in found.parts.items()]
    rows.append(_row("whole step", whole, whole))
    show_table(
        f"{found.title}: a step of {found.batch_size} {found.noun}s on {found.device}",
        ["part", "wall ms", "CPU ms", "share of wall"],
        rows,
    )
    compared = [("kdcli", found.step), ("written by hand", found.hand), ("kdcli, teacher at hand", found.cached)]
    show_table(
        "The same step on batches that are in memory",
        ["loop", "wall ms", "CPU ms"],
        [[name, *_times(time)] for name, time in compared if time is not None],
    )
    show_lines(_told(found, human_count))


def _told(found: Bench, human_count: Any) -> list[str]:
    lines = [f"Throughput: {found.throughput:.1f} {found.noun}s a second with the data."]
    if found.ratio is None:
        lines.append(f"No hand-written loop: {found.no_hand}")
    else:
        median, low, high = found.ratio
        lines.append(
            f"kdcli does {median:.2f} times the steps of the loop written by hand in the same {found.clock_name} time"
            f" ({low:.2f} to {high:.2f} over {found.repeats} repeats, in turns). That loop: {found.hand_words}."
        )
    if found.cached is not None:
        step, cached = found.clock(found.step), found.clock(found.cached)
        lines.append(
            f"A cache of the teacher's outputs would save {1 - cached / step:.0%} of a step's {found.clock_name} time,"
            f" what reading it costs left aside ({step / cached:.2f}x)."
        )
    lines.append(
        f"{human_count(found.macs)} MACs a step, {found.matmul_share:.0%} of what this device does in products of large"
        f" matrices ({human_count(int(found.matmul_rate))} MACs a {found.clock_name} second)."
    )
    own = "" if found.peak_is_own else ", earlier work of this process included"
    lines.append(f"Peak of memory: {found.peak / 2**20:.0f} MiB{own}.")
    largest = "-" if found.largest_batch is None else str(found.largest_batch)
    lines.append(f"Largest batch that fits: {largest} ({found.largest_how}).")
    if found.workers:
        lines.append(
            "Loader processes make the batches: the data's time is what is waited for, and their CPU time is left out."
        )
    return lines


def _row(name: str, part: Time, whole: Time) -> list[str]:
    return [name, *_times(part), f"{part.wall / whole.wall:.0%}"]


def _times(time: Time) -> list[str]:
    return [f"{1e3 * time.wall:.2f}", f"{1e3 * time.cpu:.2f}"]


def _take_options() -> None:
    """Give :func:`bench` the options of :func:`distill`, each with its key, help and panel."""
    signature = inspect.signature(distill, eval_str=True)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in _LEFT_OUT]
    own = [
        parameter
        for name, parameter in inspect.signature(bench, eval_str=True).parameters.items()
        if name not in ("context", "options")
    ]
    bench.__signature__ = signature.replace(parameters=[*kept, *own])  # type: ignore[attr-defined]
    bench.__annotations__ = {parameter.name: parameter.annotation for parameter in (*kept, *own)} | {"return": None}


_take_options()
