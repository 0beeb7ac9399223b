"""From a name to images that are streamed: which files there are, what their footers say, and their labels."""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdcli.base.errors import UserError
from kdcli.base.text import counted, expand_user
from kdcli.config.data import DataConfig
from kdcli.data.columns import LABEL_NAMES, choose_splits
from kdcli.data.images.path_tables import LABEL_COLUMNS
from kdcli.data.images.sources import OfficialSplits
from kdcli.data.images.streams import AHEAD, RESUME, ParquetPart, Stream, StreamSource, clear, read_parquet
from kdcli.data.images.tables import asking_hub, files_by_split, find_image_column, holds_images, official_splits
from kdcli.data.labels import is_discrete

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features
    from pyarrow.parquet import FileMetaData

SUFFIX = ".parquet"
_OPENERS = 16
"""Files that are looked at together where a run starts."""
_STREAMED = "Images are streamed from hf: data sets and from parquet files."


def open_streams(config: DataConfig, *, needs_labels: bool = True) -> OfficialSplits:
    """Open an ``hf:`` data set, a parquet file or a folder of them, of which labels alone are read.

    Args:
        config: name, splits and columns.
        needs_labels: False allows there to be none.

    Raises:
        UserError: they are something else, out of reach or damaged, or the columns don't fit.
    """
    if config.unlabelled is not None:
        raise UserError(
            "data.streaming is set, and data.unlabelled names files that would be mixed among streamed ones.",
            "Leave one of them out.",
        )
    scheme, _, rest = config.name.partition(":")
    if scheme == "hf" and rest:
        files, by_split, features, notes = _of_hub(rest, config)
    else:
        files, by_split, notes = _on_disk(config)
        features = None
    found = {split: _look_at(files, paths, config) for split, paths in by_split.items()}
    features = features or found["train"].features
    column = find_image_column(features, config.image_column)
    labels = _label_columns(features, config, column)
    tables: dict[str, Dataset] = {}
    streams: dict[str, Stream] = {}
    for split, looked_at in found.items():
        streams[split], tables[split] = _read_labels(files, looked_at, features, column, labels)
        if not len(streams[split]):
            raise UserError(f"The parquet files of the {split} split hold no rows.", "Name other data.")
    notes = [*notes, *_told(streams, config)]
    make = partial(_source, streams=streams, buffer=config.stream_buffer)
    return official_splits(tables, config, needs_labels, None, notes, make_source=make)


class _LookedAt(NamedTuple):
    """The files of a split before it is known which columns are read: (path, size, version, footer) each."""

    files: list[tuple[str, int, str, FileMetaData]]

    @property
    def features(self) -> Features:
        from datasets import Features

        return Features.from_arrow_schema(self.files[0][3].schema.to_arrow_schema())


def _of_hub(name: str, config: DataConfig) -> tuple[Any, dict[str, list[str]], Features | None, list[str]]:
    """Return the file system of ``hf:NAME``, its files by split, its features where its card has them, and notes."""
    import datasets
    from fsspec.core import url_to_fs

    with asking_hub(name):
        builder = datasets.load_dataset_builder(name, name=config.subset)
        files = {str(split): [str(path) for path in of] for split, of in (builder.config.data_files or {}).items()}
    others = [path for of in files.values() for path in of if not path.endswith(SUFFIX)]
    if others or not any(files.values()):
        example = f" such as {posixpath.basename(others[0])}" if others else ""
        raise UserError(
            f"data.streaming is set, and hf:{name} is made of other files than parquet{example}.",
            "Leave it out: the data are downloaded then. Or name the parquet files that the hub has made of them,"
            " where it has.",
        )
    chosen, notes = choose_splits(files, config.name, config.splits)
    with asking_hub(name):
        system, _ = url_to_fs(chosen["train"][0])
        stripped = {split: [system._strip_protocol(path) for path in of] for split, of in chosen.items()}
    return system, stripped, builder.info.features, notes


def _on_disk(config: DataConfig) -> tuple[Any, dict[str, list[str]], list[str]]:
    from fsspec.implementations.local import LocalFileSystem

    path = expand_user(config.name)
    if not path.exists() or (path.is_file() and path.suffix.lower() != SUFFIX):
        raise UserError(
            f"data.streaming is set, and {config.name} is {'no parquet file' if path.exists() else 'not there'}.",
            f"{_STREAMED} Leave it out for others: files in folders and tar files are read in place anyway.",
        )
    if config.subset is not None:
        raise UserError(f"data.subset is set, but {config.name} is not a data set of the hub.", "Leave it out.")
    system = LocalFileSystem()
    if path.is_file():
        files, notes = choose_splits({"train": [str(path)]}, config.name, config.splits)
    else:
        files, notes = files_by_split(path, SUFFIX, config.splits)
    if not any(files.values()):
        raise UserError(f"data.streaming is set, and there are no parquet files in {path}.", _STREAMED)
    return system, files, notes


