"""What a user asks a finished model about: images or texts of their own, without labels."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdcli.base.errors import UserError, is_special, reading
from kdcli.base.text import expand_user, short_repr
from kdcli.config.data import DataConfig
from kdcli.data.images.decode import Range, read_depth
from kdcli.data.images.sources import FileSource
from kdcli.data.listing import is_image, list_files, told, unread_notes
from kdcli.data.source import Sample
from kdcli.data.texts.batch import Text
from kdcli.data.texts.columns import read_texts, text_columns
from kdcli.data.texts.files import load_tables, text_suffixes

_NAMED = 5
_LOOKED_AT = 256
STDIN = "-"
"""The input that is read from standard input, a text a line."""


class Item(NamedTuple):
    """One sample.

    Attributes:
        name: what the user calls it: the path of an image, or where a text is from.
        sample: an image's path, or a text or a pair of them.
        place: of an image its path below the folder that was named, or its file's name, without the suffix.
    """

    name: str
    sample: Any
    place: str = ""


class OwnImages(FileSource):
    """Image files whose targets are their sizes: int64 (2,), height and width of the upright image in pixels.

    Args:
        paths: of the files.
        deep_range: what is black and white in deep grayscale; by default each image's own.
    """

    def __init__(self, paths: Iterable[str], *, deep_range: Range | None = None) -> None:
        super().__init__(paths, None)
        self.deep_range = deep_range

    def load(self, index: int) -> Sample:
        """Decode one file."""
        return _with_size(super().load(index))

    def open(self, index: int) -> Sample:
        """Open one file."""
        return _with_size(super().open(index))


def _with_size(sample: Sample) -> Sample:
    return Sample(sample.inputs, torch.tensor([sample.inputs.height, sample.inputs.width]))


def find_images(inputs: Sequence[str], notes: list[str]) -> list[Item]:
    """Return the images that are named, and those below the folders that are named, each once.

    Args:
        inputs: files and folders.
        notes: gets a sentence on what of a folder is not read.

    Raises:
        UserError: one of them is not there or is no image, or a folder has none.
    """
    found: dict[str, Item] = {}
    wrong = []
    if "" in inputs:
        raise UserError("An input is empty.", "Name image files or folders of them; . is the folder you are in.")
    for name in inputs:
        path = expand_user(name)
        with reading(name):
            if path.is_dir():
                items, listing = _below(path, name)
                notes += [f"{name}: {note}" for note in listing]
                for item in items:
                    found.setdefault(os.path.abspath(item.sample), item)  # noqa: PTH100
                continue
            if not path.exists():
                raise UserError(
                    f"There is no file or folder {name}.",
                    "Name image files or folders of them; texts are for models of texts.",
                )
            if is_special(path) or not is_image(str(path)):
                wrong.append(name)
                continue
        found.setdefault(os.path.abspath(path), Item(name, str(path), path.stem))  # noqa: PTH100
    if wrong:
        are = "is no image" if len(wrong) == 1 else "are no images"
        raise UserError(
            f"{_listed(wrong)} {are}.",
            "The model reads images (JPEG, PNG, TIFF, WebP and the like), or folders of them.",
        )
    return list(found.values())


def _below(folder: Path, name: str) -> tuple[list[Item], list[str]]:
    listing = list_files(folder, is_image)
    if not listing.files:
        there = f" It has {told(listing.unread)}." if listing.unread else " It is empty."
        raise UserError(f"{name} has no images.{there}", "Name a folder with image files in it or below it.")
    items = []
    for file in listing.files:
        below = os.path.relpath(file, folder)
        items.append(Item(os.path.join(name, below), file, os.path.splitext(below)[0]))  # noqa: PTH118, PTH122
    return items, unread_notes(listing.unread)


def has_deep(items: Sequence[Item]) -> bool:
    """Return whether some of the images, of at most 256 of them, are grayscale of more than 8 bits."""
    for item in items[:_LOOKED_AT]:
        depth = read_depth(item.sample)
        if depth is not None and depth.kind in ("whole", "float"):
            return True
    return False


def find_texts(
    inputs: Sequence[str],
    texts: Sequence[str],
    *,
    asked: tuple[str | None, str | None],
    trained_on: DataConfig | None,
    takes_pairs: bool,
    notes: list[str],
) -> list[Item]:
    """Return the texts that are given, those of files, and those of standard input.

    A ``.txt`` file has a text a line, blank ones left out; tables have one a row.

    Args:
        inputs: files, and ``-`` for standard input.
        texts: given on the command line.
        asked: the columns of tables that hold the texts and, of pairs, the second ones; None where they are not named.
        trained_on: the config of the data that the model was trained on: its columns are taken where a table has them.
        takes_pairs: whether columns with the names of a pair are read as one.
        notes: gets what there is to say.

    Raises:
        UserError: a file is not there, is no file of texts or has none, or its columns can't be told.
    """
    found = [Item(f"text {number}", text) for number, text in enumerate(texts, 1) if text.strip()]
    if len(found) < len(texts):
        raise UserError("--text is empty.", "Give a text.")
    for item in found:
        try:
            item.sample.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"--text {short_repr(item.sample)} is no text: it has half characters.", "Mend it."
            ) from None
    if inputs.count(STDIN) > 1:
        raise UserError("- is named twice.", "Standard input is read once.")
    for name in inputs:
        if name == STDIN:
            lines = _lines(sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode(), name)
            items = [Item(f"stdin line {number}", line) for number, line in lines]
        else:
            items = _texts_of(name, asked, trained_on, takes_pairs=takes_pairs, notes=notes)
        if not items:
            raise UserError(f"{'Standard input' if name == STDIN else name} has no texts.", "Give a text a line.")
        found += items
    return found


def _texts_of(
    name: str,
    asked: tuple[str | None, str | None],
    trained_on: DataConfig | None,
    *,
    takes_pairs: bool,
    notes: list[str],
) -> list[Item]:
    path = expand_user(name)
    suffix = path.suffix.lower()
    with reading(name):
        if path.is_dir():
            raise UserError(f"{name} is a folder, and the model reads texts.", _TEXTS)
        if not path.exists():
            raise UserError(f"There is no file {name}.", f'A text itself is given as --text "...". {_TEXTS}')
        if is_special(path) or suffix not in text_suffixes():
            raise UserError(f"{name} is no file of texts.", _TEXTS)
        if suffix == ".txt":
            return [Item(f"{name} line {number}", line) for number, line in _lines(path.read_bytes(), name)]
        tables = load_tables(path, notes)
    table = tables["train"]
    config = _columns(table.column_names, asked, trained_on)
    try:
        columns = text_columns(table, config, takes_pairs=takes_pairs)
    except UserError as error:
        raise UserError(_as_option(f"{name}: {error.message}"), _as_option(error.hint)) from None
    rows: list[Text | None] = read_texts(tables, columns)["train"]
    notes.append(f"{name}: texts from {' and '.join(columns)}.")
    kept = [(number, text) for number, text in enumerate(rows, 1) if not _is_blank(text)]
    if len(kept) < len(rows):
        notes.append(f"{name}: {len(rows) - len(kept)} rows without a text are left out.")
    return [Item(f"{name} row {number}", text) for number, text in kept]


def _columns(there: Sequence[str], asked: tuple[str | None, str | None], trained_on: DataConfig | None) -> DataConfig:
    """Return the config by which a table is read: the columns that are asked for, else those of the training."""
    first, second = asked
    chosen = {"text_column": first, "text_pair_column": second}
    if trained_on is None:
        return DataConfig(name="none").model_copy(update=chosen)
    own = {"text_column": trained_on.text_column, "text_pair_column": trained_on.text_pair_column}
    if first is None and second is None and all(column is None or column in there for column in own.values()):
        chosen = own
    return DataConfig(name="none").model_copy(update={**chosen, "label_column": trained_on.label_column})


def _as_option(sentence: str) -> str:
    return sentence.replace("data.text_pair_column", "--text-pair-column").replace("data.text_column", "--text-column")


_TEXTS = (
    'Name txt files with a text a line, csv, tsv, jsonl or parquet files, or - for standard input; or --text "...".'
)


def _is_blank(text: Text | None) -> bool:
    return text is None or not (text if isinstance(text, str) else "".join(text)).strip()


def _lines(content: bytes, name: str) -> list[tuple[int, str]]:
    """Return the lines that are not blank with their numbers, from 1."""
    try:
        lines = io.StringIO(content.decode("utf-8-sig"), newline=None).readlines()  # as the data of training are read
    except UnicodeDecodeError as error:
        raise UserError(f"{name} couldn't be read: it is no UTF-8 ({error}).", "Save the file as UTF-8.") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
