"""The commands: parse, call, render. Everything heavy is imported where it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from kdcli import __version__
from kdcli.base.errors import UserError
from kdcli.cli.bench import bench
from kdcli.cli.cache import cache
from kdcli.cli.calibrate import calibrate
from kdcli.cli.command import Command
from kdcli.cli.config import config_app
from kdcli.cli.distill import MORE_EXAMPLES, distill
from kdcli.cli.doctor import doctor
from kdcli.cli.generate import generate
from kdcli.cli.guide import guide
from kdcli.cli.lr_range import lr_range
from kdcli.cli.models import models_app
from kdcli.cli.predict import predict
from kdcli.cli.quick_imports import postpone_compiler
from kdcli.cli.recipes import recipes_app
from kdcli.cli.report import report
from kdcli.cli.results import analyze_projector, evaluate, export
from kdcli.cli.runs import compare, sweep
from kdcli.cli.shared import AsJson
from kdcli.cli.tune import tune
from kdcli.terminal.library_messages import library_messages

_ABOUT = """Train a small model to imitate a large pretrained one (knowledge distillation).

Examples:

    kdcli distill --recipe quickstart

    kdcli distill --teacher resnet50 --student mobilenetv3_small_050 --data photos/ --dry-run

    kdcli guide start
"""
_TRAIN, _RESULTS, _FIND, _HELP = "Train", "Use and measure a student", "Choose before you train", "Help"

app = typer.Typer(
    name="kdcli",
    help=_ABOUT,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command, epilog=MORE_EXAMPLES, rich_help_panel=_TRAIN)(distill)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    _TRAIN: (sweep, tune, lr_range, cache),
    _RESULTS: (evaluate, predict, generate, calibrate, compare, report, analyze_projector, export),
    _HELP: (guide, doctor),
}
app.command(cls=Command, rich_help_panel=_FIND)(bench)
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)
app.add_typer(models_app, name="models", rich_help_panel=_FIND)
app.add_typer(recipes_app, name="recipes", rich_help_panel=_FIND)
app.add_typer(config_app, name="config", rich_help_panel=_FIND)


def main() -> None:
    """Run the command line; a user's error is one message, a hint and exit code 2."""
    from kdcli.machine.launch import end_with_the_launcher, is_launched, reporting_to_launcher

    postpone_compiler()
    try:
        with library_messages():
            if is_launched():
                end_with_the_launcher()
                with reporting_to_launcher():
                    app()
            else:
                app()
    except UserError as error:
        from kdcli.terminal.console import show_error

        show_error(error)
        raise SystemExit(2) from None


def _version(value: bool) -> None:
    if value:
        typer.echo(f"kdcli {__version__}")
        raise typer.Exit


@app.callback(help=_ABOUT)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What goes before a command."""


@app.command("extensions", cls=Command, rich_help_panel=_HELP)
def list_extensions(
    as_json: AsJson = False,
) -> None:
    """List what installed packages add to kdcli: models, tasks, data and methods. Imports none of them.

    Examples:

        kdcli extensions

        kdcli extensions --json
    """
    from kdcli.base.extensions import installed
    from kdcli.terminal.console import show_lines, show_table

    found = installed()
    if as_json:
        names = ("kind", "name", "package", "target")
        listed = [{name: getattr(entry, name) for name in names} for entry in found]
        typer.echo(json.dumps({"extensions": listed}, indent=2))
        return
    if not found:
        show_lines(["No installed package adds anything; 'kdcli guide extend' says how one does."])
        return
    options = {"models": "--student {}:NAME", "tasks": "--task {}", "data": "--data {}:NAME", "methods": "--method {}"}
    rows = [[options[entry.kind].format(entry.name), entry.package, entry.target] for entry in found]
    show_table("Extensions", ["name", "package", "entry point"], rows)
