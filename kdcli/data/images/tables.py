"""Images in tables: data sets of the Hugging Face hub, parquet and arrow files, through the ``datasets`` library."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.base.extensions import Extension
from kdcli.base.facts import UNLABELLED
from kdcli.base.files import utf8_path
from kdcli.config.data import DataConfig, SplitsConfig
from kdcli.data.columns import (
    choose_splits,
    existing_column,
    label_column,
    load_extension,
    only_column,
    silence_datasets,
    unread,
)
from kdcli.data.images.decode import File, Range, UnreadableImage, decode_image
from kdcli.data.images.path_tables import (
    PathTables,
    by_column,
    check_classes,
    files_of,
    is_string,
    path_column,
)
from kdcli.data.images.path_tables import label_column as label_column_of_paths
from kdcli.data.images.photo import open_image
from kdcli.data.images.several import has_several, read_several
from kdcli.data.images.sources import ImageSource, OfficialSplits
from kdcli.data.labels import classes_of, is_discrete, label_indices, note_on_missing
from kdcli.data.listing import is_hidden, list_files, suffix_of, unread_notes
from kdcli.data.source import Sample
from kdcli.data.split_names import split_files

if TYPE_CHECKING:
    from datasets import Dataset, Features

_IMAGE_NAMES = ("image", "img", "images", "pixel_values")
SUFFIXES = (".parquet", ".arrow")
_ROWS = 1000
"""Rows that are looked at together: where a table is a choice of rows of another, they are copied."""
_SAVED = ("dataset_dict.json", "dataset_info.json")
_INFO = (*_SAVED, "dataset_infos.json", "config.json")
"""What lies beside tables in json and is none."""


def holds_tables(path: Path) -> bool:
    """Whether ``path`` is a parquet or arrow file, or a folder of them or with such folders right below."""
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    if not path.is_dir():
        return False
    if any((path / name).is_file() for name in _SAVED):
        return True
    folders = [path, *(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))]
    return any(list_files(folder, is_table, deep=False).files for folder in folders)


def is_table(path: str) -> bool:
    """Whether a file is a table by its suffix."""
    return suffix_of(path) in SUFFIXES


def open_hub(name: str, config: DataConfig, *, needs_labels: bool = True) -> OfficialSplits:
    """Open ``hf:NAME``, see :func:`load_hub`. Labels may be missing where none are needed.

    Raises:
        UserError: as there, or the columns don't fit.
    """
    return official_splits(load_hub(name, config), config, needs_labels, config.splits)


def load_hub(name: str, config: DataConfig) -> Any:
    """Return the tables of ``hf:NAME``; code that a data set brings along is never run.

    Raises:
        UserError: the hub is out of reach, or there is no such data set or configuration.
    """
    from datasets import load_dataset

    with asking_hub(name):
        return load_dataset(name, name=config.subset)


@contextmanager
def asking_hub(name: str) -> Iterator[None]:
    """Turn whatever keeps ``hf:NAME`` from being loaded into one message."""
    from datasets.exceptions import DatasetNotFoundError

    silence_datasets()
    try:
        yield
    except Exception as error:  # of the name, the network, or any of the libraries that read the files
        if isinstance(error, DatasetNotFoundError):
            hint = "Check the name; a gated or private data set needs 'hf auth login' first."
        elif isinstance(error, ConnectionError):
            hint = "Without access to the hub, download its parquet files elsewhere and name their folder."
        else:
            hint = "data.subset chooses the configuration where a data set has several."
        raise UserError(f"hf:{name} couldn't be loaded: {error}", hint) from error


def open_local_tables(path: Path, config: DataConfig, *, needs_labels: bool = True) -> OfficialSplits:
    """Open tables on disk, see :func:`load_local_tables`. Labels may be missing where none are needed.

    Raises:
        UserError: as there, or the columns don't fit.
    """
    loaded, asked, notes = load_local_tables(path, config)
    tables: Mapping[str, Dataset] = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    root = folder_of_tables(path)
    first, asked_for = next(iter(tables.values())), config.image_column
    if path_column(first, asked_for, root) is None or (asked_for is None and _holds_cells(first)):
        return official_splits(tables, config, needs_labels, asked, notes)
    if len(tables) > 1:
        chosen, said = choose_splits(tables, config.name, asked)
        return open_path_tables(PathTables(chosen, root, [*notes, *said]), config, needs_labels=needs_labels)
    found = by_column(tables, root, config.splits if path.is_file() else asked, notes, where=str(path))
    return open_path_tables(found, config, needs_labels=needs_labels)


def folder_of_tables(path: Path) -> Path:
    """Return the folder that paths in a file, or in the files below a folder, are relative to.

    That is the folder of the files where they lie in one.
    """
    if path.is_file():
        return path.parent
    folders = {Path(file).parent for file in list_files(path, is_table).files}
    return folders.pop() if len(folders) == 1 else path


def open_path_tables(found: PathTables, config: DataConfig, *, needs_labels: bool = True) -> OfficialSplits:
    """Return the images that tables name by their paths. Labels may be missing where none are needed.

    Raises:
        UserError: a file is missing, or the columns don't fit.
    """
    return official_splits(found.tables, config, needs_labels, None, found.notes, of_paths=found)


def _holds_cells(table: Dataset) -> bool:
    """Whether a table has images in it: then a column of their names is no more than that."""
    return any(holds_images(feature) for feature in table.features.values())


def load_local_tables(path: Path, config: DataConfig) -> tuple[Any, SplitsConfig | None, list[str]]:
    """Return a parquet or arrow file, a folder of them, or what ``Dataset.save_to_disk`` wrote.

    Returns:
        The tables, the part of ``data.splits`` that is still to be looked for among them, and notes.

    Raises:
        UserError: a file can't be read.
    """
    from datasets import load_dataset, load_from_disk

    silence_datasets()
    asked, notes = config.splits, list[str]()
    try:
        if path.is_file():
            loaded = load_dataset(path.suffix.lower()[1:], data_files=as_patterns({"train": [str(path)]}))
        elif any((path / name).is_file() for name in _SAVED):
            loaded = load_from_disk(str(utf8_path(path)))
        else:
            present = {suffix_of(file) for file in list_files(path, is_table).files}
            suffix = next(suffix for suffix in SUFFIXES if suffix in present)
            files, notes = files_by_split(path, suffix, asked)
            loaded, asked = load_dataset(suffix[1:], data_files=as_patterns(files)), None
    except UserError:
        raise
    except Exception as error:  # on damaged files datasets and pyarrow raise whatever they trip over
        raise UserError(
            f"{path} couldn't be read: {error}",
            "Expected parquet or arrow files with a column of images and one of labels.",
        ) from error
    return loaded, asked, notes


def files_by_split(folder: Path, suffix: str, asked: SplitsConfig | None) -> tuple[dict[str, list[str]], list[str]]:
    """Return split -> its files, and notes: also on what is not read.

    Args:
        folder: with tables in any depth.
        suffix: of the tables.
        asked: ``data.splits``.

    Raises:
        UserError: the splits are not understood.
    """
    found = list_files(folder, lambda path: suffix_of(path) == suffix and not path.endswith(_INFO))
    names = [path.removeprefix(f"{folder}{os.sep}") for path in found.files]
    by_split, notes = split_files(names, asked, where=str(folder))
    files = {split: [str(folder / name) for name in of] for split, of in by_split.items()}
    return files, [*notes, *unread_notes(found.unread)]


def as_patterns(files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return ``data_files`` of ``datasets``, which takes names as patterns, for these files and no others."""
    return {split: [glob.escape(str(utf8_path(Path(path)))) for path in paths] for split, paths in files.items()}


