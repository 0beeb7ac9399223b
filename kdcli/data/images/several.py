"""Images with any number of labels each: lists of them, strings with marks between, or a column of 0 and 1 for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import counted, have
from kdcli.config.data import DataConfig
from kdcli.data.classes import listing
from kdcli.data.columns import unread
from kdcli.data.images.path_tables import LABEL_COLUMNS, is_string, label_column
from kdcli.data.images.sources import DenseSource, ImageSource, OfficialSplits
from kdcli.data.labels import is_blank, is_discrete, label_sets, values_of_sets

if TYPE_CHECKING:
    from datasets import Dataset, Features

_MARKS = ("|", ";", ",")
_BITS = {0: 0.0, 1: 1.0, "0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


class LabelSets:
    """Who has which label; see :class:`~kdcli.data.images.sources.Targets`.

    Args:
        values: float32 (N, C), 1 for a label that an image has, else 0; a row of NaN for an image without any known.
    """

    fill: float = UNLABELLED
    in_memory = True

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values
        self.labels: Sequence[int] = [UNLABELLED if np.isnan(row).any() else 0 for row in values]

    def load(self, index: int, size: tuple[int, int], name: str) -> Tensor:
        """Return an image's row, float32 (C,)."""
        return torch.from_numpy(self.values[index])

    def content(self, index: int) -> bytes | None:
        """Return the row's bytes; None of one without labels."""
        return None if self.labels[index] == UNLABELLED else self.values[index].tobytes()

    def size(self, index: int) -> int:
        """Return the bytes of a row."""
        return self.values[index].nbytes


def without_labels(images: ImageSource, num_labels: int) -> ImageSource:
    """Return images of which no label is known."""
    return DenseSource(images, LabelSets(np.full((len(images), num_labels), np.nan, dtype=np.float32)))


def has_several(features: Features, config: DataConfig, others: Sequence[str | None]) -> bool:
    """Whether the labels in a table are several an image: where it is asked for, or where their column has lists."""
    from datasets import LargeList, List

    if config.label_kind is not None:
        return config.label_kind == "classes"
    names = [config.label_column] if config.label_column is not None else [*LABEL_COLUMNS]
    found = [name for name in names if name in features and name not in others]
    return bool(found) and isinstance(features[found[0]], (List, LargeList))


def read_several(
    tables: Mapping[str, Dataset],
    image_column: str,
    config: DataConfig,
    notes: list[str],
    make: Callable[..., ImageSource],
    split_column: str | None,
) -> OfficialSplits:
    """Return images with their labels, of which validation and test have those alone that have any known.

    Args:
        tables: by split.
        image_column: that is read by ``make``.
        config: of the data.
        notes: what there is to say is added.
        make: of a table, its labels and ``split`` to its images.
        split_column: that rows were taken apart by.

    Raises:
        UserError: there are no such labels, or a split has others than the training split.
    """
    train, others = tables["train"], (image_column, split_column)
    columns = _columns(train, config, others)
    read = [name for name in (*others, *columns) if name is not None]
    told = f"{len(columns)} columns of 0 and 1 ({listing(columns)})" if len(columns) > 1 else columns[0]
    notes.append(f"Columns: images from {image_column}, labels from {told}.{unread(train.features, *read)}")
    if len(columns) > 1:
        names, values = tuple(columns), {split: _of_bits(table, columns, split) for split, table in tables.items()}
    else:
        mark = _mark(train, columns[0])
        sets = {split: label_sets(table, columns[0], split, mark=mark) for split, table in tables.items()}
        names, values = values_of_sets(sets, notes, noun="image")
        if is_string(train.features[columns[0]]):
            notes.append(f"Labels are the parts of a cell between {mark!r}.")
    sources: dict[str, ImageSource] = {}
    for split, table in tables.items():
        targets = LabelSets(values[split])
        source: ImageSource = DenseSource(make(table, [0] * len(table), split=split), targets)
        labelled = [index for index, label in enumerate(targets.labels) if label != UNLABELLED]
        if lacking := len(source) - len(labelled):
            fate = "unlabelled" if split == "train" else "left out"
            some = counted(lacking, "image", of=len(source))
            notes.append(f"{some} of the {split} split {have(lacking)} no known labels: {fate}.")
            if split != "train":
                source = source.take(labelled)
        if len(source):
            sources[split] = source
    return OfficialSplits(
        names,
        sources["train"],
        sources.get("validation"),
        sources.get("test"),
        notes=tuple(notes),
        label_kind="classes",
    )


def _columns(train: Dataset, config: DataConfig, others: Sequence[str | None]) -> list[str]:
    """Return the column of labels, or those of 0 and 1 where none has a usual name."""
    from datasets import LargeList, List

    left = {name: feature for name, feature in train.features.items() if name not in others}
    if config.label_column is None and not any(name in left for name in LABEL_COLUMNS):
        bits = [name for name, feature in left.items() if is_discrete(feature) and _are_bits(train[name][:])]
        if len(bits) > 1:
            return bits
    if config.label_column is None:
        lists = [name for name in LABEL_COLUMNS if isinstance(left.get(name), (List, LargeList))]
        if lists:
            return lists[:1]
    return [label_column(train.features, config.label_column, others)]


def _mark(train: Dataset, column: str) -> str:
    """Return the first of the marks that any cell of strings has; a comma where none has one."""
    if not is_string(train.features[column]):
        return ","
    cells = [cell for cell in train[column][:] if not is_blank(cell)]
    return next((mark for mark in _MARKS if any(mark in cell for cell in cells)), ",")


def _bit(cell: Any) -> float | None:
    return _BITS.get(cell.strip().lower() if isinstance(cell, str) else cell)


def _are_bits(cells: Sequence[Any]) -> bool:
    known = [_bit(cell) for cell in cells if not is_blank(cell)]
    return bool(known) and None not in known


def _of_bits(table: Dataset, columns: Sequence[str], split: str) -> NDArray[np.float32]:
    values = np.full((len(table), len(columns)), np.nan, dtype=np.float32)
    for place, column in enumerate(columns):
        if column not in table.column_names:
            raise UserError(f"The {split} split has no column {column}.", "Every split needs the same columns.")
        for row, cell in enumerate(table[column][:]):
            if is_blank(cell):
                continue
            if (bit := _bit(cell)) is None:
                raise UserError(f"{split}[{row}] has {cell!r} in the column {column}, which is neither 0 nor 1.", "")
            values[row, place] = bit
    some = np.isnan(values).any(axis=1) & ~np.isnan(values).all(axis=1)
    if some.any():
        row = int(np.flatnonzero(some)[0])
        raise UserError(
            f"{split}[{row}] has a label in some of the columns {listing(columns)}, and blanks in others.",
            "A row has 0 or 1 in all of them, or blanks where nothing is known.",
        )
    return values
