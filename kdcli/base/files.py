"""Files that are written whole or not at all, and what a killed process has left of one.

What is being written is in a folder of its own beside its place, ``.kdcli-XXXX``, whose lock the writing process holds.
The system frees the lock when the process ends, however it ends: whoever writes beside it next then removes the folder.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from kdcli.base.errors import UserError
from kdcli.base.text import redact

_PREFIX = ".kdcli-"
_LOCK = ".lock"
_FREE_SPACE = "Free some space, or name another place; a run that has a checkpoint goes on with --resume."
_NO_ROOM = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)


def cache_folder() -> Path:
    """Return kdcli's part of the user's cache folder, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdcli"


def write_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary file, then rename it to ``target``.

    Raises:
        UserError: the file system refuses; ``target`` is as it was.
    """
    with clear_os_errors(target.parent), temporary_folder(target.parent) as folder:
        file = folder / "new"
        write(file)
        _make_readable(file)
        file.replace(target)


def replace_files(folder: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write into a temporary folder beside ``folder``, then put its files in place.

    A new folder comes into being as a whole; the files of one that is there are replaced one by one, folders in it with
    the files below them.
    """
    with temporary_folder(folder.parent) as temporary:
        new = temporary / "new"
        new.mkdir()
        save(utf8_path(new))
        found = sorted(new.rglob("*"))
        for path in found:
            if path.is_file():
                _make_readable(path)
        if not folder.exists():
            new.rename(folder)
            return
        for path in found:
            target = folder / path.relative_to(new)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder in ``parent`` that is gone afterwards; what killed processes left in ``parent`` goes too."""
    remove_leftovers(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


def _locked_folder(parent: Path) -> tuple[Path, FileLock | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (FileNotFoundError, Timeout):  # another process took it for a leftover before it was locked
            continue
        except NotImplementedError:  # a file system without locks
            return folder, None
        if (folder / _LOCK).exists():
            return folder, lock
        lock.release()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were about to write into ``folder``; what a living one writes stays."""
    for left in folder.glob(f"{_PREFIX}*"):
        if left.is_symlink():  # nobody's leftover: a lock would be written to where it points
            continue
        # Of a living process, or gone by now; or a file system that can't tell, or lets nothing be removed.
        with contextlib.suppress(Timeout, NotImplementedError, OSError), FileLock(left / _LOCK, timeout=0):
            shutil.rmtree(left)


def is_leftover(path: Path) -> bool:
    """Whether ``path`` is a temporary folder, of a living process or a killed one."""
    return path.name.startswith(_PREFIX)


@cache
def _links() -> Path:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_folder(Path(tempfile.gettempdir())))


def utf8_path(path: Path) -> Path:
    """Return ``path``, or where its name is not UTF-8 a link to it that is: Rust's libraries open no others."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        link = Path(_links(), hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32] + path.suffix)
        if not link.is_symlink():
            link.symlink_to(path.absolute())
        return link
    return path


def write_redacted(file: Path, text: str) -> None:
    """Write ``text`` as UTF-8, without tokens of hubs and trackers; half characters of file names become escapes."""
    file.write_text(redact(text), encoding="utf-8", errors="backslashreplace")


def _make_readable(file: Path) -> None:
    """Give a file the permissions that new files have here: safetensors gives them to the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def link_files(source: Path, target: Path) -> None:
    """Put the files of one folder into another, by :func:`link_file`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        link_file(path, target / path.name)


def link_file(source: Path, target: Path) -> None:
    """Let ``target`` be the same file as ``source``, or a copy of it where the file system has no hard links.

    A run never changes a file in place, it replaces it: so the one stays as it is when the other goes on.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def clear_os_errors(path: Path, *, hint: str = _FREE_SPACE) -> Iterator[None]:
    """Turn the file system's refusals into one message for the user.

    Args:
        path: what is written.
        hint: what to do where there is no room.
    """
    try:
        yield
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError) as error:
        raise UserError(f"Can't write to {path}: {error.strerror}.", "Name a place that can be written to.") from error
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _os_error_in(error)
        if number not in _NO_ROOM:
            raise
        raise UserError(f"Can't write to {path}: {os.strerror(number)}.", hint) from error


def _os_error_in(error: SafetensorError) -> int | None:
    """Return the number of the system's error in what safetensors reports, which is only text."""
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else None
