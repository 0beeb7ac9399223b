"""Images in tar files, as the webdataset library lays them out: ``KEY.jpg`` with ``KEY.cls`` or ``KEY.json`` beside it.

The files are not unpacked, and not read as a stream: their headers say where each image lies, so that order, splits and
resume are those of any other data, and an image is one read.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdcli.base.errors import UserError, reading
from kdcli.base.text import short_repr
from kdcli.config.data import DataConfig
from kdcli.data.columns import LABEL_NAMES
from kdcli.data.images.decode import File, UnreadableImage
from kdcli.data.images.sources import OfficialSplits
from kdcli.data.images.tables import TableSource, files_by_split, official_splits
from kdcli.data.listing import IMAGE_SUFFIXES, is_hidden, is_image, list_files, suffix_of, unread_notes
from kdcli.data.split_names import split_like

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIX = ".tar"
_CLASS, _JSON = "cls", "json"
_LABEL = "label"
"""The column that ``.cls`` files become."""
_MOST = 2**20
"""Bytes of a label file: a larger one is none."""
_LAYOUT = "Each sample is KEY.jpg (or another image) with its class in KEY.cls, or in KEY.json under label."


class _Place(NamedTuple):
    """Where an image lies.

    Attributes:
        shard: number of the tar file.
        name: in it.
        offset: of its first byte.
        size: in bytes.
    """

    shard: int
    name: str
    offset: int
    size: int


@dataclass
class _Read:
    """What is found in the tar files of a split, a row an image.

    Attributes:
        shards: their paths.
        places: of the images.
        labels: column -> a value a row, None for none.
        unread: kind -> number of files that belong to nothing.
    """

    shards: list[str]
    places: list[_Place] = field(default_factory=list)
    labels: dict[str, list[Any]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)


def holds_shards(path: Path) -> bool:
    """Whether ``path`` is a tar file, or a folder of them, right in it or in folders of splits, and of no images."""
    if path.is_file():
        return suffix_of(str(path)) == SUFFIX
    if not path.is_dir():
        return False
    folders = [path, *(entry for entry in path.iterdir() if split_like(entry.name) is not None and entry.is_dir())]
    if not any(list_files(folder, _is_shard, deep=False).files for folder in folders):
        return False
    return not list_files(path, is_image).files


def open_shards(path: Path, config: DataConfig, *, needs_labels: bool = True) -> OfficialSplits:
    """Open a tar file, or a folder of them, whose names say which split they are of.

    Args:
        path: of either.
        config: splits, and the key of ``KEY.json`` that has the labels (``label_column``).
        needs_labels: False allows there to be none.

    Raises:
        UserError: a file is damaged or compressed, samples have two images or none, or labels don't fit.
    """
    from datasets import Dataset, Features, Image, Value

    if config.image_column is not None:
        raise UserError(
            f"data.image_column is set, and {path} holds no tables: an image is told by its suffix.", "Leave it out."
        )
    files, notes = {"train": [str(path)]}, list[str]()
    if path.is_dir():
        files, notes = files_by_split(path, SUFFIX, config.splits)
    found = {split: _read(shards, config.label_column) for split, shards in files.items()}
    tables: dict[str, Dataset] = {}
    columns = sorted({column for read in found.values() for column in read.labels})
    for split, read in found.items():
        if not read.places:
            raise UserError(f"The tar files of the {split} split hold no images, {read.shards[0]} for one.", _LAYOUT)
        cells = [{"bytes": None, "path": place.name} for place in read.places]
        labels = {column: read.labels.get(column, [None] * len(cells)) for column in columns}
        features = Features({"image": Image(decode=False), **{name: Value(_type_of(found, name)) for name in columns}})
        tables[split] = Dataset.from_dict({"image": cells, **labels}, features=features)
        notes += [f"{split}: {note}" for note in unread_notes(read.unread)]
    number = sum(len(read.shards) for read in found.values())
    notes.insert(0, f"{number} tar file{'' if number == 1 else 's'}, read in place.")
    root = path if path.is_dir() else path.parent
    make = partial(_source, found=found, folder=str(root))
    return official_splits(tables, config, needs_labels, None, notes, make_source=make)


class ShardSource(TableSource):
    """Images in tar files.

    Args:
        table: a row an image.
        column: of the images.
        labels: one class index a row.
        split: its name.
        places: of the images, as rows.
        shards: the tar files.
        folder: that names in messages are relative to.
    """

    def __init__(
        self,
        table: Dataset,
        column: str,
        labels: Iterable[int],
        *,
        split: str,
        places: Sequence[_Place],
        shards: Sequence[str],
        folder: str,
    ) -> None:
        super().__init__(table, column, labels, split=split)
        self._places, self._shards, self._folder = tuple(places), tuple(shards), folder

    def encoded(self, index: int) -> File | None:
        """Return one image's bytes."""
        place = self._places[index]
        try:
            with open(self._shards[place.shard], "rb") as file:  # noqa: PTH123 - for every image
                file.seek(place.offset)
                return file.read(place.size) or None
        except OSError as error:
            raise UnreadableImage(self.describe(index), f"{type(error).__name__}: {error}") from error

    def sizes(self) -> list[int]:
        """Return the number of bytes of every image."""
        return [place.size for place in self._places]

    def describe(self, index: int) -> str:
        """Return the tar file and the name in it."""
        place = self._places[index]
        return f"{os.path.relpath(self._shards[place.shard], self._folder)}/{place.name}"


