"""Pages of Markdown on a terminal."""

from __future__ import annotations

from typing import ClassVar

from rich.console import JustifyMethod
from rich.markdown import Markdown, MarkdownElement, TableDataElement


class _Cell(TableDataElement):
    """A cell of a table whose long words are folded: rich's own cuts them off."""

    def __init__(self, justify: JustifyMethod) -> None:
        super().__init__(justify)
        self.content.overflow = "fold"


class Page(Markdown):
    """Markdown as rich shows it, with nothing cut off in tables."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "th_open": _Cell, "td_open": _Cell}
