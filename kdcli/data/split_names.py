"""What training, validation and test are called, in folders, files and tables alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath

from kdcli.base.errors import UserError, did_you_mean
from kdcli.config.data import SplitsConfig
from kdcli.data.classes import listing

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Split -> its names, in any case."""
EXPECTED = "Splits are called " + "; ".join(", ".join(names) for names in SPLIT_NAMES.values()) + ", in any case."
_OPTION = "data.splits.{train,validation,test}=NAME names others."
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*")


def match_splits(names: Collection[str], asked: SplitsConfig | None, *, where: str, kind: str) -> dict[str, str]:
    """Return split -> its name among ``names``: those of ``asked`` first, then the usual ones, in any case.

    Args:
        names: what there is.
        asked: ``data.splits``.
        where: what has these names, for messages.
        kind: what has each of them, ``folder``, ``file`` or ``split``.

    Raises:
        UserError: a name of ``asked`` is not there, or there are two for one split.
    """
    found: dict[str, str] = {}
    for split, name in ({} if asked is None else asked.model_dump(exclude_none=True)).items():
        if name not in names:
            raise UserError(
                f"data.splits.{split} is {name!r}, but {where} has the {kind}s {listing(sorted(names)) or 'none'}.",
                did_you_mean(name, names) or "Choose one of these.",
            )
        if name in found.values():
            raise UserError(f"data.splits takes the {kind} {name} for two splits.", "Every split needs its own.")
        found[split] = name
    taken = set(found.values())
    for split, usual in SPLIT_NAMES.items():
        if split not in found:
            matches = sorted(name for name in names if name.lower() in usual and name not in taken)
            if len(matches) > 1:
                raise UserError(
                    f"{where} has more than one {split} {kind}: {', '.join(matches)}.",
                    f"Keep one of them, or choose one by data.splits.{split}={matches[0]}.",
                )
            if matches:
                found[split] = matches[0]
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def check_understood(
    found: Mapping[str, str], others: Sequence[str], asked: SplitsConfig | None, *, where: str, kind: str
) -> str | None:
    """Return a note on what is in no split, if there is anything.

    Args:
        found: split -> name.
        others: the names that are in no split.
        asked: ``data.splits``.
        where: what has these names, for messages.
        kind: what has each of them.

    Raises:
        UserError: there is no training split, or nothing but one and names that may be of splits too.
    """
    names = ", ".join([*found.values(), *others])
    classes = " A class whose name is like that of a split needs another name." if kind == "folder" else ""
    if "train" not in found:
        raise UserError(f"{where} has no training split; its {kind}s are {names}.", f"{EXPECTED} {_OPTION}{classes}")
    if not others:
        return None
    if len(found) == 1 and (asked is None or asked.train is None):
        raise UserError(
            f"{where} has the {kind} {found['train']}, and {listing(others)}, which"
            f" {'is' if len(others) == 1 else 'are'} not understood as another split.",
            f"{EXPECTED} {_OPTION} data.splits.train={found['train']} alone takes that {kind} and leaves out the"
            f" others.{classes}",
        )
    return f"Left out: the {kind}{'' if len(others) == 1 else 's'} {listing(others)}."


def _word_of(name: str) -> str | None:
    """Return the word of ``name`` that stands for a split; None for none, or words of two splits."""
    words = [word for word in _BETWEEN_WORDS.split(name.lower()) if word in _SPLIT_OF]
    return words[0] if len({_SPLIT_OF[word] for word in words}) == 1 else None


def split_like(name: str) -> str | None:
    """Return the split that a word of ``name`` stands for, such as ``test-clean``; None for none or two."""
    word = _word_of(name)
    return None if word is None else _SPLIT_OF[word]


def split_files(
    files: Sequence[str], asked: SplitsConfig | None, *, where: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Return split -> its files, by a word in the name of a folder or else of the file, and notes.

    As ``datasets`` finds them: ``train.csv``, ``Dev-part2.csv``, ``data/test-00000-of-00002.parquet``, ``val/a.csv``.
    Where no name has such a word, all files are the whole; so they are where all have that of one split.
    ``data.splits`` gives a folder or a file, without its suffix and ``-00000-of-00002`` too.

    Args:
        files: paths relative to the folder.
        asked: ``data.splits``.
        where: the folder, for messages.

    Raises:
        UserError: a name of ``asked`` is not there, there are two for one split, or as :func:`check_understood`.
    """
    named = {} if asked is None else asked.model_dump(exclude_none=True)
    by_word: dict[str, dict[str, list[str]]] = {split: {} for split in SPLIT_NAMES}
    others = []
    for file in files:
        names = _names_of(file)
        if len(of := [split for split, name in named.items() if name in names]) > 1:
            raise UserError(f"data.splits takes {file} for two splits.", "Every split needs its own files.")
        word = next(filter(None, map(_word_of, names)), None)
        if of:
            by_word[of[0]].setdefault(named[of[0]], []).append(file)
        elif word is not None and _SPLIT_OF[word] not in named:
            by_word[_SPLIT_OF[word]].setdefault(word, []).append(file)
        else:
            others.append(file)
    for split, words in by_word.items():
        if split in named and not words:
            known = sorted({name for file in files for name in _names_of(file)})
            raise UserError(
                f"data.splits.{split} is {named[split]!r}, but there is no such file in {where}: {listing(files)}.",
                did_you_mean(named[split], known) or "Choose one of these.",
            )
        if len(words) > 1:
            told = " and ".join(found[0] for found in words.values())
            raise UserError(
                f"{where} has more than one {split} split: {told}.",
                f"Keep one of them, or choose one by data.splits.{split}={next(iter(words))}.",
            )
    found = {split: next(iter(words.values())) for split, words in by_word.items() if words}
    if not found or (not named and not others and len(found) == 1):
        return {"train": list(files)}, []
    note = check_understood({split: of[0] for split, of in found.items()}, others, asked, where=where, kind="file")
    told = "; ".join(f"{split} {listing(of, limit=3)}" for split, of in found.items())
    return found, [f"Splits by the names of files: {told}.", *([note] if note else [])]


def _names_of(file: str) -> list[str]:
    """Return what a file may be called: its folders, the nearest first, its name, also without what is at its end."""
    path = PurePath(file)
    folders = [name for parent in path.parents[:-1] for name in (parent.name, str(parent))]
    return [*folders, path.name, path.stem, _SHARD.sub("", path.stem), file]
