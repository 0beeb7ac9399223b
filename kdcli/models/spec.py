"""The grammar of model names. No torch, no network: :mod:`kdcli.models.locate` finds what a name means."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr
from kdcli.base.yaml import parse_yaml
from kdcli.models.libraries import LIBRARIES, PREFIXES, find_extension

_LIBRARIES = {prefix: library for library in LIBRARIES for prefix in (library.prefix, *library.families)}
_GRAMMAR = (
    "Names are NAME, timm:NAME, cifar:NAME, hf:ORG/NAME, package:NAME, package:NAME/PATH or a local folder; "
    "random:NAME is the same architecture untrained."
)
_LARGEST = 2**21
"""More than any number of layers, channels or tokens, and few enough to make a list of."""
_FACTORS = re.compile("mult|coefficient|ratio|factor")
_LARGEST_FACTOR = 1000
_QUERY = "Arguments follow the name, for example vit_tiny_patch16_224?depth=4&embed_dim=96."


@dataclass(frozen=True)
class ModelName:
    """A parsed name.

    Attributes:
        text: as the user wrote it.
        target: without its prefixes and arguments: a timm name, a hub id or a folder; ``cifar:``, ``package:`` and an
            extension's prefix stay.
        library: its name, where a prefix says so: ``timm:``, ``cifar:``, ``hf:``, or that of an extension, whose
            library has the same name.
        random: the architecture untrained.
        arguments: what ``?key=value&key=value`` changes of the architecture: plain values, or lists of these.
    """

    text: str
    target: str
    library: str | None
    random: bool
    arguments: Mapping[str, Any] = field(default_factory=dict)


def parse_name(text: str) -> ModelName | None:
    """Split prefixes and arguments off ``text``; None for ``none``.

    Raises:
        UserError: an unknown prefix, nothing after one, or arguments that are none.
    """
    if text == "none":
        return None
    rest, mark, query = text.partition("?")
    arguments = _parse_query(text, query) if mark else {}
    random = False
    library = None
    if rest.startswith("random:"):
        random, rest = True, rest.removeprefix("random:")
    prefix, colon, after = rest.partition(":")
    if colon and find_extension(prefix) is not None:
        library = prefix
    elif colon and (own := _LIBRARIES.get(prefix)) is not None:
        library, rest = own.name, after if prefix == own.prefix else rest
    elif colon and prefix == "package":
        pass  # a library's name, or a folder of any
    elif colon and prefix.isidentifier() and len(prefix) > 1:  # one letter is a Windows drive
        others = extensions.names("models")
        nearest = did_you_mean(prefix, [*PREFIXES, *others])
        installed = f" Installed extensions: {', '.join(f'{other}:NAME' for other in others)}." if others else ""
        raise UserError(f"Model name {text!r}: unknown prefix {prefix!r}. {nearest}".rstrip(), _GRAMMAR + installed)
    if not rest.strip() or rest == "none":
        raise UserError(f"Model name {text!r} names no model.", _GRAMMAR)
    return ModelName(text, rest, library, random, arguments)


def parse_model(text: str) -> ModelName:
    """Return the parsed name of a model; ``none`` is an error.

    Raises:
        UserError: as :func:`parse_name`, or it is ``none``.
    """
    name = parse_name(text)
    if name is None:
        raise UserError("'none' is no model to load.", "Name a model; only a teacher can be 'none'.")
    return name


def format_query(arguments: Mapping[str, Any]) -> str:
    """Return ``?key=value&key=value``, which :func:`parse_name` reads; empty for no arguments."""
    return "?" + "&".join(f"{key}={_written(value)}" for key, value in arguments.items()) if arguments else ""


def _written(value: Any) -> str:
    if isinstance(value, str) and parse_yaml(value) == value:
        return value
    return json.dumps(value, separators=(",", ":"))


def _parse_query(text: str, query: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for item in query.split("&"):
        key, equals, raw = item.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"Model name {short_repr(text)}: {short_repr(item)} is not KEY=VALUE.", _QUERY)
        if key in arguments:
            raise UserError(f"Model name {short_repr(text)}: {key} is given twice.", "Give it once.")
        try:
            value = parse_yaml(raw)
        except ValueError:
            value = _Nothing
        parts = value if isinstance(value, list) else [value]
        largest = _LARGEST_FACTOR if _FACTORS.search(key) else _LARGEST
        if any(isinstance(part, (int, float)) and abs(part) > largest for part in parts):
            raise UserError(
                f"Model name {short_repr(text)}: {key} is {short_repr(value)}, and {largest} is the most.",
                "Give a smaller value.",
            )
        if not all(_is_plain(part) for part in parts):
            raise UserError(
                f"Model name {short_repr(text)}: {key} can't be {short_repr(raw)}.",
                "A value is a number, true, false or a word, or a list of these such as [2,2,6,2].",
            )
        arguments[key] = value
    return arguments


class _Nothing:
    """What no text reads as."""


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
