"""From a mapping to a config, or to one message about all that is wrong in it."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import ValidationError

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import DEFAULT_TASK, TASKS, load_task, own_facts
from kdcli.base.text import short_repr
from kdcli.config.methods import METHODS, MethodSection, find_method
from kdcli.config.methods.words import other_method_names
from kdcli.config.run import RunConfig
from kdcli.config.section import Section
from kdcli.config.words import keys_meant, shown

_PLAIN = {
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing"),
    "true or false": ("bool_type", "bool_parsing"),
    "text": ("string_type",),
    "a list": ("tuple_type", "list_type"),
    "a mapping of keys": ("model_type", "dict_type", "model_attributes_type"),
}
_WANTED = {kind: words for words, kinds in _PLAIN.items() for kind in kinds}
"""What is wanted, in place of pydantic's words."""


_BEFORE = {"reduced_decoding": "never"}
"""Keys of ``data`` about images, and what a run did whose config was written before there was such a key."""
_SETTLED_BEFORE = {"channels_last": False, "fused_optimizer": False}
"""Likewise of ``train``: in a recipe without the key it is measured, of a run that goes on it is not."""


def as_begun(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a run's config, with what it did where an earlier version had no key for that."""
    data, task = values.get("data"), values.get("task", DEFAULT_TASK)
    if not isinstance(data, dict) or not isinstance(task, str):
        return values
    facts = TASKS.get(task)
    if facts is None and extensions.find("tasks", task, own=TASKS) is not None:
        facts = own_facts(load_task(task))
    return values | {"data": _BEFORE | data} if facts is not None and facts.reads_images else values


def as_repeated(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a run's config as a recipe that repeats the run, also one of an earlier version."""
    train, teacher = values.get("train"), values.get("teacher")
    begun = as_begun(values)
    if not isinstance(train, dict):
        return begun
    settled: dict[str, Any] = dict(_SETTLED_BEFORE)
    if "reduced_decoding" not in (begun.get("data") or {}):
        settled.pop("channels_last")  # no images
    elif isinstance(teacher, dict) and teacher.get("name") != "none":
        settled["teacher_forward"] = "plain"
    return begun | {"train": settled | train}


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
            "'kdcli config keys WORD' finds keys; 'kdcli recipes show quickstart' prints a complete example.",
        ) from None


def _describe(problem: Any, values: Any) -> str:
    path = problem["loc"]
    key = ".".join(str(part) for part in path)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key. {_hint_of_key(str(path[-1]), _keys_at(path[:-1], values))}"
    if kind == "missing":
        return f"{key}: missing, and there is no default."
    if kind == "literal_error":
        allowed = problem["ctx"]["expected"]
        names = [name.strip(" '") for name in allowed.replace(" or ", ", ").split(",")]
        others = extensions.names("tasks") if key == "task" else extensions.names("methods") if key == "method" else []
        installed = f", or of another package: {', '.join(others)}" if others else ""
        nearest = _nearest(value, [*names, *others], is_method=key == "method")
        return f"{key}: {short_repr(value)} is not one of {allowed}{installed}. {nearest}".rstrip()
    if kind == "unknown_method":
        name = value.get("method") if isinstance(value, dict) else value
        names = [*METHODS, *extensions.names("methods")]
        nearest = _nearest(name, names, is_method=True)
        return f"{key}.method: {short_repr(name)} is not one of {', '.join(names)}. {nearest}".rstrip()
    if kind in _WANTED:
        return f"{key}: {_WANTED[kind]} is wanted, got {short_repr(value)}."
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


def _hint_of_key(name: str, valid: list[str]) -> str:
    """Return which key may be meant by an unknown one: of all sections, by the words of other packages too."""
    meant = keys_meant(name, fuzzy=False)
    if here := [last for last in dict.fromkeys(key.rpartition(".")[2] for key in meant) if last in valid]:
        return f"Did you mean {', '.join(here)}?"
    if meant:
        return f"Did you mean {shown(meant)}?"
    if near := did_you_mean(name, valid):
        return near
    meant = keys_meant(name)
    return f"Did you mean {shown(meant)}?" if meant else f"Valid here: {', '.join(sorted(valid))}."


def _nearest(value: Any, names: list[str], *, is_method: bool) -> str:
    if not isinstance(value, str):
        return ""
    known = [name for name in other_method_names(value) if name in names] if is_method else []
    return f"Did you mean {', '.join(known)}?" if known else did_you_mean(value, names)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            if found := _section_of(inner):
                return found
    return None
