"""What is in a data folder: one pass over its entries, in which no pipe, socket or device is opened."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from kdcli.base.errors import reading
from kdcli.data.images.decode import FORMATS
from kdcli.data.index import Entries, Index


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMAGE_SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
"""Of files that are images by their name alone."""
SIDE_SUFFIXES = _words(
    ".txt .json .jsonl .csv .tsv .xml .yaml .yml .toml .ini .cfg .md .rst .html .htm .log .db .py .ipynb .sh .url .lnk"
    " .doc .docx .odt .pdf .bak .tmp"
)
"""Of files that lie beside samples and are none."""
_NO_IMAGES = SIDE_SUFFIXES | _words(
    ".heic .heif .hif .jxl .svg .psd .ico .cur .tga .eps .ps .exr .hdr .dcm .nii .xcf"
    " .dng .nef .cr2 .cr3 .arw .orf .rw2 .raf .pef .srw .raw"  # of which PIL would read the small preview
    " .npy .npz .mat .h5 .hdf5 .pkl .pickle .pt .pth .safetensors .parquet .arrow .tfrecord .lmdb .mdb"
    " .zip .tar .gz .tgz .bz2 .xz .7z .rar .mp4 .avi .mov .mkv .webm .mpg .mpeg .wav .mp3 .flac .ogg"
)
"""Of files that are not looked into."""
_SUFFIX = re.compile(r"\.[a-z0-9_]{1,12}")
_HIDDEN = "hidden"
_ACCEPTED = 16
"""Bytes that PIL tells formats by."""


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        files: those that are read, by folder and name.
        unread: kind (a suffix, or another phrase) -> number of entries that are not.
    """

    files: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith((".", "__MACOSX"))


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, or ``""`` where what is behind the last point is none."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - called for every file of a large set
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def is_image(path: str) -> bool:
    """Whether :func:`kdcli.data.images.decode.decode_image` may read a file: by its suffix, else by its content."""
    suffix = suffix_of(path)
    if suffix in IMAGE_SUFFIXES or suffix in _NO_IMAGES:
        return suffix in IMAGE_SUFFIXES
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            start = file.read(_ACCEPTED)
        if not any(accept is None or accept(start) for _, accept in map(Image.OPEN.__getitem__, FORMATS)):
            return False
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS):
            return True
    except Exception:  # as in decode_image
        return False


def list_files(folder: str | os.PathLike[str], reads: Callable[[str], bool], *, deep: bool = True) -> Listing:
    """Return the regular files below ``folder`` that ``reads`` takes, by folder and name, and what else is there.

    Links are followed, but not to a folder above them. Hidden files and folders are left out; hidden images are
    counted.

    Args:
        folder: where to look.
        reads: whether the file of a path is one.
        deep: also in the folders below.

    Raises:
        UserError: a folder can't be read.
    """
    with Index() as index:
        return _list_files(os.fspath(folder), reads, deep, index)


def _list_files(start: str, reads: Callable[[str], bool], deep: bool, index: Index) -> Listing:
    listing = Listing()
    found: list[tuple[str, list[str]]] = []
    with reading(start):
        above_all = frozenset(_identity(os.stat(parent)) for parent in Path(start).resolve().parents)  # noqa: PTH116
    pending = [(start, above_all)]
    while pending:
        path, above = pending.pop()
        with reading(path):
            status = os.stat(path)  # noqa: PTH116 - as above
            here = above | {_identity(status)}
            entries = index.entries(path, status, partial(_look_through, path, here))
        listing.unread.update(entries.others)
        if deep:
            pending += [(os.path.join(path, name), here) for name in entries.folders]  # noqa: PTH118 - as above
        files, prefix = [], os.path.join(path, "")  # noqa: PTH118 - as above
        for name in entries.files:
            file = prefix + name
            if reads(file):
                files.append(file)
            else:
                listing.unread[suffix_of(name) or "without a suffix"] += 1
        found.append((path, files))
    listing.files = [file for _, files in sorted(found) for file in files]
    listing.unread = +listing.unread
    return listing


def _look_through(path: str, here: frozenset[tuple[int, int]]) -> Entries:
    """Return what lies in a folder; ``here`` are the folder and those above it."""
    found = Entries()
    with os.scandir(path) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                is_image_file = suffix_of(entry.name) in IMAGE_SUFFIXES and not entry.name.startswith("._")
                found.others[_HIDDEN] += is_image_file
                continue
            kind = _kind(entry, above=here)
            found.is_plain = found.is_plain and not entry.is_symlink()
            if kind == "file":
                found.files.append(entry.name)
            elif kind == "folder":
                found.folders.append(entry.name)
            else:
                found.others[kind] += 1
    found.files.sort()
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str], *, above: frozenset[tuple[int, int]]) -> str:
    """Return ``folder``, ``file`` or what else an entry is."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            is_loop = entry.is_symlink() and _identity(entry.stat()) in above
            return "links to a folder above" if is_loop else "folder"
        if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110 - as above
            return "broken links"
    except OSError:  # a link to itself
        return "broken links"
    return "pipes, sockets or devices"


def lost(unread: Mapping[str, int]) -> int:
    """Return how many of the entries that are not read may have been meant as samples."""
    return sum(count for kind, count in unread.items() if kind not in SIDE_SUFFIXES and kind != _HIDDEN)


def told(unread: Mapping[str, int], *, limit: int = 6) -> str:
    """Return the counts in words: ``.heic: 7, .json: 3``."""
    ordered = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{kind}: {count}" for kind, count in ordered[:limit]]
    if rest := sum(count for _, count in ordered[limit:]):
        shown.append(f"other kinds: {rest}")
    return ", ".join(shown)


def unread_notes(unread: Mapping[str, int]) -> list[str]:
    """Return a note on what is not read, if there is anything."""
    count = sum(unread.values())
    return [f"Not read: {count} file{'' if count == 1 else 's'} ({told(unread)})."] if count else []
