"""``kdcli tune``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcli.base.errors import UserError
from kdcli.cli import complete
from kdcli.cli.distill import command_line
from kdcli.cli.shared import AsJson, Jobs

if TYPE_CHECKING:
    from kdcli.experiments.tried import Tried


def tune(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe by name or file.",
            show_default=False,
            autocompletion=complete.recipes,
        ),
    ],
    trials: Annotated[
        int,
        typer.Option(
            min=1, max=10_000, help="Total number of trials. With a larger number, an earlier tuning goes on."
        ),
    ] = 20,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--tune",
            metavar="KEY=SPACE",
            help="Tune this key instead of the plan's keys: KEY=V1,V2 for choices, KEY=LOW..HIGH for a range,"
            " KEY=LOW..HIGH:log for a range by logarithm. methods.NAME.KEY is an option of a method. 'plan' adds the"
            " plan's keys. May be repeated.",
            show_default=False,
            autocompletion=complete.settings,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of the recipe. May be repeated.",
            autocompletion=complete.settings,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs of a trial. Default: a quarter of the recipe's, at least 5 if it has as many.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**31 - 1,
            help="Random seed of the trials and of the choice of settings. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder to write. Default: runs/tune/RECIPE.", show_default=False),
    ] = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Continue trials even if their data, teacher or files have changed."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also print the output of each trial.")] = False,
) -> None:
    """Try other settings of a recipe in short runs, and write the best one as a recipe.

    Optuna chooses the weights of the losses, the projector, the teacher's layer and the learning rate. It uses only
    validation data, never the test split. Trials that fall behind are stopped early. The student is also trained alone,
    with the recipe's settings and with those of the best trial. After Ctrl-C give the same command again.

    Examples:

        kdcli tune quickstart --trials 20

        kdcli tune mine.yaml --tune methods.projection.weight=0.03..3:log --tune train.batch_size=32,64

        kdcli tune mine.yaml --trials 40 --tune plan --tune augment.mixup=0..0.4 --epochs 10
    """
    from kdcli.base.text import check_argument
    from kdcli.config.recipes import apply_overrides, find_recipe, load_recipe
    from kdcli.experiments.variants import refuse_own_keys, safe_name

    refuse_own_keys("--set", set_ or [], by={"seed": "--seed", "output": "--output", "train.num_processes": "--jobs"})
    file = find_recipe(recipe)
    if output is not None:
        check_argument("--output", output)
    name = safe_name(file.stem)
    from kdcli.experiments.output import Output
    from kdcli.experiments.tried import best_of, heading, list_tried, to_json, write_best, write_told
    from kdcli.experiments.tune import prepare_tuning, run_trials
    from kdcli.terminal.console import errors, show_lines

    with Output(quiet=as_json).applied():
        with errors.status("Loading data and models"):
            tuning = prepare_tuning(
                apply_overrides(load_recipe(file), set_ or []),
                source=str(file),
                name=name,
                folder=output or Path("runs") / "tune" / name,
                asked=keys or [],
                trials=trials,
                epochs=epochs,
                seed=seed,
                force=force,
            )
        show_lines(heading(tuning))
        code = run_trials(tuning, jobs=jobs, command=command_line(), verbose=verbose)
        if code:
            show_lines([f"Stopped; all is saved. Go on with the same command: {command_line()}"])
            raise typer.Exit(code)
        tried = list_tried(tuning)
        best = best_of(tried)
        files = [] if best is None else [write_best(tuning, best)]
        told = to_json(tuning, tried, best)
        files.append(write_told(tuning, told))
        _show(tuning.metric, tried)
        show_lines([*told["conclusion"], *(f"Wrote {file}" for file in files)])
        if best is not None:
            show_lines(_next_steps(files[0], recipe, name))
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    if best is None:
        raise UserError("No trial was finished.", "The table says why; mend that, or tune other keys.")


def _next_steps(best: Path, recipe: str, name: str) -> list[str]:
    where = shlex.quote(str(best))
    return [
        f"Train it: kdcli distill --recipe {where}",
        f"Over seeds: kdcli sweep {where} {shlex.quote(recipe)} --seeds 5 --baseline {shlex.quote(name)}",
    ]


def _show(metric: str, tried: list[Tried]) -> None:
    """Print a table of all that was tried."""
    from kdcli.experiments.tune import show_setting
    from kdcli.terminal.console import show_wide_table

    keys = list(dict.fromkeys(key for one in tried for key in one.settings))
    rows = [
        [
            one.name,
            "-" if one.value is None else f"{one.value:.4f}",
            "-" if one.epoch is None else str(one.epoch),
            one.state if not one.error else f"{one.state}: {one.error}",
            *(show_setting(one.settings[key]) if key in one.settings else "-" for key in keys),
        ]
        for one in tried
    ]
    show_wide_table("Tried", ["trial", metric, "epoch", "state", *keys], rows)