def _look_at(files: Any, paths: Sequence[str], config: DataConfig) -> _LookedAt:
    """Read the footers of files."""

    def look_at(path: str) -> tuple[str, int, str, FileMetaData]:
        with clear(f"{path} couldn't be read", _what_to_do(config)):
            known = files.info(path)
            with files.open(path, "rb", cache_type="none") as file:
                footer = read_parquet(file).metadata
        content = io.BytesIO()
        footer.write_metadata_file(content)
        version = f"{known.get('blob_id') or known.get('ETag') or ''}:{hashlib.sha256(content.getvalue()).hexdigest()}"
        return path, int(known["size"]), version, footer

    with ThreadPoolExecutor(_OPENERS) as pool:
        return _LookedAt(list(pool.map(look_at, paths)))


def _what_to_do(config: DataConfig) -> str:
    if config.name.startswith("hf:"):
        return "Without access to the hub, download its parquet files elsewhere and name their folder."
    return "Expected whole parquet files with a column of images and one of labels."


def _label_columns(features: Features, config: DataConfig, images: str) -> list[str]:
    """Return the columns that may have the labels, which are read as a whole."""
    from datasets import ClassLabel

    if config.label_column is not None:
        return [config.label_column] if config.label_column in features else []
    usual = {*LABEL_NAMES, *LABEL_COLUMNS}
    return [
        name
        for name, feature in features.items()
        if name != images
        and not holds_images(feature)
        and (
            isinstance(feature, ClassLabel)
            or name in usual
            or (config.label_kind == "classes" and is_discrete(feature))
        )
    ]


def _read_labels(
    files: Any, looked_at: _LookedAt, features: Features, images: str, labels: Sequence[str]
) -> tuple[Stream, Dataset]:
    """Return a split's images, and a table of its columns, in which all but ``labels`` are empty."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import table_cast

    schema = features.arrow_schema

    def read(file: tuple[str, int, str, FileMetaData]) -> tuple[ParquetPart, pa.Table]:
        path, size, version, footer = file
        name = posixpath.basename(path)
        present = footer.schema.to_arrow_schema().names
        if lacking := [column for column in (images, *labels) if column not in present]:
            raise UserError(
                f"{name} has no column {lacking[0]}; its columns are {', '.join(present)}.",
                "Every file needs the same columns.",
            )
        part = ParquetPart(path, name, size, version, footer, _leaf(footer, images, name))
        table = pa.table({})
        if labels:
            with (
                clear(f"The labels in {name} couldn't be read", RESUME),
                files.open(path, "rb", cache_type="none") as opened,
            ):
                table = read_parquet(opened, footer, ahead=True).read(columns=list(labels))
                table = table_cast(table, pa.schema(map(schema.field, labels)))
        empty = {field.name: pa.nulls(footer.num_rows, field.type) for field in schema if field.name not in labels}
        whole = {**empty, **{column: table[column] for column in labels}}
        return part, pa.table([whole[field.name] for field in schema], schema=schema)

    with ThreadPoolExecutor(_OPENERS) as pool:
        found = list(pool.map(read, looked_at.files))
    return Stream(files, [part for part, _ in found]), Dataset(pa.concat_tables([table for _, table in found]))


def _leaf(footer: FileMetaData, images: str, name: str) -> str:
    """Return the name of the column of bytes in a footer."""
    columns = [footer.schema.column(place) for place in range(len(footer.schema))]
    for leaf in (f"{images}.bytes", images):
        if any(column.path == leaf and column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "NONE"
               for column in columns):  # fmt: skip
            return leaf
    kind = footer.schema.to_arrow_schema().field(images).type
    raise UserError(
        f"data.streaming is set, and the column {images} of {name} holds {kind}, not images.",
        "Images are encoded bytes in the cells; data.image_column names another column. Files that cells name by their"
        " paths are read where they lie, without data.streaming.",
    )


def _told(streams: Mapping[str, Stream], config: DataConfig) -> list[str]:
    """Return what is streamed, and what that means for this data set."""
    parts = [part for stream in streams.values() for part in stream.parts]
    rows, blocks = (sum(int(s.starts[-1]) for s in streams.values()), sum(map(len, streams.values())))
    train = streams["train"]
    in_memory = sum(part.image_bytes()[1] for part in train.parts) / len(train)
    mixed = train.blocks_for(config.stream_buffer)
    images, held = round(mixed * int(train.starts[-1]) / len(train)), min(mixed + AHEAD, len(train))
    size = sum(part.image_bytes()[0] for part in parts)
    notes = [
        f"Streamed: {counted(len(parts), 'parquet file')} with {counted(rows, 'row')} in"
        f" {counted(blocks, 'row group')}, {_shown(size)} of images. An epoch reads each row group once and mixes about"
        f" {images} images (data.stream_buffer); at most {counted(held, 'row group')}, about"
        f" {_shown(held * in_memory)}, {'is' if held == 1 else 'are'} held in memory."
    ]
    if "validation" not in streams:
        train_size = sum(part.image_bytes()[0] for part in train.parts)
        notes.append(
            f"There is no validation split among the streamed files: each validation reads all {_shown(train_size)} of"
            " the training split once more."
        )
    return notes


def _source(
    table: Dataset, labels: Sequence[int], *, column: str, root: Path | None, split: str, streams: Mapping[str, Stream],
    buffer: int,
) -> StreamSource:  # fmt: skip
    return StreamSource(
        table, column, labels, split=split, stream=streams[split], mixed=streams[split].blocks_for(buffer)
    )


def _shown(size: float) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
