"""Everything that is printed. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kdcli.base.errors import UserError
from kdcli.base.text import printable, redact
from kdcli.plan.plan import Plan

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


def show_plan(plan: Plan, *, title: str) -> None:
    """Print every decision of a plan with its reason."""
    table = Table(box=None, pad_edge=False, show_header=False, expand=True)
    longest = max(len(decision.name) for decision in plan.decisions)
    table.add_column(style="bold cyan", width=min(longest, max(console.width // 5, 13)), overflow="fold")
    table.add_column(ratio=5)
    table.add_column(style="dim", ratio=5)
    for decision in plan.decisions:
        table.add_row(escape(decision.name), escape(decision.value), escape(decision.reason))
    console.print(Panel(table, title=escape(title), title_align="left", border_style="cyan"))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: the first column is text, the others are numbers."""
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


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
    from rich.markdown import Markdown

    console.print(Markdown(text), width=min(console.width, 100))
