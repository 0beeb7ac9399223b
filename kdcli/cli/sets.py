"""Options that set a key of the config: the key stands beside the option, and what was given is collected by it."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer


@dataclass(frozen=True)
class Sets:
    """The config's key that an option sets; in the ``Annotated`` metadata of the command's parameter.

    Attributes:
        key: dotted.
    """

    key: str


def keys_of(command: Callable[..., Any]) -> dict[str, str]:
    """Return the key that each parameter of ``command`` sets, of those that set one."""
    hints = typing.get_type_hints(command, include_extras=True)
    return {
        name: item.key
        for name, hint in hints.items()
        for item in getattr(hint, "__metadata__", ())
        if isinstance(item, Sets)
    }


def given_keys(context: typer.Context, command: Callable[..., Any]) -> dict[str, Any]:
    """Return what was given on the command line, by the config's key."""
    given = {}
    for name, key in keys_of(command).items():
        source, value = context.get_parameter_source(name), context.params.get(name)
        if source is not None and source.name == "COMMANDLINE":
            given[key] = list(value) if isinstance(value, tuple) else value
    return given
