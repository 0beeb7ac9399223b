"""The commands of ``kdcli config``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import TASKS
from kdcli.base.text import check_argument, short_repr
from kdcli.cli import complete
from kdcli.cli.command import Command

if TYPE_CHECKING:
    from kdcli.config.described import Described

config_app = typer.Typer(help="Find the keys of a config, and check a recipe.", no_args_is_help=True)


@config_app.command("keys", cls=Command)
def config_keys(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORD...",
            help="A part of a key's name, a section, a method, or what it is called elsewhere; all words have to fit.",
            show_default=False,
            autocompletion=complete.keys,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="Those that this task reads.", show_default=False, autocompletion=complete.tasks
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list and nothing else.")] = False,
) -> None:
    """List every key of a config: what it takes, its default, what it does, and which tasks read it.

    Keys of methods stand as methods.NAME.KEY; in a recipe they are keys of an entry of the list methods.

    Examples:

        kdcli config keys

        kdcli config keys optim

        kdcli config keys learning_rate

        kdcli config keys depth --task depth-estimation --json
    """
    from kdcli.config.described import describe_keys

    for word in words or ():
        check_argument("WORD", word)
    if task is not None and task not in TASKS:
        raise UserError(
            f"There is no task {short_repr(task)}. {did_you_mean(task, TASKS)}".rstrip(), f"Use {', '.join(TASKS)}."
        )
    found = [key for key in describe_keys() if task is None or not key.tasks or task in key.tasks]
    for word in words or ():
        found = _fitting(word, found)
    options = _options()
    if as_json:
        typer.echo(json.dumps([_as_json(key, options) for key in found], indent=2))
        return
    from kdcli.terminal.console import show_lines

    show_lines(line for key in found for line in _told(key, options))


@config_app.command("check", cls=Command)
def config_check(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME",
            help="A recipe, by file or by name.",
            show_default=False,
            autocompletion=complete.recipes,
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Check it with this key set. May be repeated.",
            autocompletion=complete.settings,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole config as one JSON object and nothing else.")
    ] = False,
) -> None:
    """Check a recipe without loading data or models, and tell what it sets.

    Tells every wrong key and value at once, and keys that its task does not read. Whether data and models can be had,
    and fit to one another, is what `kdcli distill --recipe FILE --dry-run` tells.

    Examples:

        kdcli config check mine.yaml

        kdcli config check quickstart --set optim.lr=0.01 --json
    """
    from kdcli.config.keys import check_domain, flatten_settings, options_of
    from kdcli.config.parse import parse_config
    from kdcli.config.recipes import apply_overrides, find_recipe, load_recipe
    from kdcli.config.run import RunConfig
    from kdcli.terminal.console import show_lines

    file = find_recipe(recipe)
    config = parse_config(apply_overrides(load_recipe(file), set_ or []), source=str(file))
    check_domain(config)
    if as_json:
        typer.echo(json.dumps(config.model_dump(mode="json"), indent=2))
        return
    options = options_of(RunConfig)
    changed = {
        name: value
        for name, value in flatten_settings(config).items()
        if name in options and (options[name].field.is_required() or options[name].is_set(config))
    }
    show_lines([f"{file} is a valid recipe for the task {config.task}. It sets:"])
    show_lines(f"  {name} = {_as_text(value)}" for name, value in changed.items())
    show_lines(f"  methods: {options.method}, weight {options.weight:g}" for options in config.methods or ())


@config_app.command("schema", cls=Command)
def config_schema() -> None:
    """Print the JSON schema of recipes, by which editors complete and check them.

    An editor with YAML's language server reads it where a recipe's first line is
    `# yaml-language-server: $schema=kdcli.schema.json`.

    Example:

        kdcli config schema > kdcli.schema.json
    """
    from kdcli.config.described import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _fitting(word: str, keys: list[Described]) -> list[Described]:
    """Return the keys that a word means: by their names, by other packages' words, else by what they do.

    Raises:
        UserError: none does.
    """
    from kdcli.config.methods.words import other_method_names
    from kdcli.config.words import keys_meant

    lower = word.lower().strip("-").replace("-", "_")
    meant = [*keys_meant(word, fuzzy=False), *(f"methods.{name}" for name in other_method_names(word))]
    starts = tuple(f"{name}." for name in (lower, f"methods.{lower}", *meant))
    found = [key for key in keys if f"{key.name}.".startswith(starts)]
    found += [key for key in keys if key not in found and lower in key.name.rpartition(".")[2].lower()]
    found = found or [key for key in keys if lower in key.name.lower()]
    found = found or [key for key in keys if lower in f"{key.text} {key.values}".lower()]
    found = found or [key for key in keys if key.name in keys_meant(word)]
    if not found:
        raise UserError(
            f"No key is called or about {short_repr(word)}. {did_you_mean(word, {key.name for key in keys})}".rstrip(),
            "'kdcli config keys' lists all of them.",
        )
    return found


def _options() -> dict[str, str]:
    """Return the option of distill that sets a key, where there is one."""
    from typer.main import get_command

    from kdcli.cli.app import app
    from kdcli.cli.distill import distill
    from kdcli.cli.sets import keys_of

    command: Any = get_command(app)
    params = {param.name: max(param.opts, key=len) for param in command.commands["distill"].params}
    return {key: params[name] for name, key in keys_of(distill).items()}


def _told(key: Described, options: dict[str, str]) -> Iterable[str]:
    default = f" = {key.default}" if key.default else ""
    takes = f"  ({key.values})" if key.values else ""
    option = f"  {options[key.name]}" if key.name in options else ""
    yield f"{key.name}{default}{takes}{option}"
    if key.tasks:
        yield f"    For {', '.join(key.tasks)}."
    for paragraph in key.text.splitlines():
        yield f"    {paragraph}"


def _as_json(key: Described, options: dict[str, str]) -> dict[str, Any]:
    return {
        "key": key.name,
        "values": key.values,
        "choices": list(key.choices),
        "default": key.default or None,
        "text": key.text,
        "tasks": list(key.tasks) or list(TASKS),
        "option": options.get(key.name),
        "is_section": key.is_section,
    }


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
