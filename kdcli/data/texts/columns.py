"""Which columns of a table hold the texts, and which one the labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data.columns import LABEL_NAMES, existing_column, only_column
from kdcli.data.labels import as_number, is_blank
from kdcli.data.texts.batch import TextPair

if TYPE_CHECKING:
    from datasets import Dataset

_TEXT_NAMES = ("text", "sentence", "content", "review", "document", "body", "comment", "question")
_LABEL_NAMES = (*LABEL_NAMES, "sentiment", "category", "score", "rating", "stars")
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_A", "sentence_B"),
    ("sentence_a", "sentence_b"),
)
"""Names of two columns that are one sample, in the order in which models read them."""


def text_columns(train: Dataset, config: DataConfig, *, takes_pairs: bool) -> tuple[str, ...]:
    """Return the column of the texts, or those of both texts of a pair.

    Args:
        train: the training split.
        config: may name the columns.
        takes_pairs: whether columns with the names of a pair are read as one.

    Raises:
        UserError: there is no such column, it holds no texts, or more than one could be meant.
    """
    features = train.features
    strings = [name for name, feature in features.items() if _is_string(feature)]
    first, second = config.text_column, config.text_pair_column
    for option, name in (("data.text_column", first), ("data.text_pair_column", second)):
        if name is not None and existing_column(name, features, option) not in strings:
            raise UserError(f"The column {name} holds {features[name]}, not texts.", f"Name another one by {option}.")
    if first is not None and first == second:
        raise UserError(f"data.text_column and data.text_pair_column are both {first}.", "Name two columns.")
    candidates = [name for name in strings if name != config.label_column and name not in (*_LABEL_NAMES, second)]
    usual = {*_TEXT_NAMES, *(name for pair in PAIRS for name in pair)}
    candidates = [name for name in candidates if name in usual or not _has_numbers(train, name)] or candidates
    if first is None and second is not None:
        partners = [pair[0] for pair in PAIRS if pair[1] == second and pair[0] in candidates]
        first = partners[0] if len(partners) == 1 else only_column(candidates, _TEXT_NAMES, features, kind="text")
    if first is not None:
        return (first,) if second is None else (first, second)
    pairs = [pair for pair in PAIRS if set(pair) <= set(candidates)] if takes_pairs else []
    if not pairs:
        return (only_column(candidates, _TEXT_NAMES, features, kind="text"),)
    if others := [name for name in candidates if name in usual and name not in pairs[0]]:
        raise UserError(
            f"The columns {pairs[0][0]} and {pairs[0][1]} look like a pair of texts, but there is {', '.join(others)}"
            " too.",
            "Name the column of the texts by data.text_column, and that of the second ones by data.text_pair_column.",
        )
    return pairs[0]


def label_column(train: Dataset, config: DataConfig, texts_from: Collection[str]) -> str:
    """Return the column of the labels: with a usual name, or the only one beside the texts.

    Raises:
        UserError: there is none, or more than one.
    """
    if config.label_column is not None:
        return existing_column(config.label_column, train.features, "data.label_column")
    others = [name for name in train.features if name not in texts_from]
    named = [name for name in others if name in _LABEL_NAMES]
    return only_column(named or others, _LABEL_NAMES, train.features, kind="label")


def read_texts(tables: Mapping[str, Dataset], columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return each row's text or pair of texts by split; None where a cell of it is null.

    Raises:
        UserError: a split lacks a column.
    """
    texts: dict[str, list[Any]] = {}
    for split, table in tables.items():
        if lacking := [name for name in columns if name not in table.column_names]:
            raise UserError(
                f"The split {split} has no column {lacking[0]}; its columns are {', '.join(table.column_names)}.",
                "Every split needs the same columns.",
            )
        cells = [table[name][:] for name in columns]
        texts[split] = (
            cells[0]
            if len(columns) == 1
            else [None if None in pair else TextPair(*pair) for pair in zip(*cells, strict=True)]
        )
    return texts


def _is_string(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")) in ("string", "large_string", "string_view")


def _has_numbers(train: Dataset, column: str) -> bool:
    """Whether all cells that say anything are numbers, as those of a csv file's ids are."""
    cells = [cell for cell in train[column][:] if not is_blank(cell)]
    return bool(cells) and all(as_number(cell) is not None for cell in cells)
