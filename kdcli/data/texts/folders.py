"""Class folders of texts: ``DIR/CLASS/*.txt``, or ``DIR/train/CLASS/*.txt`` with ``val`` and ``test`` beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kdcli.base.errors import UserError
from kdcli.config.data import SplitsConfig
from kdcli.data.images.folders import split_folders
from kdcli.data.listing import Listing, is_hidden, list_files, suffix_of, told, unread_notes

_HINT = "Texts in class folders are txt files, a text each."
_BESIDE = (".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".db", ".ini", ".log", ".png", ".jpg", ".jpeg", "hidden")
"""Of files that may lie beside each text and are none."""


def read_class_folders(
    root: Path, asked: SplitsConfig | None
) -> tuple[tuple[str, ...], dict[str, tuple[list[str], list[int]]], list[str]]:
    """Return class names, split -> texts and labels, and notes; where there are no splits, ``train`` is the whole.

    Args:
        root: the data folder.
        asked: ``data.splits``.

    Raises:
        UserError: there are no texts, a class of which most files are not read, splits with other classes than
            ``train``, or folders that look like splits and are not understood.
    """
    found, notes = split_folders(root, asked, reads=_is_text)
    found = found or {"train": root}
    unread = list_files(root, _is_text, deep=False).unread
    names: tuple[str, ...] = ()
    splits = {}
    for split, folder in found.items():
        listings = _listings(folder)
        filled = tuple(name for name, listing in listings.items() if listing.files)
        names = names or filled
        if filled != names:
            raise UserError(
                f"The class folders of {folder} don't match those of {found['train']}.",
                "Every split needs the same class folders, spelt alike.",
            )
        texts, labels, damaged = [], [], 0
        for label, name in enumerate(names):
            for file in listings[name].files:
                content = Path(file).read_bytes()
                texts.append(content.decode("utf-8", errors="replace"))
                labels.append(label)
                damaged += texts[-1].encode() != content
        if damaged:
            notes.append(
                f"{damaged} texts of {split} are not UTF-8: the characters in question are replaced by \ufffd."
            )
        splits[split] = texts, labels
        unread += sum((listing.unread for listing in listings.values()), Counter())
    classes = f"Classes: the {len(names)} folders in {found['train']}; a file is a text."
    return names, splits, [classes, *notes, *unread_notes(unread)]


def _is_text(path: str) -> bool:
    return suffix_of(path) == ".txt"


def _listings(folder: Path) -> dict[str, Listing]:
    listings = {
        entry.name: list_files(entry, _is_text)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not is_hidden(entry.name)
    }
    if not any(listing.files for listing in listings.values()):
        raise UserError(f"{folder} has no texts: neither tables nor class folders of txt files.", _HINT)
    for name, listing in listings.items():
        if sum(count for kind, count in listing.unread.items() if kind not in _BESIDE) > len(listing.files):
            raise UserError(
                f"{folder / name}: {len(listing.files)} texts are read, and most files are not:"
                f" {told(listing.unread)}.",
                f"{_HINT} Convert the others, or move them elsewhere.",
            )
    return listings