def open_extension(entry: Extension, config: DataConfig, *, needs_labels: bool = True) -> OfficialSplits:
    """Open ``NAME:REST`` as images. Labels may be missing where none are needed.

    Raises:
        UserError: as :func:`load_extension`, or the columns don't fit.
    """
    return official_splits(load_extension(entry, config), config, needs_labels, config.splits)


class TableSource(ImageSource):
    """File images in a column of a table.

    Args:
        table: with an undecoded image column: cells are ``{"bytes": ..., "path": ...}``.
        column: name of that column.
        labels: one class index a row.
        split: what :meth:`describe` calls it.
    """

    deep_range: Range | None = None
    """As :func:`~kdcli.data.images.decode.decode_image` takes it."""

    def __init__(self, table: Dataset, column: str, labels: Iterable[int], *, split: str) -> None:
        self.labels: Sequence[int] = tuple(labels)
        self._table = table
        self._column = column
        self._split = split

    def load(self, index: int) -> Sample:
        """Decode one row's image, from its bytes or else from the file that it names."""
        name, encoded = self.describe(index), self._present(index)
        image = decode_image(encoded, name=name, deep_range=self.deep_range, channels=self.channels)
        return Sample(image, self.labels[index])

    def open(self, index: int) -> Sample:
        """Open one row's image, likewise."""
        name, encoded = self.describe(index), self._present(index)
        image = open_image(encoded, name=name, deep_range=self.deep_range, channels=self.channels)
        return Sample(image, self.labels[index])

    def _present(self, index: int) -> File:
        encoded = self.encoded(index)
        if encoded is None:
            raise UnreadableImage(self.describe(index), "the cell is empty")
        return encoded

    def encoded(self, index: int) -> File | None:
        """Return one row's bytes, or else the path of its file; None of an empty cell."""
        cell = self._table[index][self._column] or {}
        return cell.get("bytes") or cell.get("path") or None

    def sizes(self) -> list[int]:
        """Return the number of bytes of every row's image without reading it; -1 where there are none."""
        import pyarrow.compute as pc

        found: list[int] = []
        table = self._table.with_format("arrow")
        for start in range(0, len(self), _ROWS):
            cells = table[start : start + _ROWS][self._column]
            lengths = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
            paths = pc.struct_field(cells, "path").to_pylist()
            found += [length or _file_size(path) for length, path in zip(lengths, paths, strict=True)]
        return found

    def some(self, count: int) -> Iterable[int]:
        """Return which images to look at to learn what they are like, at most so many: evenly spread over all."""
        return [place * len(self) // count for place in range(count)] if len(self) > count else range(len(self))

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self._split}[{index}]"


