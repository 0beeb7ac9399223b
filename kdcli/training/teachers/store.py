"""What a teacher gave, on disk: rows of tensors in shards, found again by numbers.

A store is a folder with a folder for each group of rows (an epoch's augmentation, say). A shard is a file of
safetensors, which is read by mapping it into memory: ``keys`` (n,), and tensors (n, ...) by name. It is called by the
SHA-256 of its content, is written whole or not at all, and never changed: several processes may write and read at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdcli.base.checksums import file_digest
from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors, write_atomically

SHARD_BYTES = 64 * 2**20
"""Rows are written where they come to so much."""
SHARD_SECONDS = 60.0
"""Or where the first of them has waited for so long: a killed process loses no more."""
_KEYS = "keys"
_SUFFIX = ".safetensors"
_MORE_ROOM = "Free some space, or name another folder; what is there already is used."

Keys = NDArray[np.int64]


class _Layout(NamedTuple):
    """How a tensor was before it was stored.

    Attributes:
        dtype: that it had.
        order: its dimensions as they lay in memory, from the outermost.
    """

    dtype: torch.dtype
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Layout:
        """Return that of a tensor (n, ...)."""
        strides = tensor.stride()
        inner = sorted(range(1, tensor.ndim), key=lambda dim: -strides[dim])
        return cls(tensor.dtype, (0, *inner))

    def stored(self, tensor: Tensor) -> Tensor:
        """Return a tensor of this layout as it is stored."""
        return tensor.permute(self.order).contiguous()

    def view(self, stored: Tensor) -> Tensor:
        """Return what was stored with its dimensions in their places, and no copy."""
        return stored.permute([self.order.index(dim) for dim in range(len(self.order))])


@dataclass
class _Shard:
    """One file, opened when its rows are first wanted."""

    path: Path
    keys: Keys
    layouts: Mapping[str, _Layout]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    is_whole: bool | None = None

    @classmethod
    def read(cls, path: Path) -> _Shard:
        """Read its keys and names.

        Raises:
            ValueError, KeyError, TypeError, OSError, SafetensorError: it is damaged.
        """
        with safe_open(path, "pt") as file:
            layouts = {
                name: _Layout(getattr(torch, dtype), tuple(order))
                for name, (dtype, order) in json.loads(file.metadata()["layouts"]).items()
            }
            return cls(path, file.get_tensor(_KEYS).numpy(), layouts)

    def check(self) -> bool:
        """Whether its content is what it was written as; looked at once."""
        if self.is_whole is None:
            try:
                self.is_whole = file_digest(self.path) == self.path.stem
            except OSError:
                self.is_whole = False
        return self.is_whole

    def rows(self, name: str, rows: Keys) -> tuple[Tensor, _Layout]:
        """Return some rows of a tensor as they are stored, in memory of their own."""
        if name not in self.tensors:
            with safe_open(self.path, "pt") as file:
                self.tensors[name] = file.get_tensor(name)  # a map of the file
        return self.tensors[name][torch.from_numpy(rows)], self.layouts[name]


@dataclass
class _Index:
    """Where the rows of one name are: their keys in order, and shard and row of each."""

    keys: Keys
    shards: NDArray[np.int32]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, shards: Sequence[_Shard], name: str) -> _Index:
        """Return that of all shards which have the name; of rows with one key the first holds."""
        having = [(number, shard.keys) for number, shard in enumerate(shards) if name in shard.layouts]
        keys = np.concatenate([np.empty(0, np.int64), *(keys for _, keys in having)])
        numbers = np.concatenate([np.empty(0, np.int32), *(np.full(len(k), n, np.int32) for n, k in having)])
        rows = np.concatenate([np.empty(0, np.int64), *(np.arange(len(k)) for _, k in having)])
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], numbers[order], rows[order])

    def find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the place of each key in the index, and whether it is there."""
        places = np.searchsorted(self.keys, keys)
        inside = places < len(self.keys)
        found = np.zeros(len(keys), dtype=bool)
        found[inside] = self.keys[places[inside]] == keys[inside]
        return places, found


