"""What large folders held and what files were made of, kept in the user's cache folder for the next start."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from kdcli.base.files import cache_folder

SWITCH = "KDCLI_INDEX"
"""The variable of the environment that turns it off, as ``off``."""
LARGE = 500
"""A folder of fewer entries is looked through each time, and so many new digests are worth a write."""
_SETTLED = 2 * 10**9
"""Nanoseconds: what has changed later than this before it was looked at may change again within the same time stamp."""
_UNUSED = 90 * 24 * 3600
"""Seconds after which what nobody has asked for is removed."""
_BUSY = 2.0
"""Seconds to wait for another process."""

_TABLES = """
CREATE TABLE IF NOT EXISTS folders
    (path TEXT PRIMARY KEY, state TEXT, files TEXT, folders TEXT, others TEXT, used REAL);
CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, state TEXT, digest TEXT, used REAL);
"""


@dataclass
class Entries:
    """What lies right in a folder, hidden entries left out.

    Attributes:
        files: names of regular files, sorted.
        folders: names.
        others: kind -> number of all else.
        is_plain: whether there are no links, what is behind which may change without the folder.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    is_plain: bool = True


class Index:
    """A small data base of folders and files, which several processes may use at once.

    A folder is known again by its own time stamps, device and number, which change when an entry is added, removed or
    renamed; a file by its size and likewise. Of the two time stamps, of content and of status, programs that copy or
    unpack set the first alone. Nothing depends on it but time: where it can't be read or written, or is
    turned off, all is looked up anew. Used in a ``with`` statement, at whose end what is new is written.
    """

    def __init__(self) -> None:
        self._file = cache_folder() / "index.sqlite"
        self._is_on = os.environ.get(SWITCH, "").lower() not in ("off", "0", "no", "false")
        self._base: sqlite3.Connection | None = None
        self._folders: list[tuple[str, str, str, str, str, float]] = []
        self._digests: list[tuple[str, str, str, float]] = []
        self._used: dict[str, set[str]] = {"folders": set(), "digests": set()}

    def __enter__(self) -> Self:
        if self._is_on and self._file.is_file():
            with suppress(sqlite3.Error, OSError):
                self._base = sqlite3.connect(self._file, timeout=_BUSY)
                self._base.executescript(_TABLES)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_on and (self._folders or len(self._digests) >= LARGE):
            with suppress(sqlite3.Error, OSError):
                self._write()
        if self._base is not None:
            self._base.close()
            self._base = None

    def _write(self) -> None:
        if self._base is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self._file, timeout=_BUSY)
            self._base.executescript(_TABLES)
        now = time.time()
        with self._base as base:  # one transaction
            base.executemany("INSERT OR REPLACE INTO folders VALUES (?, ?, ?, ?, ?, ?)", self._folders)
            base.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", self._digests)
            for table, paths in self._used.items():
                base.executemany(f"UPDATE {table} SET used = ? WHERE path = ?", ((now, path) for path in paths))
                base.execute(f"DELETE FROM {table} WHERE used < ?", (now - _UNUSED,))

    def entries(self, path: str, status: os.stat_result, look: Callable[[], Entries]) -> Entries:
        """Return what lies in a folder.

        Args:
            path: of the folder.
            status: of the folder, from before ``look`` is called.
            look: looks through it.
        """
        key, state = os.path.abspath(path), _state_of(status)  # noqa: PTH100 - for every folder
        if (found := self._find("folders", key, state, "files, folders, others")) is not None:
            files, folders, others = found
            counts = Counter(
                {kind: int(number) for number, _, kind in (line.partition(" ") for line in _lines(others))}
            )
            return Entries(_lines(files), _lines(folders), counts)
        started = time.time_ns()
        entries = look()
        if self._is_on and len(entries.files) >= LARGE and entries.is_plain and _is_settled(status, started):
            kinds = (f"{number} {kind}" for kind, number in entries.others.items())
            row = ("\0".join(entries.files), "\0".join(entries.folders), "\0".join(kinds))
            if _is_text(key, *row):
                self._folders.append((key, state, *row, time.time()))
        return entries

    def digest(self, path: str, make: Callable[[], str]) -> str:
        """Return the digest of a file.

        Args:
            path: of the file.
            make: reads it.
        """
        if not self._is_on:
            return make()
        key = os.path.abspath(path)  # noqa: PTH100 - for every file
        started = time.time_ns()
        try:
            status = os.stat(path)  # noqa: PTH116 - for every file
        except OSError:
            return make()
        state = f"{status.st_size} {_state_of(status)}"
        if (found := self._find("digests", key, state, "digest")) is not None:
            return str(found[0])
        digest = make()
        if _is_settled(status, started) and _is_text(key):
            self._digests.append((key, state, digest, time.time()))
        return digest

    def _find(self, table: str, key: str, state: str, columns: str) -> tuple[str, ...] | None:
        if self._base is None or not _is_text(key):
            return None
        found = None
        with suppress(sqlite3.Error):
            row = self._base.execute(f"SELECT state, {columns} FROM {table} WHERE path = ?", (key,)).fetchone()
            if row is not None and row[0] == state:
                found = row[1:]
                self._used[table].add(key)
        return found


def _state_of(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {status.st_dev}"


def _is_settled(status: os.stat_result, now: int) -> bool:
    return status.st_mtime_ns < now - _SETTLED


def _is_text(*values: str) -> bool:
    """Whether names have no bytes that are no text, which the data base doesn't take."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(text: str) -> list[str]:
    return text.split("\0") if text else []
