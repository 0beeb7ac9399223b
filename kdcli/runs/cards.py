"""Model cards as files: signed, and kept where somebody has edited them."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

from kdcli.base.checksums import is_signed_card, signed_card
from kdcli.base.text import redact

CARD = "README.md"


def card_content(text: str) -> bytes:
    """Return what is written to a model card's file: no tokens of hubs and trackers, and a checksum."""
    return signed_card(redact(text).encode("utf-8", "backslashreplace"))


def is_edited_card(file: Path) -> bool:
    """Whether there is a model card that is not as :func:`card_content` returned it."""
    return file.is_file() and not is_signed_card(file.read_bytes())


def keep_edited_card(folder: Path) -> list[str]:
    """Rename a model card in ``folder`` that somebody has edited, for a new one comes; return a note of it."""
    if not is_edited_card(folder / CARD):
        return []
    kept = next(file for n in count(1) if not (file := folder / f"README-edited-{n}.md").exists())
    (folder / CARD).rename(kept)
    return [f"{folder / CARD} had been changed since kdcli wrote it: kept as {kept.name}, beside the new one."]


def is_kept_card(file: Path) -> bool:
    """Whether a file has a name that :func:`keep_edited_card` gives."""
    return re.fullmatch(r"README-edited-\d+\.md", file.name) is not None
