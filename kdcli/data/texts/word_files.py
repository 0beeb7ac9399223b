"""Words with a label each, from tables with lists in their columns or files with a word a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.data.columns import existing_column, only_column, unread
from kdcli.data.labels import are_all_unlabelled, in_order, is_blank, note_on_missing
from kdcli.data.texts.words import WordSource

if TYPE_CHECKING:
    from datasets import Dataset, Features

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    **dict.fromkeys((".conll", ".iob", ".bio", ".tsv", ".txt"), "text"),
}
"""A file's extension -> the loader of ``datasets``; what it reads as plain text has a word a line."""
FORMS = (
    "Labelled words are a jsonl or parquet file with a list of words and one of labels in each row; a conll, iob, bio,"
    " tsv or txt file with a word and its label a line and a blank line between texts; a folder of such files (train,"
    " validation and test by their names); or hf:org/name."
)
_WORD_NAMES = ("tokens", "words", "token", "word", "text", "sentence")
_TAG_NAMES = ("ner_tags", "ner", "tags", "labels", "label", "pos_tags", "upos", "pos", "chunk_tags", "xpos", "tag")
_DOCUMENT = "-DOCSTART-"
_LEFT_OUT = -100
"""The label that transformers' losses leave out."""


def table_of_lines(documents: Dataset, split: str) -> Dataset:
    """Return the texts of files with a word a line, the first column as ``word``, the last as ``tag``.

    Columns between them are ``column2`` and so on. They are apart by tabs, or by white space where a
    line has none. A blank line ends a text; so does a line ``-DOCSTART-``, which is no word. Nor is a first line that
    names the columns, such as ``word`` and ``tag``.

    Args:
        documents: the text of a file in each row.
        split: for messages.

    Raises:
        UserError: a line has no label or another number of columns than the first, or there are no words.
    """
    from datasets import Dataset

    texts: list[list[list[str]]] = [[]]
    width = 0
    for document in documents["text"][:]:
        for number, line in enumerate([*document.lstrip("\ufeff").split("\n"), ""], 1):
            cells = [cell for cell in map(str.strip, line.split("\t" if "\t" in line else None)) if cell]
            is_header = number == 1 and len(cells) > 1 and _names_columns(cells[0], cells[-1])
            if not cells or cells[0] == _DOCUMENT or is_header:
                texts.append([])
                continue
            width = width or len(cells)
            if len(cells) != width or width == 1:
                found = "has no label" if len(cells) == 1 else f"has {len(cells)} columns, and the first has {width}"
                raise UserError(
                    f"Line {number} of a file of the split {split} {found}: {line.strip()!r}.",
                    "Each line is a word, perhaps more columns, and the word's label; texts are apart by blank lines.",
                )
            texts[-1].append(cells)
    texts = [text for text in texts if text]
    if not texts:
        raise UserError(f"The files of the split {split} have no words.", FORMS)
    names = ["word", *(f"column{number}" for number in range(2, width)), "tag"]
    return Dataset.from_dict(
        {name: [[cells[number] for cells in text] for text in texts] for number, name in enumerate(names)}
    )


def _names_columns(first: str, last: str) -> bool:
    return first.lower() in _WORD_NAMES and last.lower() in _TAG_NAMES


def read_words(
    tables: Mapping[str, Dataset], config: DataConfig, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, WordSource]]:
    """Return class names and the splits of tables with a list of words and a list of labels in each row.

    Labels are class labels of ``datasets``, whole numbers or strings; null is no label, -1 where the hub has it so.

    Args:
        tables: by split.
        config: may name the columns.
        notes: what there is to say is added.

    Raises:
        UserError: there are no such columns, a text has another number of labels than of words, or a label that no
            training text has.
    """
    features = tables["train"].features
    lists = {name: inner for name, feature in features.items() if (inner := _inner(feature)) is not None}
    words_from = _word_column(lists, features, config.text_column)
    labels_from = _tag_column(lists, features, config.label_column, words_from)
    notes.append(
        f"Columns: words from {words_from}, labels from {labels_from}.{unread(features, words_from, labels_from)}"
    )
    labels = {split: _cells(table, labels_from) for split, table in tables.items()}
    names, values = _classes(lists[labels_from], labels["train"])
    note_on_missing(names, notes)
    index_of = {value: index for index, value in enumerate(values)}
    sources = {}
    for split, table in tables.items():
        if words_from not in table.column_names:
            raise UserError(
                f"The split {split} has no column {words_from}; its columns are {', '.join(table.column_names)}.",
                "Every split needs the same columns.",
            )
        sources[split] = _source(table[words_from][:], labels[split], index_of, split, notes)
    return names, sources


