"""Tables with two columns of images, or of paths to them: the images ``A`` and the images ``B``, row by row."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import counted, have
from kdcli.config.data import DataConfig
from kdcli.data.classes import listing
from kdcli.data.columns import choose_splits, existing_column, extension_of, load_extension, unread
from kdcli.data.images.dense.files import Encoded, Paths, source_of
from kdcli.data.images.dense.tables import Cells
from kdcli.data.images.path_tables import PathTables, are_paths, by_column, files_of, find_lists, is_string, open_lists
from kdcli.data.images.sources import FileSource, ImageSource
from kdcli.data.images.tables import (
    TableSource,
    folder_of_tables,
    holds_images,
    holds_tables,
    load_hub,
    load_local_tables,
    undecoded,
)
from kdcli.data.labels import is_blank

if TYPE_CHECKING:
    from datasets import Dataset

_LOOKED_AT = 20
"""Rows by which it is told whether a column holds paths of images."""
_GIVEN = ("a", "input", "source", "src", "original", "conditioning", "condition", "noisy", "blurred", "lr")
_WANTED = ("b", "output", "target", "tgt", "edited", "result", "clean", "sharp", "gt", "groundtruth", "label", "hr")
"""What columns of A and of B are called, also beside words that say no more than that there are images."""
_BESIDE = "(?:image|img|picture|photo|path|file|name)*"
_HINT = "data.image_column names the column of A, data.label_column that of B."
_FILES = "Paths are absolute, or relative to the table."


@dataclass(frozen=True)
class Columns:
    """Both columns of images.

    Attributes:
        a: name of the column of A.
        b: likewise of B.
        tables: by split, ``train`` among them.
        root: the folder that paths are relative to; None where there are none.
        notes: one sentence each.
        reads_subset: whether ``data.subset`` has an effect.
    """

    a: str
    b: str
    tables: Mapping[str, Dataset]
    root: Path | None
    notes: Sequence[str]
    reads_subset: bool = False


@dataclass(frozen=True)
class Pairs:
    """One split of pairs.

    Attributes:
        images: of which labels play no part.
        targets: one an image.
        labels: 0 each, ``UNLABELLED`` of an image without a target.
        shown: the targets as images, by which it is told how deep they are.
    """

    images: ImageSource
    targets: Encoded
    labels: Sequence[int]
    shown: ImageSource


def find_columns(config: DataConfig, path: Path) -> Columns | None:
    """Return the columns of the tables that ``data.name`` means; None where there are no tables.

    Args:
        config: name, splits and columns.
        path: the name as a path, of data that are on disk.

    Raises:
        UserError: a table can't be read, or its splits or columns don't fit.
    """
    found = _tables(config, path)
    if found is None:
        return None
    table = found.tables["train"]
    a, b, is_guess = _both(table, config, found.root, found.split_column)
    for split, other in found.tables.items():
        if lacking := [name for name in (a, b) if name not in other.column_names]:
            raise UserError(
                f"The {split} split has no column {lacking[0]}; its columns are {', '.join(other.column_names)}.",
                "Every split needs the same columns.",
            )
    read = [name for name in (a, b, found.split_column) if name is not None]
    notes = [*found.notes, f"Columns: A from {a}, B from {b}.{unread(table.features, *read)}"]
    if is_guess:
        notes.append(
            f"A and B are the columns {a} and {b} as they stand in the table; data.image_column names that of A."
        )
    return Columns(a, b, found.tables, found.root, notes, reads_subset=found.reads_subset)


class _Tables(NamedTuple):
    tables: Mapping[str, Dataset]
    root: Path | None
    notes: Sequence[str]
    split_column: str | None = None
    reads_subset: bool = False


def _tables(config: DataConfig, path: Path) -> _Tables | None:
    scheme, _, rest = config.name.partition(":")
    entry, is_hub = extension_of(config.name), scheme == "hf" and bool(rest)
    if entry is not None or is_hub:
        loaded: Any = load_extension(entry, config) if entry is not None else load_hub(rest, config)
        tables, notes = choose_splits(_by_split(loaded), config.name, config.splits)
        return _Tables(tables, None, notes, reads_subset=is_hub)
    if holds_tables(path):
        loaded, asked, so_far = load_local_tables(path, config)
        tables, root = dict(_by_split(loaded)), folder_of_tables(path)
        if len(tables) > 1:
            chosen, notes = choose_splits(tables, config.name, asked)
            return _Tables(chosen, root, [*so_far, *notes])
        asked = config.splits if path.is_file() else asked
        return _of_paths(by_column(tables, root, asked, so_far, where=str(path)))
    lists = find_lists(path, config)
    return _of_paths(open_lists(path, lists, config)) if lists else None


def _of_paths(found: PathTables) -> _Tables:
    return _Tables(found.tables, found.root, found.notes, found.split_column)


def _by_split(loaded: Any) -> Mapping[str, Dataset]:
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _both(table: Dataset, config: DataConfig, root: Path | None, split_column: str | None) -> tuple[str, str, bool]:
    """Return the columns of A and B, and whether their names say nothing, so that they are taken in their order."""
    a, b, found = config.image_column, config.label_column, _candidates(table, root, split_column)
    for option, name in (("data.image_column", a), ("data.label_column", b)):
        if name is not None:
            feature = table.features[existing_column(name, table.features, option)]
            if not holds_images(feature) and (root is None or not is_string(feature)):
                raise UserError(f"{option} is {name!r}, which holds {feature}, and not images.", _HINT)
    if a is not None and b is not None:
        if a == b:
            raise UserError(f"data.image_column and data.label_column are both {a!r}.", "Name two columns.")
        return a, b, False
    left = [name for name in found if name not in (a, b)]
    given, wanted = (_only([name for name in left if _is(name, words)]) for words in (_GIVEN, _WANTED))
    if a is not None or b is not None:
        one = left[0] if len(left) == 1 else wanted if b is None else given
        if one is None:
            raise _unclear(table, left, "one other column of images")
        return (a, one, False) if a is not None else (one, str(b), False)
    if given is not None and wanted is not None:
        return given, wanted, False
    if len(left) != 2:
        raise _unclear(table, left, "two columns of images")
    if given is None and wanted is None:
        return left[0], left[1], True
    is_swapped = given == left[1] or wanted == left[0]
    return (left[1], left[0], False) if is_swapped else (left[0], left[1], False)


def _candidates(table: Dataset, root: Path | None, split_column: str | None) -> list[str]:
    """Return the columns that hold images, or paths of them; beside two of images paths are no more than names."""
    cells = [name for name, feature in table.features.items() if holds_images(feature)]
    if len(cells) > 1 or root is None:
        return cells
    return [
        name
        for name, feature in table.features.items()
        if name in cells or (name != split_column and is_string(feature) and are_paths(table[name][:_LOOKED_AT], root))
    ]


def _unclear(table: Dataset, found: Sequence[str], wanted: str) -> UserError:
    told = listing(found) or "none"
    return UserError(
        f"Expected {wanted}, and found {told}. The columns are {listing(table.column_names)}.",
        f"{_HINT} {_FILES}",
    )


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _is(column: str, words: Sequence[str]) -> bool:
    """Whether a column is called by one of the words: ``target``, ``target_image``, ``imageB``, ``Path B``."""
    name = re.sub(r"[-_. ]", "", column.lower())
    return re.fullmatch(f"{_BESIDE}(?:{'|'.join(words)}){_BESIDE}", name) is not None


def pairs_in(columns: Columns, *, is_swapped: bool, notes: list[str]) -> dict[str, Pairs]:
    """Return the pairs of every split; ``notes`` is told of rows without a target.

    Args:
        columns: both.
        is_swapped: whether the images B are given, and A are the targets.
        notes: added to.

    Raises:
        UserError: a row has no image, names one of an earlier row, or a file that is not there.
    """
    given, wanted = (columns.b, columns.a) if is_swapped else (columns.a, columns.b)
    found = {}
    for split, table in columns.tables.items():
        empty = _empty(table, wanted)
        if empty and split == "train":
            notes.append(f"{_some(empty, table, split)} {have(len(empty))} no {wanted}: unlabelled.")
        elif empty:
            notes.append(f"{_some(empty, table, split)} {have(len(empty))} no {wanted}: left out.")
            table = table.select([number for number in range(len(table)) if number not in empty])
            empty = set()
            if not len(table):
                continue
        labels = [UNLABELLED if number in empty else 0 for number in range(len(table))]
        targets, shown = _targets(table, wanted, columns.root, split)
        found[split] = Pairs(_images(table, given, columns.root, split), targets, labels, shown)
    if all(label == UNLABELLED for label in found["train"].labels):
        raise UserError(f"No row of the train split has an image in the column {wanted}.", _HINT)
    return found


def kinds_in(columns: Columns) -> tuple[dict[str, ImageSource], dict[str, ImageSource]]:
    """Return the images A and the images B by split, which have nothing to do with one another; empty cells are none.

    Raises:
        UserError: a column has no images, names one twice, or a file that is not there.
    """
    sides = []
    for column in (columns.a, columns.b):
        found = {}
        for split, table in columns.tables.items():
            empty = _empty(table, column)
            if len(empty) == len(table):
                raise UserError(f"The column {column} of the {split} split has no images.", _HINT)
            full = table.select([number for number in range(len(table)) if number not in empty]) if empty else table
            source = _images(full, column, columns.root, split)
            found[split] = source.take(range(len(source)), [0] * len(source))
        sides.append(found)
    return sides[0], sides[1]


def _some(empty: set[int], table: Dataset, split: str) -> str:
    return f"{counted(len(empty), 'image', of=len(table))} of the {split} split"


def _empty(table: Dataset, column: str) -> set[int]:
    """Return the rows without an image."""
    if is_string(table.features[column]):
        return {number for number, cell in enumerate(table[column][:]) if is_blank(cell)}
    sizes = TableSource(undecoded(table, column), column, [UNLABELLED] * len(table), split="").sizes()
    return {number for number, size in enumerate(sizes) if size < 0}


def _images(table: Dataset, column: str, root: Path | None, split: str) -> ImageSource:
    labels = [UNLABELLED] * len(table)
    if is_string(table.features[column]):
        assert root is not None, "columns of paths are found where there is one"
        return source_of(files_of(table, column, labels, root, split).paths, root)
    if empty := _empty(table, column):
        raise UserError(f"Row {min(empty) + 1} of the {split} split has no image in the column {column}.", _HINT)
    return TableSource(undecoded(table, column), column, labels, split=split)


def _targets(table: Dataset, column: str, root: Path | None, split: str) -> tuple[Encoded, ImageSource]:
    """Return the targets of a split, and those that there are as images."""
    if not is_string(table.features[column]):
        cells = Cells(table, column, split=split)
        return cells, cells.source
    assert root is not None, "columns of paths are found where there is one"
    paths = [None if is_blank(cell) else os.path.normpath(root / cell.strip()) for cell in table[column][:]]
    known = [path for path in paths if path is not None]
    if missing := [path for path in known if not os.path.isfile(path)]:  # noqa: PTH113 - a Path each is a waste
        raise UserError(
            f"Of {counted(len(known), 'image')} in the column {column} of the {split} split {len(missing)} can't be"
            f" found, such as {listing(missing, limit=3)}.",
            _FILES,
        )
    return Paths(paths), FileSource(known)
