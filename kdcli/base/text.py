"""Text from outside (names, paths, values, messages of libraries) made fit to be printed, written and opened."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError

DASH = "-"
"""In a table, for what there is not."""
_SECRET_VARIABLE = re.compile(r"(HF|HUGGING_?FACE|WANDB|MLFLOW|TRACKIO)\w*(TOKEN|KEY|PASSWORD|SECRET)")
_SHORTEST_SECRET = 8
"""Shorter values of such a variable are no secrets, and would be found in the middle of words."""
_SECRETS = (
    (re.compile(r"(?<=:/)(/?)[^/\s@]+(?=@)"), r"\1REDACTED"),  # https://user:token@host, which as a path has one slash
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "hf_REDACTED"),
    (re.compile(r"\bwandb_v\d_\w{20,}"), "wandb_REDACTED"),
    (re.compile(r"([?&][\w-]*(?:token|key|signature|password)=)[^&\s'\"]+", re.IGNORECASE), r"\1REDACTED"),
    (re.compile(r"\b(bearer )[\w.~+/-]{8,}", re.IGNORECASE), r"\1REDACTED"),
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udc7f\udd00-\udfff]")
"""What is in no name; bytes that are not UTF-8 are in some, and stand in text as U+DC80 to U+DCFF (``os.fsdecode``)."""
_MAX_PART, _MAX_PATH = 255, 4096
"""Bytes that file systems take for a file's name, and the system for a path."""


def redact(text: str) -> str:
    """Return ``text`` with ``REDACTED`` for tokens of hubs and trackers.

    Found are the values of environment variables such as ``HF_TOKEN`` and ``WANDB_API_KEY``, tokens of the Hugging Face
    hub and of Weights & Biases by their form, and the credentials in a URL.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.fullmatch(name):
            text = text.replace(value, "REDACTED")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_all(value: Any) -> Any:
    """Return nested lists and mappings with every text redacted, before quoting can hide a part of a token."""
    if isinstance(value, dict):
        return {key: redact_all(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def printable(text: str) -> str:
    r"""Return ``text`` with control characters and half characters as ``\x1b``; tabs and line breaks stay."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def without_dashes(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return a table without rows and columns that have nothing but dashes; its first column has the rows' names."""
    rows = [row for row in rows if {*row[1:]} != {DASH}]
    kept = [number for number in range(len(columns)) if not number or {row[number] for row in rows} != {DASH}]
    return [columns[number] for number in kept], [[row[number] for number in kept] for row in rows]


def short_repr(value: Any) -> str:
    """Return ``repr(value)``, of nested, long or huge values only the beginning."""
    return _SHORT.repr(value)


def check_name(text: str) -> str:
    """Return ``text``, or refuse what no file and no model can be called.

    Raises:
        ValueError: control characters, half characters, or more bytes than a path or a part of one can have.
    """
    if found := _NO_NAME.search(text):
        raise ValueError(f"it has the character {found[0]!r}")
    if len(os.fsencode(text)) > _MAX_PATH:
        raise ValueError(f"it is longer than {_MAX_PATH} bytes")
    if any(len(os.fsencode(part)) > _MAX_PART for part in text.split("/")):
        raise ValueError(f"a part of it is longer than {_MAX_PART} bytes")
    return text


def check_argument(name: str, value: str | PathLike[str]) -> None:
    """Refuse a command line's ``value`` that :func:`check_name` refuses.

    Raises:
        UserError: it names the argument.
    """
    try:
        check_name(os.fspath(value))
    except ValueError as error:
        raise UserError(f"{name} can't be {short_repr(os.fspath(value))}: {error}.", "Give another name.") from None


def parse_count(option: str, text: str) -> float:
    """Read ``text`` as a number such as 300K, 5M, 1.5G or 20000.

    Raises:
        UserError: it is none; it names ``option``.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([KMG]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"{option} can't be {short_repr(text)}.", "Give a number such as 300K, 5M or 1.5G.")
    return float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2].upper()]


def expand_user(path: str | Path) -> Path:
    """Return ``path`` with the home folder for ``~``.

    Raises:
        UserError: there is no user of the name after ``~``.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}", "Write the folder out.") from None


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of thousands of digits.
        return repr(x) if x.bit_length() < 200 else f"a number of {x.bit_length()} bits"


_SHORT = _ShortRepr()


def counted(number: int, noun: str, *, of: int | None = None) -> str:
    """Return ``1 image``, ``2 images`` or, with ``of``, ``1 of 9 images``; ``noun`` is one whose plural has an s."""
    return f"{number} {noun if number == 1 else f'{noun}s'}" if of is None else f"{number} of {counted(of, noun)}"


def have(number: int) -> str:
    """Return the verb of so many things."""
    return "has" if number == 1 else "have"


def human_count(number: float) -> str:
    """Return ``number`` as 1.23K, 4.56M or 7.89G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.2f}{unit}"
    return f"{number:.0f}"
