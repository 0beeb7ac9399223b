"""Everything that is printed. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from textwrap import TextWrapper

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kdcli.base.errors import UserError
from kdcli.base.text import printable, redact, without_dashes
from kdcli.plan.plan import Plan
from kdcli.plan.summary import Line, summarise

_NO_NUMBERS = ("", "-", "baseline")
_NUMBER = re.compile(r"[-+]?\d[\d.,e+-]*( ?[A-Za-z%µ]{1,3})?( ± [\d.]+)?( \[[^\]]*\])?( \([^)]*\))?")
_PIPED = 100
"""Characters of a line of wrapped text in a pipe, unless ``COLUMNS`` says more."""
_NARROW = 8
"""Characters that a column of text has at least, if its texts have as many."""

console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)


def escape(text: str) -> str:
    """Return ``text`` as rich's markup for it, without secrets and without what would drive the terminal."""
    return escape_markup(printable(redact(text)))


def show_error(error: UserError) -> None:
    """Print a user's error: the message and the hint."""
    errors.print(f"[bold red]Error:[/] {escape(_indented(error.message))}", soft_wrap=True)
    if error.hint:
        errors.print(f"[bold]Hint:[/] {escape(_indented(error.hint))}", soft_wrap=True)


def show_note(text: str) -> None:
    """Print a line to standard error, beside what the command prints."""
    errors.print(escape(text), soft_wrap=True)


def _indented(text: str) -> str:
    """Return ``text`` with all lines but the first indented: a library's words can't pass for a message of kdcli's."""
    first, *rest = text.splitlines() or [""]
    return "\n".join([first, *(line if line.startswith(" ") else f"  {line}" for line in rest)])


