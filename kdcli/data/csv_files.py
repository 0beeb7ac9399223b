"""Csv and tsv files, every cell as it is written."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_HINT = (
    "The first line names the columns; a cell with a comma, a line break or a quote in it stands in double quotes, and"
    " a quote inside is doubled."
)


def read_csv(files: Mapping[str, Sequence[str]], *, delimiter: str, notes: list[str]) -> dict[str, Dataset]:
    """Return the tables of csv files by split; all cells are strings as they are written, an empty one is null.

    Lines of a tsv file whose quotes don't pair, as in GLUE's, are cut at the tabs alone, and a note says so.

    Args:
        files: of each split, all with the same columns.
        delimiter: a comma or a tab.
        notes: what there is to say is added.

    Raises:
        UserError: a file is no UTF-8, has no columns, two of one name, a row of another number of cells, or quotes that
            don't pair.
        OSError: a file can't be read.
    """
    from datasets import Dataset

    tables = {}
    for split, paths in files.items():
        columns: dict[str, list[str | None]] = {}
        for path in paths:
            header, rows = _read(Path(path), delimiter, notes)
            if columns and list(columns) != header:
                raise UserError(
                    f"{path} has the columns {', '.join(header)}, and another file of {split} has"
                    f" {', '.join(columns)}.",
                    "All files of a split need the same columns.",
                )
            for number, name in enumerate(header):
                columns.setdefault(name, []).extend(row[number] or None for row in rows)
        tables[split] = Dataset.from_dict(columns, features=_strings(columns))
    return tables


def _strings(columns: Iterable[str]) -> Any:
    from datasets import Features, Value

    return Features({name: Value("string") for name in columns})


def _read(path: Path, delimiter: str, notes: list[str]) -> tuple[list[str], list[list[str]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} couldn't be read: it is no UTF-8 ({error}).", "Save the file as UTF-8.") from error
    try:
        rows = _parse(text, delimiter)
        problem = _problem(rows)
    except csv.Error as error:
        rows, problem = [], str(error)
    if delimiter == "\t" and '"' in text:
        plain = [(number, line.split("\t")) for number, line in enumerate(re.split("\r\n|\n|\r", text), 1) if line]
        # Line breaks in a cell where every line is a whole row are those between two stray quotes.
        if not _problem(plain) and (problem or any("\n" in cell for _, row in rows for cell in row)):
            notes.append(f"{path.name}: quotes are taken as written, as they don't pair.")
            rows, problem = plain, ""
    if problem:
        raise UserError(f"{path} couldn't be read: {problem}.", _HINT)
    header = [name or f"column{number}" for number, name in enumerate((cell.strip() for cell in rows[0][1]), 1)]
    if twice := {name for name in header if header.count(name) > 1}:
        raise UserError(f"{path} has more than one column {min(twice)}.", _HINT)
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise UserError(
            f"{path} has one column, {header[0]!r}: its cells seem to be apart by {other!r}.",
            "Cells are apart by commas in a csv file, by tabs in a tsv file.",
        )
    return header, [row for _, row in islice(rows, 1, None)]


def _parse(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the rows with the numbers of their last lines; blank lines are none."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(before)


def _problem(rows: Sequence[tuple[int, list[str]]]) -> str:
    """Return what is wrong with the rows; nothing if nothing is."""
    if not rows:
        return "it is empty"
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            return f"line {line} has {len(row)} cells, and the first line has {width}"
    return "" if len(rows) > 1 else "it has no rows below the names of the columns"
