"""What the cells of a label column say: a class as it is written, a number, or nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import UNLABELLED, LabelKind
from kdcli.base.text import short_repr

if TYPE_CHECKING:
    from datasets import Dataset

_WHOLE = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
"""No leading zeros: 01 is a code."""
_FEW = 20
"""Numbers with fractions that are no more than so many, each twice on average, may be classes as well."""
_LIKE_MISSING = {"-1", "na", "n/a", "nan", "none", "null", "nil", "?", "-", "--"}
_ASK = "Set data.label_kind=class to take each value as a class, or data.label_kind=number for numbers."


class UnclearLabels(UserError):
    """Labels that could be classes as well as numbers."""


def is_discrete(feature: Any) -> bool:
    """Whether a column holds whole numbers, truth values or strings, class labels among them."""
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "bool", "string", "large_string"))


def label_cells(table: Dataset, column: str) -> list[Any]:
    """Return each row's label as it is written, None where there is none.

    There is none in a cell that is null, not a number, or a blank string, nor in any row of a table without the column.
    -1 is none where the hub has it so: in a column of class labels with names, and where every row has it.

    Raises:
        UserError: the column holds lists or dictionaries.
    """
    from datasets import ClassLabel

    if column not in table.column_names:
        return [None] * len(table)
    if not hasattr(table.features[column], "dtype"):
        raise UserError(
            f"The label column {column} holds {table.features[column]}: lists or dictionaries, no single labels.",
            "data.label_kind=classes reads lists as several labels; data.label_column names another column.",
        )
    cells = [None if is_blank(cell) else cell for cell in table[column][:]]
    if isinstance(table.features[column], ClassLabel):
        return [None if cell == UNLABELLED else cell for cell in cells]
    return [None] * len(cells) if are_all_unlabelled(cells) else cells


def is_blank(cell: Any) -> bool:
    """Whether a cell is null, not a number, or a string of nothing but blanks."""
    return (
        cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip())
    )


def are_all_unlabelled(cells: Sequence[Any]) -> bool:
    """Whether all ``cells`` that say anything say -1, as the hub's test splits do."""
    return {cell for cell in cells if cell is not None} in ({UNLABELLED}, {str(UNLABELLED)})


def classes_of(train: Dataset, column: str) -> tuple[tuple[str, ...], list[Any]]:
    """Return class names in label order, and the value that stands for each of them in the column.

    Numbers, also as strings, go by their value, other strings by their characters.

    Raises:
        UserError: the column holds lists, dates or values of several types.
    """
    from datasets import ClassLabel

    feature = train.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names), list(range(feature.num_classes))
    if not is_discrete(feature) and "float" not in str(getattr(feature, "dtype", "")):
        raise UserError(
            f"The label column {column} holds {getattr(feature, 'dtype', 'nested values')}, not classes.",
            "Labels are class labels, integers or strings, of one type in all rows; data.label_column names another "
            "column.",
        )
    values = in_order({cell for cell in label_cells(train, column) if cell is not None})
    if all(isinstance(value, float) and value.is_integer() for value in values):  # pandas' whole numbers with gaps
        return tuple(str(int(value)) for value in values), values
    return tuple(str(value) for value in values), values


def in_order(values: set[Any]) -> list[Any]:
    """Return ``values`` sorted: strings that are all whole numbers by their value, other strings by characters."""
    is_whole = all(isinstance(value, str) and _WHOLE.fullmatch(value) for value in values)
    return sorted(values, key=int) if is_whole else sorted(values)


def label_indices(
    table: Dataset, column: str, class_names: Sequence[str], values: Sequence[Any], *, split: str
) -> list[int]:
    """Return the class index of every row, ``UNLABELLED`` where there is none.

    Raises:
        UserError: a row has a label that is not among ``values``.
    """
    index_of: dict[Any, int] = {value: index for index, value in enumerate(values)}
    labels = []
    for row, cell in enumerate(label_cells(table, column)):
        if cell is not None and cell not in index_of:
            hint = "Every split needs the same classes."
            if str(cell) == str(UNLABELLED):
                hint += (
                    " Rows without a label have null or an empty cell; -1 is none where all rows of a split have it."
                )
            raise UserError(
                f"{split}[{row}] has the label {cell!r}, which is not among those of the training split: "
                f"{', '.join(class_names)}. {did_you_mean(str(cell), class_names)}".rstrip(),
                hint,
            )
        labels.append(UNLABELLED if cell is None else index_of[cell])
    return labels


def note_on_missing(class_names: Sequence[str], notes: list[str]) -> None:
    """Add a note where the name of a class is what others write for no label."""
    if found := [name for name in class_names if name.strip().lower() in _LIKE_MISSING]:
        listed = ", ".join(map(repr, found))
        notes.append(
            f"{listed} {'is a class' if len(found) == 1 else 'are classes'}, as written: no label is an empty cell."
        )


