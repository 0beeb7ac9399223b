"""The commands of ``kdcli recipes``. Everything heavy is imported where it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import complete
from kdcli.cli.command import Command
from kdcli.cli.shared import AsJson

recipes_app = typer.Typer(help="List, show and copy the recipes that come with kdcli.", no_args_is_help=True)


@recipes_app.command("list", cls=Command)
def recipes_list(
    as_json: AsJson = False,
) -> None:
    """List all recipes and what they are for.

    Examples:

        kdcli recipes list

        kdcli recipes list --json
    """
    from kdcli.config.recipes import list_recipes
    from kdcli.terminal.console import show_table

    recipes = list_recipes()
    if as_json:
        listed = [{"name": recipe.name, "description": recipe.description} for recipe in recipes]
        typer.echo(json.dumps({"recipes": listed}, indent=2))
        return
    show_table("Recipes", ["name", "description"], [[recipe.name, recipe.description] for recipe in recipes])


@recipes_app.command("show", cls=Command)
def recipes_show(name: Annotated[str, typer.Argument(help="Name of a recipe.", show_default=False)]) -> None:
    """Print a recipe.

    Example:

        kdcli recipes show quickstart
    """
    from kdcli.config.recipes import find_recipe, recipe_text
    from kdcli.terminal.console import show_text

    show_text(recipe_text(find_recipe(name)))


@recipes_app.command("copy", cls=Command)
def recipes_copy(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a recipe.",
            show_default=False,
            autocompletion=complete.recipes,
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="A folder, or the name of the new file.")] = Path(),
) -> None:
    """Copy a recipe, to change it.

    Example:

        kdcli recipes copy quickstart mine.yaml
    """
    from kdcli.config.recipes import copy_recipe
    from kdcli.terminal.console import show_lines

    show_lines([f"Wrote {copy_recipe(name, destination)}"])
