"""The labels of texts in tables: one class, several, or a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import short_repr
from kdcli.data.labels import (
    as_number,
    classes_of,
    in_order,
    is_blank,
    is_discrete,
    label_cells,
    label_indices,
    note_on_missing,
)
from kdcli.data.texts.batch import Text, TextPair
from kdcli.data.texts.sources import TextSource

if TYPE_CHECKING:
    from datasets import Dataset

Texts = Mapping[str, Sequence[Any]]
"""The rows' texts or pairs of texts by split; whatever else is no text."""
Labelled = tuple[tuple[str, ...], dict[str, TextSource]]


def text_source(
    texts: Sequence[Any], labels: Sequence[int], values: np.ndarray | None, split: str, notes: list[str]
) -> TextSource:
    """Return the rows that have a text, or both texts of a pair; a note says how many have none."""
    kept = [index for index, text in enumerate(texts) if _is_text(text)]
    if len(kept) < len(texts):
        notes.append(f"{len(texts) - len(kept)} rows of {split} have no text and are left out.")
    return TextSource(
        (texts[index] for index in kept),
        (labels[index] for index in kept),
        values=None if values is None else values[kept],
        split=split,
    )


def _is_text(text: Text | Any) -> bool:
    if isinstance(text, TextPair):
        return _is_text(text.first) and _is_text(text.second)
    return isinstance(text, str) and bool(text.strip())


def read_class(tables: Mapping[str, Dataset], texts: Texts, labels_from: str, notes: list[str]) -> Labelled:
    """Return the names of the classes and the splits; every text has one class or none.

    Raises:
        UserError: the column holds no classes, or a split has others than the training split.
    """
    names, values = classes_of(tables["train"], labels_from)
    note_on_missing(names, notes)
    return names, {
        split: text_source(
            texts[split], label_indices(table, labels_from, names, values, split=split), None, split, notes
        )
        for split, table in tables.items()
    }


def read_classes(tables: Mapping[str, Dataset], texts: Texts, labels_from: str, notes: list[str]) -> Labelled:
    """Return the names of the labels and the splits; every text has any number of them, or none known.

    Raises:
        UserError: a cell is no list of labels, or a split has others than the training split.
    """
    rows = {split: _label_sets(table, labels_from, split) for split, table in tables.items()}
    names = tuple(in_order({name for row in rows["train"] if row is not None for name in row}))
    note_on_missing(names, notes)
    sources = {}
    for split, table in tables.items():
        values = np.full((len(table), len(names)), np.nan, dtype=np.float32)
        for index, row in enumerate(rows[split]):
            if row is not None:
                if unknown := row - set(names):
                    raise UserError(
                        f"{split}[{index}] has the label {min(unknown)!r}, which no text of the training split has. "
                        f"{did_you_mean(min(unknown), names)}".rstrip(),
                        "Every split needs the same classes.",
                    )
                values[index] = [name in row for name in names]
        labels = [UNLABELLED if row is None else 0 for row in rows[split]]
        sources[split] = text_source(texts[split], labels, values, split, notes)
    return names, sources


def _label_sets(table: Dataset, column: str, split: str) -> list[set[str] | None]:
    """Return each row's labels by name; of a column of strings, those between commas. None for no value."""
    if column not in table.column_names:
        return [None] * len(table)
    from datasets import ClassLabel

    feature = table.features[column]
    inner = getattr(feature, "feature", feature)
    if not is_discrete(inner):
        raise UserError(
            f"The label column {column} holds {feature}, not lists of labels.",
            "Labels are lists of class labels, integers or strings, or strings with commas.",
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
                "Write 'a,b' for two labels, or lists in a jsonl or parquet file.",
            )
        labels = [part.strip() for part in cell.split(",") if part.strip()] if isinstance(cell, str) else cell
        labels = labels if isinstance(labels, list) else [labels]
        if any(is_blank(label) for label in labels):
            raise UserError(f"{split}[{row}] has a blank among its labels: {short_repr(cell)}.", "Remove it.")
        if isinstance(inner, ClassLabel) and UNLABELLED in labels:
            sets.append(None)
            continue
        if len(set(labels)) < len(labels):
            raise UserError(
                f"{split}[{row}] has a label twice: {short_repr(cell)}.",
                "A list holds the labels that the text has, not a zero or a one for every label.",
            )
        sets.append({to_name(label) for label in labels})
    return sets


def read_number(tables: Mapping[str, Dataset], texts: Texts, labels_from: str, notes: list[str]) -> Labelled:
    """Return the column's name and the splits; every text has a number or none.

    Raises:
        UserError: a cell holds something else.
    """
    sources = {}
    for split, table in tables.items():
        numbers = np.full((len(table), 1), np.nan, dtype=np.float32)
        for row, cell in enumerate(label_cells(table, labels_from)):
            if cell is None:
                continue
            if (number := as_number(cell)) is None:
                raise UserError(
                    f"{split}[{row}] has {short_repr(cell)} in the label column {labels_from}, which is no number.",
                    "data.label_kind=class takes its values as classes; an empty cell is no label.",
                )
            numbers[row] = number
        labels = [UNLABELLED if is_none else 0 for is_none in np.isnan(numbers[:, 0])]
        sources[split] = text_source(texts[split], labels, numbers, split, notes)
    return (labels_from,), sources