def _file_size(path: str | None) -> int:
    try:
        return Path(path).stat().st_size if path else -1
    except OSError:
        return -1


def official_splits(
    loaded: Any,
    config: DataConfig,
    needs_labels: bool,
    asked: SplitsConfig | None,
    so_far: Sequence[str] = (),
    *,
    of_paths: PathTables | None = None,
    make_source: Callable[..., ImageSource] | None = None,
) -> OfficialSplits:
    """Return the splits of tables, whose labels may be missing where none are needed.

    Args:
        loaded: a table, or tables by split.
        config: names of columns.
        needs_labels: whether there have to be labels.
        asked: ``data.splits``.
        so_far: notes.
        of_paths: of tables with paths of images.
        make_source: makes a source of a table, its labels, ``column``, ``root`` and ``split``.

    Raises:
        UserError: the columns or splits don't fit.
    """
    tables: Mapping[str, Dataset] = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    chosen, notes = (tables, []) if of_paths is not None else choose_splits(tables, config.name, asked)
    notes = [*so_far, *notes]
    image_column = None if of_paths is None else path_column(chosen["train"], config.image_column, of_paths.root)
    image_column = image_column or find_image_column(chosen["train"].features, config.image_column)
    make = partial(make_source or _source, column=image_column, root=None if of_paths is None else of_paths.root)
    split_column = None if of_paths is None else of_paths.split_column
    if needs_labels and has_several(chosen["train"].features, config, (image_column, split_column)):
        return read_several(chosen, image_column, config, notes, make, split_column)
    try:
        return _labelled_splits(chosen, image_column, config, notes, make, of_paths)
    except UserError as error:
        if needs_labels or config.label_column is not None:
            raise
        notes += [
            f"Columns: images from {image_column}.{unread(chosen['train'].features, image_column)}",
            f"No labels: {error.message}",
        ]
    sources = {split: make(table, [UNLABELLED] * len(table), split=split) for split, table in chosen.items()}
    return OfficialSplits((), sources["train"], sources.get("validation"), sources.get("test"), notes=tuple(notes))