def label_sets(table: Dataset, column: str, split: str, *, mark: str = ",") -> list[set[str] | None]:
    """Return each row's labels by name; of a column of strings, those between ``mark``. None for no value.

    Raises:
        UserError: a cell is no list of labels.
    """
    if column not in table.column_names:
        return [None] * len(table)
    from datasets import ClassLabel

    feature = table.features[column]
    inner = getattr(feature, "feature", feature)
    if not is_discrete(inner):
        raise UserError(
            f"The label column {column} holds {feature}, not lists of labels.",
            f"Labels are lists of class labels, integers or strings, or strings with {mark!r} between labels.",
        )
    to_name: Callable[[Any], str] = inner.int2str if isinstance(inner, ClassLabel) else str
    sets: list[set[str] | None] = []
    for row, cell in enumerate(table[column][:]):
        if cell is None:
            sets.append(None)
            continue
        if isinstance(cell, str) and cell.strip().startswith("[") and cell.strip().endswith("]"):
            raise UserError(
                f"{split}[{row}] has a list that is written as a string: {short_repr(cell)}.",
                f"Write 'a{mark}b' for two labels, or lists in a jsonl or parquet file.",
            )
        labels = [part.strip() for part in cell.split(mark) if part.strip()] if isinstance(cell, str) else cell
        labels = labels if isinstance(labels, list) else [labels]
        if any(is_blank(label) for label in labels):
            raise UserError(f"{split}[{row}] has a blank among its labels: {short_repr(cell)}.", "Remove it.")
        if isinstance(inner, ClassLabel) and UNLABELLED in labels:
            sets.append(None)
            continue
        if len(set(labels)) < len(labels):
            raise UserError(
                f"{split}[{row}] has a label twice: {short_repr(cell)}.",
                "A list holds the labels that the sample has, not a zero or a one for every label.",
            )
        sets.append({to_name(label) for label in labels})
    return sets


def values_of_sets(
    rows: Mapping[str, Sequence[set[str] | None]], notes: list[str], *, noun: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.float32]]]:
    """Return the names of the labels that the training split has, and who has which: float32 (N, C) of each split.

    Args:
        rows: the labels of each sample by split; None for none known, which makes a row of NaN.
        notes: what there is to say is added.
        noun: what a sample is.

    Raises:
        UserError: another split has others.
    """
    names = tuple(in_order({name for row in rows["train"] if row is not None for name in row}))
    note_on_missing(names, notes)
    found = {}
    for split, sets in rows.items():
        values = found[split] = np.full((len(sets), len(names)), np.nan, dtype=np.float32)
        for index, row in enumerate(sets):
            if row is None:
                continue
            if unknown := row - set(names):
                raise UserError(
                    f"{split}[{index}] has the label {min(unknown)!r}, which no {noun} of the training split has. "
                    f"{did_you_mean(min(unknown), names)}".rstrip(),
                    "Every split needs the same classes.",
                )
            values[index] = [name in row for name in names]
    return names, found


def kind_of(train: Dataset, column: str, notes: list[str]) -> LabelKind:
    """Return what the labels are: lists are several, whole numbers in a row classes, numbers with fractions numbers.

    Raises:
        UnclearLabels: they could be classes as well as numbers.
    """
    from datasets import ClassLabel, LargeList, List

    feature = train.features[column]
    if isinstance(feature, (List, LargeList)):
        return "classes"
    dtype = str(getattr(feature, "dtype", ""))
    if isinstance(feature, ClassLabel) or dtype == "bool" or not (is_discrete(feature) or "float" in dtype):
        return "class"
    cells = [cell for cell in label_cells(train, column) if cell is not None]
    numbers = {cell: as_number(cell) for cell in set(cells)}
    values = sorted({number for number in numbers.values() if number is not None})
    has_fractions = any(not _is_whole(cell) for cell, number in numbers.items() if number is not None)
    if others := sorted(str(cell) for cell, number in numbers.items() if number is None):
        number_of_rows = sum(numbers[cell] is not None for cell in cells)
        if has_fractions and 2 * number_of_rows >= len(cells):
            raise UnclearLabels(
                f"The label column {column} holds numbers such as {values[0]:g} and, in {len(cells) - number_of_rows} "
                f"rows, something else such as {short_repr(others[0])}.",
                "Empty these cells for no label, or set data.label_kind=class to take each value as a class.",
            )
        return "class"
    if not values:
        return "class"
    shown = ", ".join(f"{value:g}" for value in values[:4]) + (" and so on" if len(values) > 4 else "")
    if has_fractions:
        if len(values) <= _FEW and len(cells) >= 2 * len(values):
            raise UnclearLabels(
                f"The label column {column} holds {len(values)} different numbers in {len(cells)} rows ({shown}): they "
                "could be classes or numbers.",
                _ASK,
            )
        return "number"
    in_a_row = values[-1] - values[0] == len(values) - 1
    if len(values) > 2 and not (in_a_row and (values[0] == 0 or len(values) <= _FEW)):
        raise UnclearLabels(
            f"The label column {column} holds {len(values)} different whole numbers from {values[0]:g} to "
            f"{values[-1]:g} ({shown}): they could be classes or numbers.",
            _ASK,
        )
    notes.append(
        f"Labels: the whole numbers {shown if len(values) <= 2 else f'{values[0]:g} to {values[-1]:g}'} are taken as "
        f"{len(values)} class{'' if len(values) == 1 else 'es'}; data.label_kind=number takes them as numbers."
    )
    return "class"


def as_number(cell: Any) -> float | None:
    """Return the number that a cell holds or writes; None for anything else, infinity among it."""
    if isinstance(cell, str):
        cell = float(cell) if _NUMBER.fullmatch(cell.strip()) else None
    if cell is None or isinstance(cell, (bool, list, dict)):
        return None
    return float(cell) if isinstance(cell, (int, float)) and math.isfinite(cell) else None


def _is_whole(cell: Any) -> bool:
    return bool(_WHOLE.fullmatch(cell)) if isinstance(cell, str) else isinstance(cell, int)
