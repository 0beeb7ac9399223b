"""From a mapping to a config, or to one message about all that is wrong in it."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import ValidationError

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr
from kdcli.config.methods import METHODS, MethodSection, find_method
from kdcli.config.run import RunConfig
from kdcli.config.section import Section

_SECTIONS = ("student", "teacher", "data", "augment", "optim", "train", "episodes")
"""Where a key that is unknown in one place is looked for."""


def parse_config(values: dict[str, Any], *, source: str) -> RunConfig:
    """Validate ``values`` into a :class:`RunConfig`.

    Raises:
        UserError: listing every problem with its dotted key, the value, what is allowed and the nearest valid name.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe(problem, values) for problem in error.errors()]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise UserError(
            f"{count} in {source}:\n" + "\n".join(f"  - {line}" for line in lines),
            "'kdcli recipes show quickstart' prints a complete example.",
        ) from None


def _describe(problem: Any, values: Any) -> str:
    path = problem["loc"]
    key = ".".join(str(part) for part in path)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        valid = _keys_at(path[:-1], values)
        elsewhere = ", ".join(_sections_with(str(path[-1])))
        hint = f"Did you mean {elsewhere}?" if elsewhere else did_you_mean(str(path[-1]), valid)
        hint = hint or f"Valid here: {', '.join(sorted(valid))}."
        return f"{key}: unknown key. {hint}"
    if kind == "missing":
        return f"{key}: missing, and there is no default."
    if kind == "literal_error":
        allowed = problem["ctx"]["expected"]
        names = [name.strip(" '") for name in allowed.replace(" or ", ", ").split(",")]
        others = extensions.names("tasks") if key == "task" else extensions.names("methods") if key == "method" else []
        installed = f", or of another package: {', '.join(others)}" if others else ""
        nearest = did_you_mean(value, [*names, *others]) if isinstance(value, str) else ""
        return f"{key}: {short_repr(value)} is not one of {allowed}{installed}. {nearest}".rstrip()
    if kind == "unknown_method":
        name = value.get("method") if isinstance(value, dict) else value
        names = [*METHODS, *extensions.names("methods")]
        nearest = did_you_mean(name, names) if isinstance(name, str) else ""
        return f"{key}.method: {short_repr(name)} is not one of {', '.join(names)}. {nearest}".rstrip()
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, got {short_repr(value)}."


def _keys_at(location: tuple[str | int, ...], values: Any) -> list[str]:
    """Return the valid keys of the section that ``location`` points to in ``values``."""
    section: type[Section] = RunConfig
    for part in location:
        values = values[part]
        if section is MethodSection:  # of which the list is made
            section = find_method(values["method"]) or section
        elif isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _sections_with(name: str) -> list[str]:
    """Return the dotted keys of the config whose last word is ``name``: of sections, not of methods in a list."""
    if name in RunConfig.model_fields:
        return [name]
    sections = {key: _section_of(RunConfig.model_fields[key].annotation) for key in _SECTIONS}
    return [f"{key}.{name}" for key, section in sections.items() if section and name in section.model_fields]


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            if found := _section_of(inner):
                return found
    return None