class _Group:
    """The shards of one folder, as far as they were seen."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self._warn = folder, warn
        self.shards: list[_Shard] = []
        self._seen: set[str] = set()
        self._indices: dict[str, _Index] = {}
        self._changed_at = -1

    def refresh(self) -> bool:
        """Look for shards that were not there before; return whether there are any."""
        try:
            changed_at = self.folder.stat().st_mtime_ns
        except OSError:
            return False
        if changed_at == self._changed_at:
            return False
        self._changed_at = changed_at
        new = sorted(file for file in self.folder.glob(f"*{_SUFFIX}") if file.name not in self._seen)
        for file in new:
            self._seen.add(file.name)
            try:
                self.shards.append(_Shard.read(file))
            except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError):
                self._forget(file)
        self._indices.clear()
        return bool(new)

    def look_again(self) -> None:
        """Have the next :meth:`refresh` look, also where the folder's time stands still: it goes in ticks."""
        self._changed_at = -1

    def index(self, name: str) -> _Index:
        """Return where the rows of a name are."""
        if name not in self._indices:
            self._indices[name] = _Index.of(self.shards, name)
        return self._indices[name]

    def present(self, keys: Keys, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return of which keys all names are there, bool (n,)."""
        found = np.ones(len(keys), dtype=bool)
        for name in names:
            found &= self.index(name).find(keys)[1]
        return found

    def read(self, keys: Keys, name: str) -> Tensor | None:
        """Return a tensor (n, ...) of rows that are there; None where a shard turns out to be damaged."""
        index = self.index(name)
        places, _ = index.find(keys)
        shards, rows = index.shards[places], index.rows[places]
        whole: Tensor | None = None
        layout: _Layout | None = None
        numbers = np.unique(shards)
        for number in numbers:
            shard = self.shards[number]
            if not shard.check():
                self._drop(shard)
                return None
            chosen = shards == number
            part, own = shard.rows(name, rows[chosen])
            if len(numbers) == 1:
                return own.view(part).to(own.dtype)
            if whole is None or layout is None:
                layout = own
                whole = torch.empty((len(keys), *part.shape[1:]), dtype=own.dtype)
            layout.view(whole)[torch.from_numpy(chosen)] = own.view(part).to(own.dtype)
        assert whole is not None
        assert layout is not None
        return layout.view(whole)

    def _drop(self, shard: _Shard) -> None:
        self.shards.remove(shard)
        self._indices.clear()
        self._forget(shard.path)

    def _forget(self, file: Path) -> None:
        """Remove a damaged file, where that may be, and tell of it."""
        with contextlib.suppress(OSError):
            file.unlink()
        self._warn(f"{file} of the teacher cache is damaged, and is left out: its outputs are computed anew.")


class Store:
    """Rows of tensors by (group, key), in a folder.

    Args:
        folder: of the store, which need not exist.
        warn: told of damaged files.
        refused: told of what the file system refuses, once; nothing is written from then on. What it raises goes on.
    """

    def __init__(self, folder: Path, *, warn: Callable[[str], None], refused: Callable[[UserError], None]) -> None:
        self.folder = folder
        self._warn, self._refused = warn, refused
        self._groups: dict[str, _Group] = {}
        self._pending: list[tuple[Keys, dict[str, Tensor], dict[str, _Layout]]] = []
        self._pending_group, self._pending_bytes, self._pending_since = "", 0, 0.0
        self.is_open = True
        """Whether rows are still written."""

    def count(self, group: str, names: Sequence[str]) -> int:
        """Return how many keys of a group have all names."""
        found = self._group(group)
        found.refresh()
        if not names:
            return 0
        keys = np.unique(found.index(names[0]).keys)
        return int(found.present(keys, names).sum())

    def present(self, group: str, keys: Keys, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return of which keys of a group all names are there, bool (n,)."""
        found = self._group(group)
        found.refresh()
        return found.present(keys, names)

    def read(self, group: str, keys: Keys, names: Sequence[str]) -> dict[str, Tensor] | None:
        """Return tensors (n, ...) on the CPU, as they were before they were stored; None unless all rows are there."""
        found = self._group(group)
        if not found.present(keys, names).all():
            if self._waits(group, keys):
                self.flush()
            if not (found.refresh() and found.present(keys, names).all()):
                return None
        tensors = {}
        for name in names:
            tensor = found.read(keys, name)
            if tensor is None:
                return self.read(group, keys, names)  # without the damaged shard
            tensors[name] = tensor
        return tensors

    def add(self, group: str, keys: Keys, tensors: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
        """Take in rows; they are written with those that come after them.

        Args:
            group: of all rows.
            keys: int64 (n,).
            tensors: (n, ...) by name: as they are to be read again, but for rounding.
            stored: the same in the dtypes that they are stored in.
        """
        if not self.is_open:
            return
        if group != self._pending_group:
            self.flush()
        if not self._pending:
            self._pending_group, self._pending_since = group, time.monotonic()
        layouts = {name: _Layout.of(tensor) for name, tensor in tensors.items()}
        rows = {name: layouts[name].stored(tensor.cpu()) for name, tensor in stored.items()}
        self._pending.append((keys, rows, layouts))
        self._pending_bytes += sum(tensor.nbytes for tensor in rows.values())
        if self._pending_bytes >= SHARD_BYTES or time.monotonic() - self._pending_since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in, but for what another process has written meanwhile."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if not pending or not self.is_open:
            return
        try:
            self._write(self._pending_group, pending)
        except UserError as error:
            self.is_open = False
            self._refused(error)

    def _waits(self, group: str, keys: Keys) -> bool:
        """Whether rows with these keys, or of another group, are still to be written."""
        if not self._pending or group != self._pending_group:
            return bool(self._pending)
        return bool(np.isin(keys, np.concatenate([keys for keys, _, _ in self._pending])).any())

    def _write(self, group: str, pending: list[tuple[Keys, dict[str, Tensor], dict[str, _Layout]]]) -> None:
        folder = self.folder / group
        with clear_os_errors(folder, hint=_MORE_ROOM):
            folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            found = self._group(group)
            found.refresh()
            for layouts in dict.fromkeys(tuple(layouts.items()) for _, _, layouts in pending):
                alike = [(keys, rows) for keys, rows, own in pending if tuple(own.items()) == layouts]
                keys = np.concatenate([keys for keys, _ in alike])
                new = torch.from_numpy(~found.present(keys, [name for name, _ in layouts]))
                if not bool(new.any()):
                    continue
                tensors = {name: torch.cat([rows[name] for _, rows in alike])[new] for name, _ in layouts}
                tensors[_KEYS] = torch.from_numpy(keys)[new]
                told = {name: [str(dtype).removeprefix("torch."), order] for name, (dtype, order) in layouts}
                self._write_shard(folder, tensors, {"layouts": json.dumps(told)})
                found.look_again()

    @staticmethod
    def _write_shard(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        content = save(tensors, metadata)
        file = folder / f"{hashlib.sha256(content).hexdigest()}{_SUFFIX}"
        with clear_os_errors(folder, hint=_MORE_ROOM):
            write_atomically(file, lambda new: new.write_bytes(content))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing meanwhile, where the file system has locks.

        Raises:
            UserError: nothing can be written there.
        """
        lock = FileLock(self.folder / ".lock")
        without_locks = contextlib.suppress(NotImplementedError)  # some file systems: rows may then be there twice
        with clear_os_errors(self.folder, hint=_MORE_ROOM), without_locks:
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _group(self, name: str) -> _Group:
        """Return a group; of the others none is kept open, as a training goes from one to the next."""
        if name not in self._groups:
            self._groups = {name: _Group(self.folder / name, self._warn)}
        return self._groups[name]
