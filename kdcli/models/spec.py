"""The grammar of model names. No torch, no network: :mod:`kdcli.models.locate` finds what a name means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdcli.errors import UserError, did_you_mean

Library = Literal["timm", "transformers"]

_LIBRARIES: dict[str, Library] = {"timm": "timm", "hf": "transformers"}
_GRAMMAR = (
    "Names are NAME, timm:NAME, cifar:NAME, hf:ORG/NAME or a local folder; random:NAME is the same architecture "
    "untrained."
)


@dataclass(frozen=True)
class ModelName:
    """A parsed name.

    Attributes:
        text: as the user wrote it.
        target: without its prefixes: a timm name, a hub id or a folder; ``cifar:`` stays.
        library: where ``timm:``, ``cifar:`` or ``hf:`` says so.
        random: the architecture untrained.
    """

    text: str
    target: str
    library: Library | None
    random: bool


def parse_name(text: str) -> ModelName | None:
    """Split the prefixes off ``text``; None for ``none``.

    Raises:
        UserError: an unknown prefix, or nothing after one.
    """
    if text == "none":
        return None
    rest, random, library = text, False, None
    if rest.startswith("random:"):
        random, rest = True, rest.removeprefix("random:")
    prefix, colon, after = rest.partition(":")
    if colon and prefix in _LIBRARIES:
        library, rest = _LIBRARIES[prefix], after
    elif rest.startswith("cifar:"):
        library = "timm"
    elif colon and prefix.isidentifier() and len(prefix) > 1:  # one letter is a Windows drive
        nearest = did_you_mean(prefix, [*_LIBRARIES, "cifar", "random"])
        raise UserError(f"Model name {text!r}: unknown prefix {prefix!r}. {nearest}".rstrip(), _GRAMMAR)
    if not rest.strip() or rest == "none":
        raise UserError(f"Model name {text!r} names no model.", _GRAMMAR)
    return ModelName(text, rest, library, random)