def _inner(feature: Any) -> Any | None:
    """Return what a column's lists hold; None for a column of anything else."""
    from datasets import LargeList, List

    return feature.feature if isinstance(feature, (List, LargeList)) else None


def _dtype(inner: Any) -> str:
    return str(getattr(inner, "dtype", "nested"))


def _word_column(lists: Mapping[str, Any], features: Features, asked: str | None) -> str:
    from datasets import ClassLabel

    strings = [name for name, inner in lists.items() if not isinstance(inner, ClassLabel) and "string" in _dtype(inner)]
    if asked is None:
        named = [name for name in strings if name in _TAG_NAMES]
        return only_column([name for name in strings if name not in named], _WORD_NAMES, features, kind="text")
    column = existing_column(asked, features, "data.text_column")
    if column not in strings:
        raise UserError(f"The column {column} holds {features[column]}, not lists of words.", FORMS)
    return column


def _tag_column(lists: Mapping[str, Any], features: Features, asked: str | None, words_from: str) -> str:
    discrete = [
        name
        for name, inner in lists.items()
        if name != words_from and _dtype(inner).startswith(("int", "uint", "string", "large_string"))
    ]
    if asked is None:
        return only_column(discrete, _TAG_NAMES, features, kind="label")
    column = existing_column(asked, features, "data.label_column")
    if column == words_from:
        raise UserError(f"The column {column} is that of the words.", "data.text_column names another one for them.")
    if column not in discrete:
        raise UserError(f"The column {column} holds {features[column]}, not lists of labels.", FORMS)
    return column


def _classes(inner: Any, rows: Sequence[Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Return the names of the classes, and the value that stands for each of them."""
    from datasets import ClassLabel

    if isinstance(inner, ClassLabel):
        return tuple(inner.names), list(range(inner.num_classes))
    values = in_order({value for row in rows if row is not None for value in row if value is not None})
    return tuple(str(value) for value in values), values


def _cells(table: Dataset, column: str) -> list[list[Any] | None]:
    """Return each row's labels, None for a word or a text that has none.

    That is null, a blank string, -100, which transformers leaves out, and -1 where the hub has it so: among class
    labels with names, and where every label is -1.
    """
    from datasets import ClassLabel

    if column not in table.column_names:
        return [None] * len(table)
    none = (_LEFT_OUT, UNLABELLED) if isinstance(_inner(table.features[column]), ClassLabel) else (_LEFT_OUT,)
    rows = [
        None if row is None else [None if is_blank(label) or label in none else label for label in row]
        for row in table[column][:]
    ]
    if are_all_unlabelled([label for row in rows if row is not None for label in row]):
        return [None if row is None else [None] * len(row) for row in rows]
    return rows


def _source(
    texts: Sequence[list[str | None] | None],
    cells: Sequence[list[Any] | None],
    index_of: Mapping[Any, int],
    split: str,
    notes: list[str],
) -> WordSource:
    """Return the rows that have words, without blank ones."""
    words, tags, blank = [], [], 0
    for row, (found, labels) in enumerate(zip(texts, cells, strict=True)):
        text = found or []
        if labels is None:
            labels = [None] * len(text)
        if len(labels) != len(text):
            raise UserError(
                f"{split}[{row}] has {len(text)} words and {len(labels)} labels.", "Every word needs one label."
            )
        if unknown := [label for label in labels if label is not None and label not in index_of]:
            known = [str(value) for value in index_of]
            raise UserError(
                f"{split}[{row}] has the label {unknown[0]!r}, which no training text has. "
                f"{did_you_mean(str(unknown[0]), known)}".rstrip(),
                f"The training labels are {', '.join(known)}.",
            )
        kept = [
            (word, UNLABELLED if label is None else index_of[label])
            for word, label in zip(text, labels, strict=True)
            if word is not None and word.strip()
        ]
        blank += len(text) - len(kept)
        if kept:
            words.append([word for word, _ in kept])
            tags.append([tag for _, tag in kept])
    if blank:
        notes.append(f"{blank} words of {split} are blank and left out.")
    if len(words) < len(texts):
        notes.append(f"{len(texts) - len(words)} rows of {split} have no words and are left out.")
    return WordSource(words, tags, split=split)
