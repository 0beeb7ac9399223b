"""Images in parquet files that are read while training goes on: of the hub or on disk, a block at a time.

A block is a row group of a file. The footers of the files say where the blocks lie, and the column of labels is read at
the start; images are read a block at a time, in the order in which an epoch needs them, and forgotten behind it. So
memory does not grow with the data. Order, splits and resume are those of any other data: all that is different is which
order of an epoch is drawn (:func:`~kdcli.data.epoch.block_order`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcli.base.errors import UserError
from kdcli.data.epoch import Blocks, Order
from kdcli.data.images.decode import File
from kdcli.data.images.sources import ImageSource, origins
from kdcli.data.images.tables import TableSource

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow.parquet import FileMetaData, ParquetFile

AHEAD = 2
"""Blocks that are read before they are needed."""
RESUME = "A run that this stopped goes on from its last checkpoint: kdcli distill --resume RUN."


@dataclass(frozen=True)
class ParquetPart:
    """One parquet file.

    Attributes:
        path: as its file system has it.
        name: for messages.
        size: in bytes.
        version: of the content, as far as the file system and the footer tell.
        footer: what the file says of its row groups.
        leaf: the name of the column of the images' bytes in the footer, such as ``image.bytes``.
    """

    path: str
    name: str
    size: int
    version: str
    footer: FileMetaData
    leaf: str

    def image_bytes(self) -> tuple[int, int]:
        """Return how many bytes all images are in the file, and in memory."""
        stored = held = 0
        for group in map(self.footer.row_group, range(self.footer.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema == self.leaf:
                    stored, held = stored + column.total_compressed_size, held + column.total_uncompressed_size
        return stored, held


class Stream:
    """The images of a split, a block at a time. Picklable.

    Args:
        files: fsspec's file system.
        parts: the files in their order, with images in each.
    """

    def __init__(self, files: Any, parts: Sequence[ParquetPart]) -> None:
        self.parts = tuple(parts)
        self._files = files
        groups = [(number, group) for number, part in enumerate(parts) for group in range(part.footer.num_row_groups)]
        self._groups = [(number, group) for number, group in groups if _rows(parts[number], group)]
        self.starts: NDArray[np.int64] = np.cumsum([0, *(_rows(parts[part], group) for part, group in self._groups)])
        """Of the blocks, by rows of the split; behind them the number of rows."""

    def __len__(self) -> int:
        return len(self._groups)

    def blocks_for(self, images: int) -> int:
        """Return how many blocks have about so many images, at least one."""
        return min(max(round(images * len(self) / int(self.starts[-1])), 1), len(self))

    def block_of(self, rows: Any) -> Any:
        """Return the number of the block that each of ``rows`` is in, int64 of their shape."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def read(self, block: int) -> pa.ChunkedArray:
        """Return the bytes of a block's images.

        Raises:
            UserError: the file can't be reached any more, is damaged or is another one.
        """
        number, group = self._groups[block]
        part = self.parts[number]
        with clear(f"{part.name} couldn't be read in its row group {group}", RESUME), self._files.open(
            part.path, "rb", cache_type="none"
        ) as file:  # fmt: skip
            column = (
                read_parquet(file, part.footer).read_row_group(group, columns=[part.leaf], use_threads=False).column(0)
            )
            return _flat(column)

    def cell(self, images: pa.ChunkedArray, block: int, row: int) -> bytes | None:
        """Return one image's bytes out of its block; None of an empty cell."""
        return images[int(row - self.starts[block])].as_py() or None

    def describe(self, row: int) -> str:
        """Return the file of a row, and the row in it."""
        number = self._groups[int(self.block_of(row))][0]
        return f"{self.parts[number].name}[{row - self.first_row(number)}]"

    def first_row(self, part: int) -> int:
        """Return at which row of the split a file begins."""
        return sum(other.footer.num_rows for other in self.parts[:part])


