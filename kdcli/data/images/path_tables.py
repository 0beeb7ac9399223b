"""Tables with a column of paths to images and one of labels: csv, tsv, jsonl and parquet files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError, reading
from kdcli.base.text import counted, short_repr
from kdcli.config.data import DataConfig, SplitsConfig
from kdcli.data.classes import listing
from kdcli.data.columns import LABEL_NAMES, existing_column, only_column, silence_datasets
from kdcli.data.csv_files import read_csv
from kdcli.data.images.sources import FileSource
from kdcli.data.labels import as_number, is_blank, is_discrete, label_cells
from kdcli.data.listing import IMAGE_SUFFIXES, list_files, suffix_of
from kdcli.data.split_names import SPLIT_NAMES, check_understood, match_splits, split_files

if TYPE_CHECKING:
    from datasets import Dataset, Features

SUFFIXES = (".csv", ".tsv", ".jsonl")
PATH_NAMES = (
    *("image", "img", "images", "image_path", "img_path", "file_name", "filename", "filepath", "file_path", "file"),
    *("path", "image_id"),
)
"""Columns that paths are usually in, the most usual first."""
LABEL_COLUMNS = (*LABEL_NAMES, "category", "class_name", "label_name", "classes", "species")
_SPLIT_COLUMNS = ("split", "subset", "set")
_USUAL_SPLITS = {name for names in SPLIT_NAMES.values() for name in names}
_LOOKED_AT = 20
"""Rows by which it is told whether a column holds paths of images."""
_HINT = "Paths are absolute, or relative to the table."


@dataclass(frozen=True)
class PathTables:
    """What is read of the tables in a file or a folder.

    Attributes:
        tables: by split, all with the same columns; ``train`` is everything where there are no splits.
        root: the folder that paths are relative to.
        notes: one sentence each.
        split_column: the column by which rows were taken apart; None where none was.
    """

    tables: Mapping[str, Dataset]
    root: Path
    notes: Sequence[str]
    split_column: str | None = None


def find_lists(path: Path, config: DataConfig) -> list[str]:
    """Return the names of the csv, tsv and jsonl files that list images: of the file ``path``, or right in a folder.

    That is told by their first rows: a column of paths to images, by its name and by what is in it.
    """
    if path.is_file():
        is_list = suffix_of(path.name) in SUFFIXES
        return [path.name] if is_list and (config.image_column or _lists_images(path, None)) else []
    if path.is_dir():
        files = list_files(path, lambda file: suffix_of(file) in SUFFIXES, deep=False).files
        names = [os.path.basename(file) for file in files]  # noqa: PTH119
        return [name for name in names if _lists_images(path / name, config.image_column)]
    return []


def open_lists(path: Path, names: Sequence[str], config: DataConfig) -> PathTables:
    """Read the tables that :func:`find_lists` found.

    Args:
        path: the file, or the folder that they lie in.
        names: of the files.
        config: ``splits`` names files, or the values of a column ``split``.

    Raises:
        UserError: a file can't be read, they are of several kinds, or the splits are not understood.
    """
    root = path if path.is_dir() else path.parent
    kinds = sorted({suffix_of(name) for name in names})
    if len(kinds) > 1:
        raise UserError(f"{path} has lists of images of several kinds: {', '.join(kinds)}.", "Keep one kind.")
    notes: list[str] = []
    by_split: dict[str, list[str]] = {"train": list(names)}
    if path.is_dir():
        asked = None if len(names) == 1 else config.splits  # of a single file it names the values of a column
        by_split, notes = split_files(names, asked, where=str(path))
    files = {split: [str(root / name) for name in of] for split, of in by_split.items()}
    with reading(path):
        tables = _load(path, kinds[0], files, notes)
    return by_column(tables, root, config.splits, notes, where=str(path))


def by_column(
    tables: Mapping[str, Dataset], root: Path, asked: SplitsConfig | None, notes: Sequence[str], *, where: str
) -> PathTables:
    """Return the tables; a single one by what a column ``split`` says of each row, where it has one.

    Raises:
        UserError: a row has no split, or the values of the column are not understood.
    """
    column = None
    if len(tables) == 1:
        (table,) = tables.values()
        names = [] if asked is None else [*asked.model_dump(exclude_none=True).values()]
        column = next((name for name in table.column_names if _is_of_splits(table, name, names)), None)
    if column is None:
        if asked is not None and len(tables) == 1:
            raise UserError(
                f"data.splits is set, but {where} is one table without a column split.",
                "Leave it out, or give the table such a column.",
            )
        return PathTables(tables, root, notes)
    rows: dict[str, list[int]] = {}
    for number, cell in enumerate(table[column][:]):
        if is_blank(cell):
            raise UserError(f"{where}: row {number + 1} has no {column}.", "Every row is of one split.")
        rows.setdefault(str(cell).strip(), []).append(number)
    found = match_splits(rows, asked, where=f"the column {column} of {where}", kind="value")
    others = [name for name in rows if name not in found.values()]
    note = check_understood(found, others, asked, where=f"the column {column} of {where}", kind="value")
    told = f"Splits: the column {column}."
    chosen = {split: table.select(rows[name]) for split, name in found.items()}
    return PathTables(chosen, root, [*notes, told, *([note] if note else [])], column)


def path_column(table: Dataset, asked: str | None, root: Path) -> str | None:
    """Return the column that holds paths of images: ``asked``, or found by its name and what is in it; None for none.

    Raises:
        UserError: there is no column of the name that is asked for, or several may be meant.
    """
    strings = [name for name, feature in table.features.items() if is_string(feature)]
    if asked is not None:
        column = existing_column(asked, table.features, "data.image_column")
        return column if column in strings else None
    found = [name for name in strings if are_paths(table[name][:_LOOKED_AT], root)]
    if len(found) > 1 and not any(name in found for name in PATH_NAMES):
        return only_column(found, PATH_NAMES, table.features, kind="image")
    return next((name for name in PATH_NAMES if name in found), found[0] if found else None)


def label_column(features: Features, asked: str | None, others: Sequence[str | None]) -> str:
    """Return the column of labels: ``asked``, one with a usual name, or the only one beside ``others``.

    Raises:
        UserError: there is none, or more than one.
    """
    from datasets import ClassLabel

    if asked is not None:
        return existing_column(asked, features, "data.label_column")
    left = {name: feature for name, feature in features.items() if name not in others}
    candidates = [name for name, feature in left.items() if isinstance(feature, ClassLabel)]
    candidates = candidates or [
        name for name, feature in left.items() if name in LABEL_COLUMNS and is_discrete(feature)
    ]
    if not candidates and len(left) == 1 and is_discrete(next(iter(left.values()))):
        candidates = list(left)
    return only_column(candidates, LABEL_COLUMNS, features, kind="label")


def check_classes(table: Dataset, column: str, *, is_asked: bool = False) -> None:
    """Refuse labels that are numbers with fractions, or that could be several in one cell unless classes are asked for.

    Raises:
        UserError: it names one.
    """
    cells = [cell for cell in label_cells(table, column) if cell is not None]
    numbers = [as_number(cell) for cell in cells]
    broken = [number for number in numbers if number is not None and not number.is_integer()]
    if broken and None not in numbers:
        raise UserError(
            f"The label column {column} holds numbers such as {broken[0]:g}, not classes.",
            "Labels are names of classes, or whole numbers; data.label_column names another column.",
        )
    marked = [cell for cell in cells if isinstance(cell, str) and ("|" in cell or ";" in cell)]
    if marked and not is_asked:
        raise UserError(
            f"The label column {column} holds {short_repr(marked[0])}: one class, or several labels?",
            "Set data.label_kind=classes for several, or data.label_kind=class to take each value as a class.",
        )


def files_of(table: Dataset, column: str, labels: Sequence[int], root: Path, split: str) -> FileSource:
    """Return the images of a table's rows.

    Args:
        table: one split.
        column: of the paths.
        labels: one class index a row.
        root: the folder that paths are relative to.
        split: for messages.

    Raises:
        UserError: a cell is empty, a file is missing, or one is named twice.
    """
    paths: dict[str, int] = {}
    missing: list[str] = []
    for number, cell in enumerate(table[column][:], 1):
        if is_blank(cell):
            raise UserError(f"Row {number} of the {split} split has no path in the column {column}.", _HINT)
        path = os.path.normpath(root / cell.strip())
        if (first := paths.setdefault(path, number)) != number:
            raise UserError(
                f"Row {number} of the {split} split names the image {cell} once more, after row {first}.",
                "Every image has one row: keep one of them.",
            )
        if not os.path.isfile(path):  # noqa: PTH113 - a Path each is a waste
            missing.append(path)
    if missing:
        raise UserError(
            f"Of {counted(len(paths), 'image')} of the {split} split {len(missing)} can't be found, such as"
            f" {listing(missing, limit=3)}.",
            _HINT,
        )
    return FileSource(paths, labels, root=root)


def is_string(feature: Any) -> bool:
    """Whether a column holds strings."""
    return str(getattr(feature, "dtype", "")) in ("string", "large_string", "string_view")


def _load(path: Path, suffix: str, files: Mapping[str, Sequence[str]], notes: list[str]) -> dict[str, Dataset]:
    if suffix != ".jsonl":
        return read_csv(files, delimiter="\t" if suffix == ".tsv" else ",", notes=notes)
    from datasets import load_dataset

    from kdcli.data.images.tables import as_patterns

    silence_datasets()
    try:
        loaded = load_dataset("json", data_files=as_patterns(files))
    except Exception as error:  # on damaged files datasets and pyarrow raise whatever they trip over
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} couldn't be read: {reason}",
            "A line of a jsonl file is an object, and all of them have the same keys, with values of one type each.",
        ) from error
    return dict(loaded)


def _lists_images(file: Path, asked: str | None) -> bool:
    rows = _first_rows(file)
    if not rows:
        return False
    if asked is not None:
        return asked in rows[0]
    return any(are_paths([row.get(name) for row in rows], file.parent) for name in rows[0])


def _first_rows(file: Path) -> list[dict[str, Any]]:
    """Return the first rows by column; nothing of a file that can't be read, which whoever reads all of it reports."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if suffix_of(file.name) == ".jsonl":
                rows = [json.loads(line) for line in islice(opened, _LOOKED_AT) if line.strip()]
                return [row for row in rows if isinstance(row, dict)]
            table = csv.reader(opened, delimiter="\t" if suffix_of(file.name) == ".tsv" else ",")
            header = [cell.strip() for cell in next(table, [])]
            return [dict(zip(header, row, strict=False)) for row in islice(table, _LOOKED_AT) if row]
    except (OSError, ValueError, csv.Error, RecursionError):
        return []


def are_paths(cells: Sequence[Any], root: Path) -> bool:
    """Whether all cells that say anything look like paths of images: by their suffixes, or as files that are there."""
    known = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    if not known or len(known) < sum(cell is not None and cell != "" for cell in cells):
        return False
    return all(suffix_of(cell) in IMAGE_SUFFIXES or _is_file(root, cell) for cell in known)


def _is_file(root: Path, cell: str) -> bool:
    try:
        return os.path.isfile(root / cell)  # noqa: PTH113
    except (OSError, ValueError):  # too long, or with a null in it
        return False


def _is_of_splits(table: Dataset, column: str, names: Sequence[str]) -> bool:
    """Whether a column says which split a row is of: by its name, and by a value that is a split's."""
    if column.lower() not in _SPLIT_COLUMNS or not is_string(table.features[column]):
        return False
    values = {str(cell).strip() for cell in table.unique(column) if not is_blank(cell)}
    return column.lower() == "split" or any(value.lower() in _USUAL_SPLITS or value in names for value in values)
