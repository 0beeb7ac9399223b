"""Tables with a column of images and one of masks, depth or boxes: of the hub, parquet and arrow files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import counted, have
from kdcli.config.data import DataConfig, SplitsConfig
from kdcli.data.columns import choose_splits, existing_column, only_column, unread
from kdcli.data.images.decode import File
from kdcli.data.images.dense.boxes import parsed
from kdcli.data.images.dense.files import Found, Split
from kdcli.data.images.dense.lists import (
    CLASS_COLUMNS,
    IMAGE_COLUMNS,
    TARGET_COLUMNS,
    RawBoxes,
    class_labels,
    format_note,
    raw_boxes,
)
from kdcli.data.images.tables import TableSource, holds_images, undecoded

if TYPE_CHECKING:
    from datasets import Dataset, Features


_OPTIONS = ("splits", "image_column", "label_column")


class Cells:
    """Encoded masks or depth in a column of a table; see :class:`kdcli.data.images.dense.files.Encoded`.

    Args:
        table: of whose rows each has a cell.
        column: its name.
        split: what :meth:`describe` calls it.

    Attributes:
        source: the cells as images.
    """

    def __init__(self, table: Dataset, column: str, *, split: str) -> None:
        self.source = TableSource(undecoded(table, column), column, [UNLABELLED] * len(table), split=split)
        self._sizes = self.source.sizes()
        self._column = column

    def encoded(self, index: int) -> File | None:
        """Return the cell's bytes, or the path of its file; None of an empty one."""
        return None if self._sizes[index] < 0 else self.source.encoded(index)

    def describe(self, index: int) -> str:
        """Return ``split[index].column``."""
        return f"{self.source.describe(index)}.{self._column}"

    def bytes_of(self, index: int) -> int:
        """Return the bytes of a cell."""
        return self._sizes[index]

    def __len__(self) -> int:
        return len(self.source)


def find_in_tables(
    loaded: Any, asked: SplitsConfig | None, so_far: Sequence[str], target: str, config: DataConfig
) -> Found:
    """Return images and targets out of tables.

    Args:
        loaded: a table, or one a split.
        asked: ``data.splits``.
        so_far: notes.
        target: what is looked for.
        config: ``data.image_column`` and ``data.label_column`` name the columns.

    Raises:
        UserError: the splits or the columns don't fit.
    """
    tables: Mapping[str, Dataset] = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    chosen, notes = choose_splits(tables, config.name, asked)
    features = chosen["train"].features
    column = _target_column(features, target, config)
    image = _image_column(features, column, config)
    notes = [*so_far, *notes, f"Columns: images from {image}, {target} from {column}.{unread(features, image, column)}"]
    for split, table in chosen.items():
        if image not in table.features or column not in table.features:
            raise UserError(f"The {split} split has no {image} or no {column}.", "Every split has the same columns.")
    images = {
        split: TableSource(undecoded(table, image), image, [UNLABELLED] * len(table), split=split)
        for split, table in chosen.items()
    }
    if target == "boxes":
        return _boxed(chosen, images, column, notes, config)
    splits = {}
    for split, table in chosen.items():
        cells = Cells(table, column, split=split)
        empty = [index for index in range(len(cells)) if cells.bytes_of(index) < 0]
        if empty and split == "train":
            some = counted(len(empty), "image", of=len(cells))
            notes.append(f"{some} of the train split {have(len(empty))} no {column}: unlabelled.")
        elif empty:
            full = [index for index in range(len(cells)) if cells.bytes_of(index) >= 0]
            some = counted(len(empty), "image", of=len(cells))
            notes.append(f"{some} of the {split} split {have(len(empty))} no {column}: left out.")
            if not full:
                continue
            table = table.select(full)
            cells = Cells(table, column, split=split)
            images[split] = TableSource(undecoded(table, image), image, [UNLABELLED] * len(table), split=split)
        splits[split] = Split(images[split], cells)
    return Found("table", splits, notes, options=_OPTIONS)


def _target_column(features: Features, target: str, config: DataConfig) -> str:
    if config.label_column is not None:
        return existing_column(config.label_column, features, "data.label_column")
    candidates = [name for name in TARGET_COLUMNS[target] if name in features]
    if target != "boxes":
        candidates = [name for name in candidates if holds_images(features[name])]
    return only_column(candidates, TARGET_COLUMNS[target], features, kind="label")


def _image_column(features: Features, column: str, config: DataConfig) -> str:
    if config.image_column is not None:
        return existing_column(config.image_column, features, "data.image_column")
    candidates = [name for name, feature in features.items() if name != column and holds_images(feature)]
    return only_column(candidates, IMAGE_COLUMNS, features, kind="image")


def _boxed(
    chosen: Mapping[str, Dataset],
    images: Mapping[str, TableSource],
    column: str,
    notes: list[str],
    config: DataConfig,
) -> Found:
    read: dict[str, list[RawBoxes]] = {}
    beside = (*CLASS_COLUMNS, "width", "height")
    for split, table in chosen.items():
        wanted = [column, *(name for name in beside if name in table.features and name != column)]
        read[split] = []
        for number, row in enumerate(table.select_columns(wanted)):
            read[split].append(raw_boxes(row[column], row, column, f"{split}[{number}]"))
    every = [raw for of in read.values() for raw in of]
    own = _class_names(chosen["train"].features, column)
    names, label_of, more = class_labels(every, own, config)
    splits = {
        split: Split(
            images[split],
            [parsed(f"{split}[{n}]", partial(raw.boxes, label_of, config.box_format)) for n, raw in enumerate(of)],
        )
        for split, of in read.items()
    }
    return Found("table", splits, [*notes, *more, format_note(every, config)], names, options=(*_OPTIONS, "box_format"))


def _class_names(features: Any, column: str) -> tuple[str, ...] | None:
    """Return the names of the only ``ClassLabel`` in a column or beside it, however deep."""
    from datasets import ClassLabel

    def walk(feature: Any) -> list[tuple[str, ...]]:
        if isinstance(feature, ClassLabel):
            return [tuple(feature.names)]
        inner = getattr(feature, "feature", None)
        if inner is not None:
            return walk(inner)
        if isinstance(feature, Mapping):
            return [names for part in feature.values() for names in walk(part)]
        return [names for part in feature for names in walk(part)] if isinstance(feature, list) else []

    found = walk(features[column]) or walk(dict(features))
    return found[0] if len(found) == 1 else None
