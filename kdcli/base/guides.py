"""The guides that come with kdcli: pages of Markdown, which ``kdcli guide`` prints."""

from __future__ import annotations

import re
from pathlib import Path

from kdcli.base.errors import UserError, did_you_mean

GUIDES = (
    "start",
    "own-teacher",
    "projectors",
    "methods",
    "data",
    "dense",
    "generation",
    "texts",
    "unlabelled",
    "sweeps",
    "resume-and-gpus",
    "speed",
    "names",
    "python",
    "extend",
    "how-it-works",
)
"""The topics, in the order in which they are best read."""


def guide_file(topic: str) -> Path:
    """Return where a guide lies.

    Raises:
        UserError: there is none on this topic.
    """
    if topic not in GUIDES:
        nearest = did_you_mean(topic, GUIDES)
        raise UserError(f"There is no guide {topic!r}. {nearest}".rstrip(), f"Topics: {', '.join(GUIDES)}.")
    return Path(__file__).resolve().parents[1] / "guides" / f"{topic}.md"


def guide_text(topic: str) -> str:
    """Return a guide as it is written, in Markdown.

    Raises:
        UserError: there is none on this topic.
    """
    return guide_file(topic).read_text(encoding="utf-8")


def guide_title(topic: str) -> str:
    """Return a guide's first heading."""
    return guide_text(topic).partition("\n")[0].removeprefix("# ")


def for_terminals(text: str) -> str:
    """Return a guide for a screen: links to other guides are commands, pictures are left out.

    Links to files of the repository stay as words: they are not installed.
    """
    text = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n\n?", "", text, flags=re.M)
    text = re.sub(r"\[[^\]]*\]\(([a-z-]+)\.md(?:#[^)]*)?\)", r"`kdcli guide \1`", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
