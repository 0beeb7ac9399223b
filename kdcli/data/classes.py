"""Which of a data set's classes are taken: ``data.classes``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr

_RANGE = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,9}", re.ASCII)
_PART = re.compile(r"part:(\d{1,9})/(\d{1,9})(?:\+(\d{1,3})%)?", re.ASCII)
_GRAMMAR = (
    "Classes are names, numbers (3), ranges of them (0-4) and parts (part:1/2, part:2/2+20%). Numbers are names where "
    "classes have such names, else labels from 0 on."
)
_SHOWN = 5
_RUNS = 20
"""Ranges of numbers that are listed."""


def choose_classes(specs: Sequence[str], class_names: Sequence[str], *, data: str) -> tuple[int, ...]:
    """Return the labels of the classes that ``specs`` names, ascending.

    Each of ``specs`` is a comma list. An entry is, in this order of precedence, the exact name of one class or more
    (which may itself have commas), a number or a range of numbers, both ends included, or a part.

    A range goes by name where both of its ends are names of classes, as numbers (``01`` is 1): it takes the classes
    with numbers between them, in whatever order the labels are. Where all names are numbers, numbers are nothing else;
    otherwise a number or a range that is none of names is one of labels.

    - ``part:K/N``: the K-th of N runs of consecutive labels; the earlier ones have one class more where the number of
      classes is no multiple of N.
    - ``part:K/N+P%``: that run moved back by P per cent of its size, rounded, half up: so many of its last classes are
      replaced by the last ones of the part before it. It is how far a student's classes overlap with those of a
      teacher that has ``part:1/2``, as in REFILLED (Ye, Lu, Zhan: CVPR 2020).

    Args:
        specs: what is taken.
        class_names: all there are, in label order.
        data: what messages call the data.

    Raises:
        UserError: an entry is none of these, or goes beyond the classes there are.
    """
    chosen: set[int] = set()
    unknown = []
    labels_of: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        labels_of.setdefault(name, []).append(label)
    for entry in (entry for spec in specs for entry in _split(spec, class_names)):
        labels = labels_of.get(entry) or _range(entry, class_names) or _part(entry, len(class_names))
        if labels is None:
            unknown.append(entry)
        else:
            chosen.update(labels)
    if unknown:
        shown = ", ".join(map(short_repr, unknown[:_SHOWN]))
        rest = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        nearest = next(filter(None, (did_you_mean(entry, class_names) for entry in unknown[:_SHOWN])), "")
        raise UserError(
            f"data.classes: {data} has no {shown}{rest}. It has {len(class_names)} classes, {_numbered(class_names)}. "
            f"{nearest}".rstrip(),
            _GRAMMAR,
        )
    return tuple(sorted(chosen))


def _numbered(class_names: Sequence[str]) -> str:
    if _are_numbers(class_names) and list(class_names) != [str(label) for label in range(len(class_names))]:
        return f"named {list_classes(class_names)}"
    return f"numbered 0 to {len(class_names) - 1}"


def _are_numbers(class_names: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(name) for name in class_names)


def list_classes(class_names: Sequence[str]) -> str:
    """Return the names in one phrase, of many the first; names that are numbers in their order, as ranges."""
    if not class_names or not _are_numbers(class_names):
        return listing(class_names)
    runs: list[list[str]] = []
    for name in sorted(class_names, key=int):
        if runs and int(name) == int(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return listing([f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs], limit=_RUNS)


def listing(items: Sequence[str], *, limit: int = _SHOWN) -> str:
    """Return the items in one phrase, of many the first."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def order_notes(class_names: Sequence[str]) -> list[str]:
    """Return a note where names that are numbers are not in the order of their numbers; nothing otherwise."""
    if not _are_numbers(class_names) or list(class_names) == sorted(class_names, key=int):
        return []
    return [
        f"The classes are numbers in the order of their names as text: {listing(class_names)}. Numbers and ranges in"
        " data.classes are their names, in natural order; parts and labels go by the order as text."
    ]


def alike(class_names: Sequence[str]) -> list[str]:
    """Return a note on names that differ in nothing but blanks, case or Unicode form; none where there are none."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(class_names):
        groups.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    found = [" and ".join(map(_shown, names)) for names in groups.values() if len(names) > 1]
    if not found:
        return []
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [
        f"Classes that differ in nothing but blanks, case or Unicode form: {'; '.join(found[:_SHOWN])}{more}. They are"
        " taken as different classes."
    ]


def _shown(name: str) -> str:
    """Return the name in quotes; of characters that have two forms the numbers."""
    return ascii(name) if unicodedata.normalize("NFKC", name) != name else repr(name)


def _split(spec: str, class_names: Sequence[str]) -> list[str]:
    """Split at commas, but for those inside a class name: of several names that fit, the longest is taken."""
    known = set(class_names)
    most = 1 + max((name.count(",") for name in class_names), default=0)
    pieces = spec.split(",")
    entries = []
    start = 0
    while start < len(pieces):
        for stop in range(min(start + most, len(pieces)), start, -1):
            text = ",".join(pieces[start:stop])
            entry = text if text in known else text.strip()
            if entry in known or stop == start + 1:
                entries.append(entry)
                start = stop
                break
    return entries


def _range(entry: str, class_names: Sequence[str]) -> list[int] | None:
    if not (match := _RANGE.fullmatch(entry)):
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    numbers = [int(name) if _NUMBER.fullmatch(name) else None for name in class_names]
    if first <= last and first in numbers and last in numbers:
        return [label for label, number in enumerate(numbers) if number is not None and first <= number <= last]
    if None not in numbers or not 0 <= first <= last < len(numbers):
        return None
    return list(range(first, last + 1))


def _part(entry: str, num_classes: int) -> range | None:
    if not (match := _PART.fullmatch(entry)):
        return None
    number, parts, percent = int(match[1]), int(match[2]), int(match[3] or 0)
    if not 1 <= number <= parts <= num_classes or percent > 100:
        raise UserError(
            f"data.classes: there is no {entry} of {num_classes} classes.",
            f"In part:K/N+P%, K is from 1 to N, N at most {num_classes} and P at most 100.",
        )
    if number == 1 and percent:
        raise UserError(f"data.classes: {entry} has no part before it to overlap with.", "Give a part from the 2nd on.")
    size, longer = divmod(num_classes, parts)
    start = (number - 1) * size + min(number - 1, longer)
    stop = number * size + min(number, longer)
    moved = (percent * (stop - start) + 50) // 100
    return range(start - moved, stop - moved)
