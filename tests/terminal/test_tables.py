"""Tables and plans: nothing is cut off on a terminal of any width, and in a pipe they are plain."""

from __future__ import annotations

import io
import re
from collections import Counter

import pytest
from rich.console import Console

from kdcli.plan.plan import Decision, Plan
from kdcli.terminal import console

NAME = "claims/a-very-long-name-of-a-recipe-without-a-single-space/inverted_projector"
WHAT = "What it is for, in some words that do not fit into a narrow terminal: supercalifragilisticexpialidocious."
ROWS = [[NAME, WHAT, "12.5M", "-"], ["b|c", "short", "3", "0.9000 ± 0.0100"]]
COLUMNS = ["name", "what for", "size", "accuracy"]


@pytest.fixture
def shown(monkeypatch):
    """Print with a function of the console's module, on a terminal of this width or in a pipe; return what is seen."""

    def show(name, *arguments, width=None, **options):
        text = io.StringIO()
        terminal = {"force_terminal": True, "width": width} if width else {"width": 80}
        printer = Console(file=text, color_system=None, highlight=False, emoji=False, **terminal)
        monkeypatch.setattr(console, "console", printer)
        getattr(console, name)(*arguments, **options)
        return text.getvalue()

    return show


def letters(text):
    return re.sub(r"[\s│─╭╮╰╯]", "", text)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_long_text_is_wrapped_and_no_number_is_broken(shown, width):
    text = shown("show_table", "A title", COLUMNS, ROWS, width=width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    cells = [
        [part.strip() for part in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")
    ]
    assert "".join(cell[0] for cell in cells) == NAME + "b|c"
    assert "".join(cell[1] for cell in cells).replace(" ", "") == (WHAT + "short").replace(" ", "")
    assert [cell[2] for cell in cells if cell[2]] == ["12.5M", "3"]
    assert [cell[3] for cell in cells if cell[3]] == ["-", "0.9000 ± 0.0100"]
    lines = [line for line in text.splitlines() if "short" in line]
    assert re.search(r"│ b\|c +│ short +│ +3 │ 0\.9000 ± 0\.0100 │", lines[0]), "text left, numbers right"


def test_headings_of_numbers_are_whole_beside_long_text(shown):
    rows = [["a-name-that-takes-all-the-room-there-is-on-the-line", "1.59M", "48.9", "yes"]]
    text = shown("show_table", "", ["name", "parameters", "latency in ms", "published weights"], rows, width=60)
    assert "…" not in text
    assert "parameters" in text
    assert "latency" in text
    assert max(map(len, text.splitlines())) <= 60


def test_a_table_in_a_pipe_is_markdown_of_whole_lines(shown):
    text = shown("show_table", "A title", COLUMNS, [*ROWS, ["[bold]x[/]", "", ""]])
    title, heading, rule, *rows = text.splitlines()
    assert title == "A title"
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (heading, *rows)]
    assert cells == [COLUMNS, ROWS[0], ["b\\|c", *ROWS[1][1:]], ["[bold]x[/]", "", "", ""]]
    assert [bool(part.strip().endswith(":")) for part in rule.split("|")[1:-1]] == [False, False, True, True]
    assert len({len(line) for line in (heading, rule, *rows)}) == 1, "columns stand below one another"


def test_a_wide_table_comes_in_parts_with_its_first_column(shown):
    columns = ["", *(f"group-{number}" for number in range(8))]
    rows = [["test accuracy", *["0.9000 ± 0.0100"] * 8]]
    text = shown("show_wide_table", "Wide", columns, rows, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("test accuracy") == 4
    assert len(re.findall(r"0\.9000 ± 0\.0100", text)) == 8
    assert text.count("Wide") == 1
    piped = shown("show_wide_table", "Wide", columns, rows)
    assert len(piped.splitlines()) == 4


def test_a_plan_is_whole_on_a_terminal_and_wrapped_in_a_pipe(shown):
    decisions = (Decision("student input", NAME, WHAT), Decision("task", "x [/] y", ""))
    plan = Plan(relation="none", label_map=None, methods=(), embedding=None, decisions=decisions)
    text = shown("show_plan", plan, title="Plan: a", whole=True, width=60)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60
    assert Counter(letters(text)) == Counter(letters(f"Plan: a student input {NAME} {WHAT} task x [/] y"))
    piped = shown("show_plan", plan, title="Plan: a", whole=True)
    begin, end = WHAT[:94].rpartition(" ")[0], WHAT[:94].rpartition(" ")[2] + WHAT[94:]
    assert piped.splitlines() == [
        "Plan: a",
        f"  student input: {NAME}",
        f"      ({begin}",
        f"      {end})",
        "  task: x [/] y",
    ]
    assert max(map(len, piped.splitlines())) <= 100


def test_what_is_a_dash_everywhere_is_left_out(shown):
    piped = shown("show_table", "", ["", "a", "b"], [["top-1", "0.5", "-"], ["agreement", "-", "-"], ["x", "1", "-"]])
    assert piped.splitlines() == ["|       |   a |", "| ----- | --: |", "| top-1 | 0.5 |", "| x     |   1 |"]
    assert "-" in shown("show_table", "", ["", "a"], [["top-1", "0.5"], ["x", "-"]]).splitlines()[-1]
