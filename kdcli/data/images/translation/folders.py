"""Two folders of images: ``A`` and ``B``, in one another or in those of the splits, or ``trainA`` and ``trainB``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdcli.base.errors import UserError
from kdcli.base.text import counted, have
from kdcli.config.data import SplitsConfig
from kdcli.data.classes import listing
from kdcli.data.listing import is_hidden, is_image, list_files, unread_notes
from kdcli.data.split_names import check_understood, match_splits

FORMS = (
    "Expected folders A/ and B/ (also in train/, val/ and test/, or with these in them), or trainA/, trainB/, testA/"
    " and testB/; a table with two columns of images, or a csv, tsv or jsonl file with two of paths; two classes of"
    " labelled images (data.kinds); images with masks (data.mask_colors); or demo:scenes-edges."
)
_JOINED = re.compile(r"(?P<split>.+?)[-_. ]?(?P<side>[AaBb])")
_NAMED = 3


@dataclass(frozen=True)
class Two:
    """The folders of one split.

    Attributes:
        a: folder of the images ``A``.
        b: likewise of ``B``.
    """

    a: Path
    b: Path


@dataclass(frozen=True)
class Folders:
    """What lies on disk.

    Attributes:
        form: in words.
        splits: by name, ``train`` among them.
        is_paired: whether this form means pairs.
        notes: one sentence each.
    """

    form: str
    splits: Mapping[str, Two]
    is_paired: bool
    notes: tuple[str, ...] = ()


def find_two(root: Path, asked: SplitsConfig | None) -> Folders | None:
    """Return the folders of every split; None where there are no such folders.

    Args:
        root: the data's folder.
        asked: ``data.splits``; of ``trainA`` the name of the split is ``train``.

    Raises:
        UserError: one of the two is missing, or the splits are not understood.
    """
    here, inner, joined = _sides(root), {}, dict[str, dict[str, Path]]()
    if here:
        return _in_two(root, _both(here, root), asked)
    for folder in _folders(root):
        if sides := _sides(folder):
            inner[folder.name] = _both(sides, folder)
        elif match := _JOINED.fullmatch(folder.name):
            joined.setdefault(match["split"], {})[match["side"].lower()] = folder
    if inner:
        names = _names(inner, root, asked)
        return Folders("folders A/ and B/ in those of the splits", {s: inner[n] for s, n in names.items()}, True)
    joined = {name: sides for name, sides in joined.items() if len(sides) == 2 or _is_split(name, asked)}
    if not joined:
        return None
    both = {name: _both(sides, root, name) for name, sides in joined.items()}
    names = _names(both, root, asked)
    told = ", ".join(f"{two.a.name}/, {two.b.name}/" for two in (both[name] for name in names.values()))
    return Folders(f"folders {told}", {split: both[name] for split, name in names.items()}, False)


def pairs_of(two: Two, split: str, unread: Counter[str]) -> tuple[list[str], list[str]]:
    """Return the images of ``A`` and those of ``B`` with the same names, but for their suffixes.

    Raises:
        UserError: some have no counterpart, or more than one; it names them.
    """
    sides = []
    for folder in (two.a, two.b):
        files, names = images_of(folder, unread), dict[str, str]()
        for path in files:
            name = os.path.splitext(path.removeprefix(f"{folder}{os.sep}"))[0]  # noqa: PTH122
            if name in names:
                raise UserError(f"{names[name]} and {path} have one name.", "Keep one of them.")
            names[name] = path
        sides.append(names)
    (ours, theirs), lacking = sides, []
    for names, others, here, there in ((ours, theirs, two.a, two.b), (theirs, ours, two.b, two.a)):
        alone = [path for name, path in names.items() if name not in others]
        if alone:
            shown = ", ".join(os.path.basename(path) for path in alone[:_NAMED])  # noqa: PTH119
            more = ", ..." if len(alone) > _NAMED else ""
            lacking.append(
                f"{counted(len(alone), 'image', of=len(names))} in {here} {have(len(alone))} no image of the same name"
                f" in {there}: {shown}{more}."
            )
    if lacking:
        raise UserError(
            f"The {split} split is no set of pairs. {' '.join(lacking)}",
            "Two images of a pair have one name, but for the suffix. --set data.pairs=unpaired takes images of two"
            " kinds that do not belong together.",
        )
    return list(ours.values()), [theirs[name] for name in ours]


def images_of(folder: Path, unread: Counter[str]) -> list[str]:
    """Return the images in a folder, of any depth; ``unread`` is told of all else.

    Raises:
        UserError: there are none.
    """
    found = list_files(folder, is_image)
    unread += found.unread
    if not found.files:
        raise UserError(f"{folder} has no images.", FORMS)
    return found.files


def notes_on(unread: Counter[str]) -> list[str]:
    """Return a note on files that are not read, if there are any."""
    return unread_notes(unread)


def _in_two(root: Path, two: Two, asked: SplitsConfig | None) -> Folders:
    """Return the folders A and B, and of either those of the splits in it, where both have some."""
    inner = [{folder.name for folder in _folders(side)} for side in (two.a, two.b)]
    names = match_splits(inner[0] & inner[1], asked, where=str(two.a), kind="folder")
    if "train" not in names:
        return Folders("folders A/ and B/", {"train": two}, True)
    others = sorted((inner[0] | inner[1]) - set(names.values()))
    notes = (f"Left out: the folders {listing(others)}.",) if others else ()
    splits = {split: Two(two.a / name, two.b / name) for split, name in names.items()}
    return Folders("folders A/ and B/ with those of the splits in them", splits, True, notes)


def _names(found: Mapping[str, Two], root: Path, asked: SplitsConfig | None) -> dict[str, str]:
    names = match_splits(found, asked, where=str(root), kind="folder")
    others = [name for name in found if name not in names.values()]
    check_understood(names, others, asked, where=str(root), kind="folder")
    return names


def _is_split(name: str, asked: SplitsConfig | None) -> bool:
    return bool(match_splits([name], None, where="", kind="folder")) or (
        asked is not None and name in asked.model_dump().values()
    )


def _folders(root: Path) -> list[Path]:
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name)]


def _sides(root: Path) -> dict[str, Path]:
    return {folder.name.lower(): folder for folder in _folders(root) if folder.name.lower() in ("a", "b")}


def _both(sides: Mapping[str, Path], root: Path, name: str = "") -> Two:
    for side, other in (("a", "b"), ("b", "a")):
        if side not in sides:
            raise UserError(
                f"{root} has the folder {sides[other].name}/, and no {name}{side.upper()}/ beside it.", FORMS
            )
    return Two(sides["a"], sides["b"])
