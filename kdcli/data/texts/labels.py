"""The labels of texts in tables: one class, several, or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import short_repr
from kdcli.data.labels import (
    as_number,
    classes_of,
    label_cells,
    label_indices,
    label_sets,
    note_on_missing,
    values_of_sets,
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
    rows = {split: label_sets(table, labels_from, split) for split, table in tables.items()}
    names, values = values_of_sets(rows, notes, noun="text")
    sources = {}
    for split in tables:
        labels = [UNLABELLED if row is None else 0 for row in rows[split]]
        sources[split] = text_source(texts[split], labels, values[split], split, notes)
    return names, sources


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
