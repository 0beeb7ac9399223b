"""An option names the key that it sets, once; what was given on the command line is collected by it."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from kdcli.cli.distill import distill
from kdcli.cli.sets import Sets, given_keys, keys_of
from kdcli.config.keys import options_of
from kdcli.config.run import RunConfig


def test_options_set_keys_that_there_are_and_none_twice():
    keys = list(keys_of(distill).values())
    assert set(keys) <= options_of(RunConfig).keys()
    assert len(keys) == len(set(keys)) > 30


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--size", "0"], {"a.size": 0}),
        (["--size", "3", "--quiet"], {"a.size": 3}),
        (["--no-good"], {"a.good": False}),
        (["--name", "x", "--name", "y"], {"a.names": ["x", "y"]}),
    ],
)
def test_what_is_given_is_collected_and_defaults_are_not(arguments, expected):
    app, found = typer.Typer(), {}

    @app.command()
    def command(
        context: typer.Context,
        size: Annotated[int | None, typer.Option(), Sets("a.size")] = None,
        good: Annotated[bool, typer.Option(), Sets("a.good")] = True,
        names: Annotated[list[str] | None, typer.Option("--name"), Sets("a.names")] = None,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
    ):
        found.update(given_keys(context, command))

    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert found == expected
