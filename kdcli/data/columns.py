"""Tables: which file is which split, and which column holds what."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.extensions import Extension, find
from kdcli.config.data import DataConfig, SplitsConfig
from kdcli.data.labels import is_discrete
from kdcli.data.split_names import check_understood, match_splits

if TYPE_CHECKING:
    from datasets import Dataset, Features

Table = TypeVar("Table")

LABEL_NAMES = ("label", "labels", "target", "class", "fine_label")


_PREFIXES = ("demo", "torchvision", "hf")
"""Of kdcli's own names of data."""


_SHOWN = 8
"""Columns that are listed."""


def extension_of(name: str) -> Extension | None:
    """Return the extension that opens ``NAME:REST``; None where no installed package has that name."""
    prefix, colon, _ = name.partition(":")
    return find("data", prefix, own=_PREFIXES) if colon else None


def load_extension(entry: Extension, config: DataConfig) -> Mapping[str, Dataset]:
    """Return the tables of ``NAME:REST`` by split, from a function of another package that gets ``REST``.

    Raises:
        UserError: the package can't be imported, or returns something else; also what the function itself raises.
    """
    from datasets import Dataset

    if config.subset is not None:
        raise UserError(f"data.subset is set, but {config.name} is not a data set of the hub.", "Leave it out.")

    silence_datasets()
    read = entry.load()
    if not callable(read):
        raise entry.unfit("a function")
    tables = read(config.name.partition(":")[2])
    if not (isinstance(tables, Mapping) and tables and all(isinstance(table, Dataset) for table in tables.values())):
        raise entry.unfit("a function that returns a datasets.DatasetDict")
    return tables


def silence_datasets() -> None:
    """Keep off the terminal what datasets would write there beside the errors that it raises."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()


def choose_splits(
    tables: Mapping[str, Table], name: str, asked: SplitsConfig | None
) -> tuple[dict[str, Table], list[str]]:
    """Return our split -> table, and notes. A single split, whatever its name, is the whole.

    Args:
        tables: by the data's own names of splits; or whatever stands for each.
        name: of the data, for messages.
        asked: ``data.splits``.

    Raises:
        UserError: as :func:`match_splits` and :func:`check_understood`.
    """
    found = match_splits(tables, asked, where=name, kind="split")
    if len(tables) == 1:
        return {"train": next(iter(tables.values()))}, []
    note = check_understood(
        found, [split for split in tables if split not in found.values()], asked, where=name, kind="split"
    )
    return {split: tables[match] for split, match in found.items()}, [note] if note else []


def label_column(features: Features, asked: str | None, sample_column: str) -> str:
    """Return the column of labels: ``asked``, or the one of classes, or one with a usual name beside ``sample_column``.

    Raises:
        UserError: there is none, or more than one.
    """
    from datasets import ClassLabel

    if asked is not None:
        return existing_column(asked, features, "data.label_column")
    candidates = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not candidates:
        candidates = [
            name
            for name, feature in features.items()
            if name in LABEL_NAMES and name != sample_column and is_discrete(feature)
        ]
    return only_column(candidates, LABEL_NAMES, features, kind="label")


def unread(features: Iterable[str], *read: str) -> str:
    """Return the sentence that names the columns besides those that are ``read``; nothing where there are none."""
    others = [name for name in features if name not in read]
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f" Not read: {', '.join(others[:_SHOWN])}{more}." if others else ""


def existing_column(column: str, features: Features, option: str) -> str:
    """Return ``column``, the value of ``option``, if there is such a column; UserError if not."""
    if column not in features:
        raise UserError(
            f"{option} is {column!r}, but the columns are {', '.join(features)}.",
            did_you_mean(column, features) or "Choose one of these.",
        )
    return column


def only_column(candidates: list[str], preferred: Sequence[str], features: Features, *, kind: str) -> str:
    """Return the only candidate, or of several the one with the most usual name."""
    if len(candidates) == 1:
        return candidates[0]
    if named := [name for name in preferred if name in candidates]:
        return named[0]
    columns = ", ".join(f"{name} ({getattr(feature, 'dtype', 'struct')})" for name, feature in features.items())
    found = f"more than one {kind} column: {', '.join(candidates)}" if candidates else f"no {kind} column"
    raise UserError(f"Found {found}. The columns are {columns}.", f"Name it by data.{kind}_column.")