def _source(table: Dataset, labels: Sequence[int], *, column: str, root: Path | None, split: str) -> ImageSource:
    """Return a table's images: files by their paths relative to ``root``, or without one what is in the cells."""
    if root is not None and is_string(table.features[column]):
        return files_of(table, column, labels, root, split)
    return TableSource(undecoded(table, column), column, labels, split=split)


def _labelled_splits(
    chosen: Mapping[str, Dataset],
    image_column: str,
    config: DataConfig,
    so_far: Sequence[str],
    make: Callable[..., ImageSource],
    of_paths: PathTables | None,
) -> OfficialSplits:
    features, notes = chosen["train"].features, list(so_far)
    split_column = None if of_paths is None else of_paths.split_column
    if of_paths is None:
        labels_from = label_column(features, config.label_column, image_column)
    else:
        labels_from = label_column_of_paths(features, config.label_column, (image_column, split_column))
    read = [name for name in (image_column, labels_from, split_column) if name is not None]
    notes.append(f"Columns: images from {image_column}, labels from {labels_from}.{unread(features, *read)}")
    if not is_discrete(features[labels_from]):
        raise UserError(
            f"The label column {labels_from} holds {getattr(features[labels_from], 'dtype', 'nested values')}, not"
            " classes.",
            "Labels are class labels, integers or strings; data.label_column names another column.",
        )
    if of_paths is not None:
        check_columns(chosen, (image_column, labels_from))
        check_classes(chosen["train"], labels_from, is_asked=config.label_kind == "class")
    class_names, values = classes_of(chosen["train"], labels_from)
    note_on_missing(class_names, notes)
    sources: dict[str, ImageSource] = {}
    for split, table in chosen.items():
        labels = label_indices(table, labels_from, class_names, values, split=split)
        source = make(table, labels, split=split)
        labelled = [index for index, label in enumerate(labels) if label != UNLABELLED]
        if split == "train" and len(labelled) < len(labels):
            notes.append(f"{len(labels) - len(labelled)} of {len(labels)} images of the train split have no label.")
        elif len(labelled) < len(labels):
            notes.append(f"{len(labels) - len(labelled)} images of the {split} split have no label and are left out.")
            if not labelled:
                continue
            source = source.take(labelled)
        sources[split] = source
    return OfficialSplits(
        class_names, sources["train"], sources.get("validation"), sources.get("test"), notes=tuple(notes)
    )


def check_columns(tables: Mapping[str, Dataset], columns: Sequence[str]) -> None:
    """Refuse a split without a column that the training split has.

    Raises:
        UserError: it names both.
    """
    for split, table in tables.items():
        if lacking := [name for name in columns if name not in table.column_names]:
            raise UserError(
                f"The {split} split has no column {lacking[0]}; its columns are {', '.join(table.column_names)}.",
                "Every split needs the same columns.",
            )


def holds_images(feature: Any) -> bool:
    """Whether a column is of images, or of encoded bytes that may be such."""
    from datasets import Image as ImageFeature

    return isinstance(feature, ImageFeature) or _is_bytes(feature)


def find_image_column(features: Features, asked: str | None) -> str:
    """Return the column of images: ``asked``, or the one that holds some, or of several the one with a usual name.

    Raises:
        UserError: there is none, or more than one.
    """
    from datasets import Image as ImageFeature

    if asked is not None:
        return existing_column(asked, features, "data.image_column")
    candidates = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    if not candidates:  # files not written by ``datasets`` hold bytes, alone or as {"bytes", "path"}
        candidates = [name for name, feature in features.items() if _is_bytes(feature)]
    return only_column(candidates, _IMAGE_NAMES, features, kind="image")


def _is_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature and _is_bytes(feature["bytes"])
    return getattr(feature, "dtype", None) in {"binary", "large_binary"}


def undecoded(table: Dataset, column: str) -> Dataset:
    """Return a table of one column, whose images are not decoded.

    Raises:
        UserError: it holds no images.
    """
    from datasets import Image as ImageFeature

    try:
        return table.select_columns([column]).cast_column(column, ImageFeature(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"Column {column} holds {table.features[column]}, not images.",
            "Images are encoded bytes or paths of files; data.image_column names another column.",
        ) from error