class StreamSource(TableSource):
    """Images of a stream. A single image can be had at any time, at the cost of its block.

    Args:
        table: a row an image.
        column: of the images.
        labels: one class index a row.
        split: its name.
        stream: that has the images.
        mixed: blocks whose images an epoch mixes.
    """

    def __init__(
        self, table: Dataset, column: str, labels: Iterable[int], *, split: str, stream: Stream, mixed: int
    ) -> None:
        super().__init__(table, column, labels, split=split)
        self.stream, self._mixed = stream, mixed
        self._lent: Mapping[int, bytes | None] = {}
        self._last: tuple[int, pa.ChunkedArray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lent": {}, "_last": None}

    @cached_property
    def blocks(self) -> Blocks:
        """The row groups."""
        return Blocks(np.repeat(np.arange(len(self.stream)), np.diff(self.stream.starts)), self._mixed)

    @contextmanager
    def lent(self, cells: Mapping[int, bytes | None]) -> Iterator[None]:
        """Let images be loaded out of ``cells``, by their rows, where they are there."""
        self._lent = cells
        try:
            yield
        finally:
            self._lent = {}

    def encoded(self, index: int) -> File | None:
        """Return one image's bytes: lent ones, or out of its block, of which the last one is kept."""
        if index in self._lent:
            return self._lent[index]
        block = int(self.stream.block_of(index))
        if self._last is None or self._last[0] != block:
            self._last = None  # before the next one is read
            self._last = block, self.stream.read(block)
        return self.stream.cell(self._last[1], block, index)

    def some(self, count: int) -> Iterable[int]:
        """Return the first images, of one block."""
        return range(min(count, int(self.stream.starts[1])))

    def describe(self, index: int) -> str:
        """Return the file and the row in it."""
        return self.stream.describe(index)


class Fed(NamedTuple):
    """A key of the loader with the images that it needs.

    Attributes:
        keys: of a batch.
        cells: row -> bytes; None of an empty cell.
    """

    keys: Any
    cells: dict[int, bytes | None]


class Feed:
    """A sampler that reads the blocks of its batches, each once, a few ahead, and gives every key its images along.

    It runs in the process that trains, so that loader processes get bytes, and none of them reads.

    Args:
        batches: the sampler of a training, or which samples each batch has.
        source: what they are of.
    """

    def __init__(self, batches: Order | Sequence[range], source: ImageSource) -> None:
        self._batches = batches
        self._stream = stream_of(source).stream
        self._ids = source.ids

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Fed]:
        stream = self._stream
        rows = [self._rows(keys) for keys in self._batches]
        of = [stream.block_of(some) for some in rows]
        # Blocks in the order in which they are needed first, and the batch that is the last to need each.
        first = {block: place for place, block in enumerate(dict.fromkeys(b for some in of for b in some.tolist()))}
        last = {block: number for number, some in enumerate(of) for block in some.tolist()}
        held: dict[int, Future[pa.ChunkedArray]] = {}
        coming, wanted = deque(first), 0
        pool = ThreadPoolExecutor(AHEAD)
        try:
            for number, keys in enumerate(self._batches):
                needed = np.unique(of[number]).tolist()
                wanted = max(wanted, 1 + max(first[block] for block in needed))
                while coming and first[coming[0]] < wanted + AHEAD:
                    block = coming.popleft()
                    held[block] = pool.submit(stream.read, block)
                cells = {
                    row: stream.cell(held[block].result(), block, row)
                    for row, block in zip(rows[number].tolist(), of[number].tolist(), strict=True)
                }
                for block in needed:
                    if last[block] == number:
                        del held[block]
                yield Fed(keys, cells)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _rows(self, keys: Any) -> NDArray[np.int64]:
        """Return the rows of a batch: of a range, or of (view, index) each."""
        return self._ids[np.asarray(keys if isinstance(keys, range) else [index for _, index in keys], dtype=np.int64)]


def is_streamed(source: ImageSource) -> bool:
    """Whether a source's images are read a block at a time."""
    return source.blocks is not None


def parts_of(source: ImageSource, labels: Sequence[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each file that a streamed source has images of, its version, and what is taken of it: which
    images of the source they are, their rows and their ``labels``.
    """
    stream, rows = stream_of(source).stream, source.ids
    for number, part in enumerate(stream.parts):
        start = stream.first_row(number)
        places = np.flatnonzero((start <= rows) & (rows < start + part.footer.num_rows)).tolist()
        if places:
            taken = places, (rows[places] - start).tolist(), [labels[place] for place in places]
            yield part.name, f"{part.size}:{part.version}", repr(taken)


def stream_of(source: ImageSource) -> StreamSource:
    """Return what the images of a streamed source are read from; its rows are the source's ids."""
    (origin,) = origins(source)
    assert isinstance(origin, StreamSource)
    return origin


def _rows(part: ParquetPart, group: int) -> int:
    return int(part.footer.row_group(group).num_rows)


def read_parquet(file: Any, footer: FileMetaData | None = None, *, ahead: bool = False) -> ParquetFile:
    """Return an open parquet file.

    Args:
        file: opened for reading.
        footer: where it has been read before.
        ahead: fetch all that is asked for in few large pieces.
    """
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file, metadata=footer, pre_buffer=ahead)


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of bytes, which may be the only one of a column of structs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


@contextmanager
def clear(what: str, hint: str) -> Iterator[None]:
    """Turn whatever the network or a library that reads the files raises into one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow, fsspec, huggingface_hub and its http client have no common one
        told = next(iter(str(error).splitlines()), "")
        raise UserError(f"{what}: {type(error).__name__}: {told}".rstrip(": "), hint) from error
