"""Checksums by which a changed or broken file of a run is found."""

from __future__ import annotations

import hashlib
from pathlib import Path

_FIRST = b"# Written by kdcli; its last line is a checksum of the others.\n"
_LAST = b"# sha256: "
_CARD_END = b"\n<!-- Written by kdcli; sha256 of the lines above: "


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signed(text: bytes) -> bytes:
    """Return lines of YAML with comments before and after them, by which :func:`is_as_signed` knows them again."""
    lines = _FIRST + text
    return lines + _LAST + hashlib.sha256(lines).hexdigest().encode() + b"\n"


def is_as_signed(content: bytes) -> bool:
    """Whether what :func:`signed` returned is whole and unchanged; true of what it has never seen."""
    if not content.startswith(_FIRST):
        return True
    lines, mark, _ = content.rpartition(_LAST)
    return bool(mark) and content == signed(lines.removeprefix(_FIRST))


def breaks_off(text: str) -> bool:
    """Whether what :func:`signed` returned has lost its end."""
    return text.startswith(_FIRST.decode()) and not any(line.startswith(_LAST.decode()) for line in text.splitlines())


def is_of_a_run(text: str) -> bool:
    """Whether a text begins as :func:`signed` writes it: it is a file of a run."""
    return text.startswith(_FIRST.decode())


def signed_card(text: bytes) -> bytes:
    """Return a card in Markdown with a comment at its end, by which :func:`is_signed_card` knows it again."""
    return text + _CARD_END + hashlib.sha256(text).hexdigest().encode() + b" -->\n"


def is_signed_card(content: bytes) -> bool:
    """Whether a card is whole and unchanged as :func:`signed_card` returned it."""
    text, mark, _ = content.rpartition(_CARD_END)
    return bool(mark) and content == signed_card(text)
