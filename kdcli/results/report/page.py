"""What a page holds, and how it is written; :mod:`.runs` fills it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from kdcli.base.files import clear_os_errors, write_atomically, write_redacted
from kdcli.results.report.charts import COLOURS


@dataclass(frozen=True)
class Fact:
    """A line of what is so, and why."""

    name: str
    value: str
    reason: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text: the first column is names, the others are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    caption: str
    source: str

    @classmethod
    def of(cls, file: Path, caption: str) -> Picture:
        """Return the picture in a file."""
        return cls(caption, "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode())


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    title: str
    text: str


@dataclass
class Section:
    """A part of a page; empty parts are left out."""

    title: str
    lines: Sequence[str] = ()
    table: Table | None = None
    facts: Sequence[Fact] = ()
    charts: Sequence[Markup] = ()
    pictures: Sequence[Picture] = ()
    code: Sequence[Code] = ()
    more_title: str = ""
    more: Sequence[Fact] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to see."""
        return not any((self.lines, self.table, self.facts, any(self.charts), self.pictures, self.code, self.more))


@dataclass
class Page:
    """All of a page.

    Attributes:
        title: its heading.
        lead: lines below it.
        verdict: whether distillation helped, in one sentence; empty where nothing says so.
        verdict_kind: ``helped``, ``harmed`` or ``unclear``.
        tries: what to try next, a phrase each.
        sections: in order.
    """

    title: str
    lead: Sequence[str] = ()
    verdict: str = ""
    verdict_kind: str = "unclear"
    tries: Sequence[str] = ()
    sections: list[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """Return a page as HTML that needs no other file."""
    import jinja2

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page.sections = [section for section in page.sections if not section.is_empty]
    return environment.from_string(template).render(page=page, colours=COLOURS)


def write_page(page: Page, file: Path) -> None:
    """Write a page whole or not at all, without secrets."""
    with clear_os_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda temporary: write_redacted(temporary, render(page)))