def show_plan(plan: Plan, *, title: str, whole: bool = False) -> None:
    """Print what decides, in some ten lines, or every decision of a plan with its reason; in a pipe as wrapped text."""
    if not whole:
        _show_summary(summarise(plan), title)
        return
    if not console.is_terminal:
        reasons = (f"  ({each.reason})" if each.reason else "" for each in plan.decisions)
        told = zip(plan.decisions, reasons, strict=True)
        _show_wrapped(title, (f"{each.name}: {each.value}{reason}" for each, reason in told))
        return
    table = Table(box=None, pad_edge=False, show_header=False, expand=True)
    longest = max(len(decision.name) for decision in plan.decisions)
    table.add_column(style="bold cyan", width=min(longest, max(console.width // 5, 13)), overflow="fold")
    table.add_column(ratio=5, overflow="fold")
    table.add_column(style="dim", ratio=5, overflow="fold")
    for decision in plan.decisions:
        table.add_row(escape(decision.name), escape(decision.value), escape(decision.reason))
    console.print(Panel(table, title=escape(title), title_align="left", border_style="cyan"))


def _show_wrapped(title: str, texts: Iterable[str]) -> None:
    """Print texts into a pipe, each from a new line on; further lines of it are indented. No word is broken."""
    width = max(_PIPED, console.width)
    wrapped = TextWrapper(width, initial_indent="  ", subsequent_indent="      ", break_long_words=False)
    wrapped.break_on_hyphens = False
    show_lines([title, *(line for text in texts for line in wrapped.wrap(text))])


def _show_summary(lines: Sequence[Line], title: str) -> None:
    if not console.is_terminal:
        _show_wrapped(title, (f"{line.name}: {line.text}" for line in lines))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(width=max(len(line.name) for line in lines), overflow="fold")
    table.add_column(overflow="fold")
    for line in lines:
        style = "bold yellow" if line.is_warning else "bold cyan"
        table.add_row(f"[{style}]{escape(line.name)}[/]", escape(line.text))
    console.print(f"[bold]{escape(title)}[/]")
    console.print(table)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: columns of numbers on the right, text on the left. Long text is wrapped, nothing is cut off.

    Rows and columns of dashes alone are left out.
    Where standard output is no terminal it is a table of Markdown, of whatever width.
    """
    columns, body = without_dashes(columns, [[*row, *[""] * (len(columns) - len(row))] for row in rows])
    if not console.is_terminal:
        show_lines([*([title] if title else []), *_markdown(columns, body)])
        return
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for column, width, is_right in zip(columns, *_widths(columns, body), strict=True):
        if is_right:
            table.add_column(escape(column), justify="right", min_width=width)
        else:
            table.add_column(escape(column), overflow="fold", width=width)
    for row in body:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _widths(columns: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[int], list[bool]]:
    """Return how wide each column is, and which are of numbers: these stay whole, text shares what room there is.

    A column of short text gets what it needs, the others as much as one another.
    """
    cells = [[row[number] for row in body] for number in range(len(columns))]
    is_right = [_are_numbers(column) for column in cells]
    longest = [
        max(
            (len(part) for cell in (*(heading.split() if right else [heading]), *column) for part in cell.split("\n")),
            default=1,
        )
        for heading, column, right in zip(columns, cells, is_right, strict=True)
    ]
    numbers = [wide for wide, right in zip(longest, is_right, strict=True) if right]
    room, widths = console.width - 3 * len(columns) - 1 - sum(numbers), list(longest)
    texts = sorted((wide, number) for number, wide in enumerate(longest) if not is_right[number])
    for place, (wide, number) in enumerate(texts):
        widths[number] = min(wide, max(_NARROW, room // (len(texts) - place)))
        room -= widths[number]
    return widths, is_right


def show_wide_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of many columns: one wider than the terminal in parts, each with the first column.

    Names and keys in it are folded, numbers are whole.
    """
    lines = [list(columns), *(list(row) for row in rows)]

    def width(numbers: Iterable[int]) -> int:
        cells = ([part for line in lines for part in line[number].split("\n")] for number in numbers)
        return 1 + sum(3 + max(map(len, parts)) for parts in cells)

    def fold(text: str) -> str:  # at separators where there are some: no number is cut
        return "\n".join(re.findall(r".{1,28}$|.{1,27}[ ._/-]|.{1,28}", text))

    if not console.is_terminal or width(range(len(columns))) <= console.width:
        show_table(title, lines[0], lines[1:])
        return
    lines = [[fold(cell) for cell in line] for line in lines]
    start = 1
    while start < len(columns):
        stop = start + 1
        while stop < len(columns) and width([0, *range(start, stop + 1)]) <= console.width:
            stop += 1
        headings, *body = ([line[0], *line[start:stop]] for line in lines)
        show_table(title if start == 1 else "", headings, body)
        start = stop


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether a column is of numbers, with what may stand beside or in place of some."""
    told = [cell for cell in cells if cell not in _NO_NUMBERS]
    return bool(told) and all(_NUMBER.fullmatch(cell) for cell in told)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, whose columns stand below one another."""
    lines = [[printable(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in (columns, *rows)]
    is_right = [_are_numbers([row[number] for row in rows]) for number in range(len(columns))]
    widths = [max(3, *(len(line[number]) for line in lines)) for number in range(len(columns))]
    rule = [f"{'-' * (wide - right)}{':' * right}" for wide, right in zip(widths, is_right, strict=True)]
    return [
        f"| {' | '.join(starmap(_placed, zip(line, widths, is_right, strict=True)))} |"
        for line in (lines[0], rule, *lines[1:])
    ]


def _placed(cell: str, wide: int, is_right: bool) -> str:
    return cell.rjust(wide) if is_right else cell.ljust(wide)


@contextmanager
def show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on standard error, on a terminal only; yield a function of what is done, how many, of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def show_lines(lines: Iterable[str]) -> None:
    """Print plain lines."""
    for line in lines:
        console.print(escape(line), soft_wrap=True)


def show_text(text: str) -> None:
    """Print text exactly as it is, for a pipe to take."""
    console.print(text, markup=False, soft_wrap=True, end="")


def show_markdown(text: str) -> None:
    """Print a page of Markdown: rendered on a terminal, as it is into a pipe."""
    if not console.is_terminal:
        show_text(text)
        return
    from kdcli.terminal.markdown import Page

    console.print(Page(text), width=min(console.width, 100))