def _source(
    table: Dataset, labels: Sequence[int], *, column: str, root: Path | None, split: str, found: dict[str, _Read],
    folder: str,
) -> ShardSource:  # fmt: skip
    read = found[split]
    return ShardSource(table, column, labels, split=split, places=read.places, shards=read.shards, folder=folder)


def _is_shard(path: str) -> bool:
    return suffix_of(path) == SUFFIX


def _read(shards: Sequence[str], column: str | None) -> _Read:
    """Look through the headers of tar files, and read their labels: ``column`` of the json files, or a usual one."""
    found = _Read(list(shards))
    for number, shard in enumerate(shards):
        with reading(shard):
            try:
                with tarfile.open(shard, "r:") as tar:
                    _read_shard(tar, number, shard, found, column)
                    _check_end(tar)
            except (tarfile.TarError, EOFError) as error:
                hint = "It may be compressed, which can't be read in place: unpack it to a plain .tar, or make it anew."
                raise UserError(f"{shard} is no whole tar file: {error}.", hint) from error
    return found


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse a file that breaks off between two of its members, which tarfile takes for its end."""
    assert tar.fileobj is not None, "it is open"
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it has no end, or breaks off")


def _read_shard(tar: tarfile.TarFile, number: int, shard: str, found: _Read, column: str | None) -> None:
    key, images, labels = "", list[_Place](), dict[str, Any]()
    seen: set[str] = set()

    def close() -> None:
        if len(images) > 1:
            raise UserError(f"{shard}: {images[0].name} and {images[1].name} are two images of one sample.", _LAYOUT)
        if not images:
            return
        for name in labels.keys() - found.labels.keys():
            found.labels[name] = [None] * len(found.places)
        found.places.append(images[0])
        for name, values in found.labels.items():
            values.append(labels.get(name))

    for member in tar:
        folder, _, last = member.name.rpartition("/")
        if not member.isreg() or is_hidden(last):
            continue
        stem, _, extension = last.partition(".")
        if (new := f"{folder}/{stem}") != key:
            close()
            if new in seen:
                raise UserError(f"{shard}: the files of {new.lstrip('/')} don't lie one after the other.", _LAYOUT)
            seen.add(new)
            key, images, labels = new, [], {}
        extension = extension.lower()
        if f".{extension}" in IMAGE_SUFFIXES:
            images.append(_Place(number, member.name, member.offset_data, member.size))
        elif extension in (_CLASS, _JSON) and member.size <= _MOST:
            content = tar.extractfile(member)
            assert content is not None, "it is a regular file"
            labels |= _labels_of(content.read(), extension, column, f"{shard}/{member.name}")
        else:
            found.unread[f".{extension}"] = found.unread.get(f".{extension}", 0) + 1
    close()


def _labels_of(content: bytes, extension: str, column: str | None, name: str) -> dict[str, Any]:
    """Return the labels that a file says by column; of json those that are asked for or have usual names."""
    try:
        text = content.decode("utf-8-sig").strip()
        values = {_LABEL: text or None} if extension == _CLASS else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} can't be read: {error}", _LAYOUT) from error
    if not isinstance(values, dict):
        raise UserError(f"{name} holds {short_repr(values)}, not keys with values.", _LAYOUT)
    wanted = (column,) if column is not None else LABEL_NAMES
    return {key: value for key, value in values.items() if key in wanted}


def _type_of(found: dict[str, _Read], column: str) -> str:
    """Return the type of a column of labels, as pyarrow calls it."""
    kinds = {type(value) for read in found.values() for value in read.labels.get(column, ()) if value is not None}
    if kinds - {int, str} or len(kinds) > 1:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"Labels under {column!r} are of the types {listed}.", "Labels are whole numbers, or texts.")
    return "int64" if kinds == {int} else "string"
