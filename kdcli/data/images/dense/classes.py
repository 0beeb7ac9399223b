"""Class names and colours of masks and boxes: given, beside the data, or found in some of the masks."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.base.errors import UserError, reading
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import check_name, counted, expand_user
from kdcli.config.data import DataConfig
from kdcli.data.classes import listing
from kdcli.data.images.decode import File, UnreadableImage
from kdcli.data.images.dense.files import Encoded, Found, read_raster
from kdcli.data.images.dense.masks import IGNORED, Colour, MaskReading, no_class, ranges, values_of

BESIDE = tuple(
    f"{name}.{suffix}"
    for name in ("classes", "labels", "class_names", "names", "obj", "label_names", "id2label", "_classes")
    for suffix in ("txt", "names", "json")
)
"""Files beside the data that class names are looked for in, in this order."""
_LOOKED_AT = 64
"""So many masks are looked at for their values, spread evenly."""
_MOST_CLASSES = 4096
_NO_CLASS = frozenset(("ignore", "ignored", "void", "unlabelled", "unlabeled", "unknown"))
"""Names in a palette of colours that have no label."""


def given_names(config: DataConfig, folder: Path | None) -> tuple[tuple[str, ...] | None, str]:
    """Return the class names that ``data.class_names`` or a file beside the data has, and where they are from.

    Args:
        config: of the data.
        folder: with the data; None where they lie in none.

    Raises:
        UserError: a file that has none, or two of one name.
    """
    asked = config.class_names
    if isinstance(asked, tuple):
        return _checked(asked, "data.class_names"), "data.class_names"
    if asked is not None:
        path = expand_user(asked)
        if not path.is_file():
            raise UserError(
                f"data.class_names: there is no file {path}.", "A list of names is written data.class_names=[a,b,c]."
            )
        return read_names(path), str(path)
    for name in BESIDE if folder is not None else ():
        assert folder is not None
        if (folder / name).is_file():
            return read_names(folder / name), name
    return None, ""


def read_names(path: Path) -> tuple[str, ...]:
    """Return the names in a file: a line each, or JSON: a list, ``{"0": NAME, ...}`` or ``{NAME: 0, ...}``.

    Raises:
        UserError: it can't be read, or holds something else.
    """
    with reading(path):
        content = path.read_bytes()
    hint = 'A name a line; in JSON a list, {"0": NAME, ...} or {NAME: 0, ...}, with numbers from 0 on.'
    try:
        text = content.decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            names = names_of(json.loads(text))
        else:
            names = [line.strip() for line in text.splitlines()]
            while names and not names[-1]:
                names.pop()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} couldn't be read: {error}.", hint) from error
    return _checked(names, str(path))


def names_of(value: Any) -> list[str]:
    """Return names out of a list or a mapping to or from numbers.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, Mapping):
        numbers = {str(key): name for key, name in value.items()}
        if not all(re.fullmatch(r"\d{1,9}", key, re.ASCII) for key in numbers):
            numbers = {str(number): name for name, number in value.items()}
        if sorted(numbers, key=lambda key: (len(key), key)) != [str(number) for number in range(len(numbers))]:
            raise ValueError("its numbers are not 0, 1, 2 and so on")
        value = [numbers[str(number)] for number in range(len(numbers))]
    if not isinstance(value, list) or not all(isinstance(name, str | int) for name in value):
        raise ValueError("it holds no list of names")
    return [str(name) for name in value]


def _checked(names: Sequence[str], where: str) -> tuple[str, ...]:
    try:
        for name in names:
            check_name(name)
    except ValueError as error:
        raise UserError(f"{where} has a class name that is none: {error}.", "Names are a line of text each.") from error
    if not names or any(not name for name in names):
        raise UserError(f"{where} has {'an empty class name' if names else 'no class names'}.", "Every class has one.")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{where} has the class name {min(twice)} twice.", "Every class needs a name of its own.")
    return tuple(names)


@dataclass(frozen=True)
class Look:
    """What some masks hold.

    Attributes:
        number: of masks that were looked at.
        values: that they hold, ascending.
        of: of each.
    """

    number: int
    values: tuple[int, ...]
    of: Mapping[str, tuple[int, ...]]


def look(masks: Encoded) -> Look:
    """Look at the values of some masks, spread evenly; those that can't be read are left out.

    Raises:
        UserError: one has no values of classes.
    """
    found: dict[str, tuple[int, ...]] = {}
    for encoded, name in _some(masks):
        try:
            values = read_raster(encoded, name, lambda image, name=name: values_of(image, name))
        except UnreadableImage:
            continue
        found[name] = tuple(np.unique(values).tolist())
    return Look(len(found), tuple(sorted(set().union(*found.values()))), found)


def _some(masks: Encoded) -> Iterator[tuple[File, str]]:
    """Yield some masks, spread evenly, with what they are called."""
    labelled = [index for index in range(len(masks)) if masks.encoded(index) is not None]
    chosen = [labelled[number * len(labelled) // _LOOKED_AT] for number in range(_LOOKED_AT)] if labelled else []
    for index in dict.fromkeys(chosen if len(labelled) > _LOOKED_AT else labelled):
        encoded = masks.encoded(index)
        assert encoded is not None
        yield encoded, masks.describe(index)


def mask_classes(
    found: Found, config: DataConfig, folder: Path | None, masks: Encoded
) -> tuple[tuple[str, ...], MaskReading, list[str]]:
    """Return class names, how masks are read, and notes.

    Args:
        found: what the format says.
        config: of the data.
        folder: with the data.
        masks: of the training split.

    Raises:
        UserError: the classes can't be told, or masks don't go with what is said of them.
    """
    if config.palette is not None:
        return _by_colour(config, masks)
    if found.values is not None and (config.ignore_label is not None or config.class_names is not None):
        raise UserError(
            f"The data are read as {found.form}, which says what the values of masks are: data.ignore_label and"
            " data.class_names have no effect.",
            "Leave them out.",
        )
    names, where = (None, "") if found.values is not None else given_names(config, folder)
    if names is None and found.class_names is not None:
        names, where = found.class_names, found.form
    ignored = found.ignored if config.ignore_label is None else config.ignore_label
    if found.values is not None and names is not None:
        class_of = dict(zip(found.values, range(len(names)), strict=True))
        class_of |= dict.fromkeys(ignored or (), UNLABELLED)
        return names, MaskReading(class_of), [_ignored_note(class_of)]
    seen = look(masks)
    if ignored is None and seen.values in ((0, IGNORED), (IGNORED,)):
        raise UserError(
            f"The masks hold {' and '.join(map(str, seen.values))} alone ({seen.number} looked at): 255 mostly means"
            " not labelled, and here it may be a class.",
            "If it is one, data.palette=FILE says so, with the lines '0 0 0 background' and '255 255 255 NAME';"
            " data.ignore_label=255 takes it as not labelled.",
        )
    ignored = (IGNORED,) if ignored is None else ignored
    values = [value for value in seen.values if value not in ignored]
    notes = []
    if names is None:
        if not values:
            raise UserError(
                f"Of {counted(seen.number, 'mask')} looked at none has a labelled pixel.",
                "data.class_names names the classes; data.ignore_label says which values are none.",
            )
        if values[0] < 0 or values[-1] >= _MOST_CLASSES:
            raise UserError(
                f"The masks hold values from {values[0]} to {values[-1]}: they are no classes.",
                "Masks hold numbers from 0 on. data.ignore_label=[VALUES] takes some as not labelled.",
            )
        if values[-1] == IGNORED and len(values) <= IGNORED // 2:
            raise UserError(
                f"The masks hold {ranges(values)}, and data.ignore_label takes {ranges(sorted(ignored)) or 'none'} as"
                " not labelled: 255 would be a class, and so would all values up to it.",
                f"data.ignore_label={sorted({*ignored, IGNORED})} takes 255 as not labelled too; data.class_names names"
                " all classes, if it is one.",
            )
        kept = [value for value in range(values[-1] + 1) if value not in ignored]
        names = tuple(map(str, kept))
        notes.append(
            f"Classes: {len(names)}, the values up to {values[-1]} of {counted(seen.number, 'mask')}; data.class_names"
            " names them."
        )
    else:
        kept, names, note = _named(names, where, ignored, values)
        notes.append(note)
    class_of = {value: label for label, value in enumerate(kept)} | dict.fromkeys(ignored, UNLABELLED)
    for name, held in seen.of.items():
        if unknown := [value for value in held if value not in class_of]:
            raise no_class(name, unknown, class_of)
    return names, MaskReading(class_of), [*notes, _ignored_note(class_of)]


def _named(
    names: tuple[str, ...], where: str, ignored: Collection[int], values: Sequence[int]
) -> tuple[list[int], tuple[str, ...], str]:
    """Return the values of the named classes in order, their names without those that are ignored, and a note."""
    size = len(names)
    note = f"Classes: {size}, named by {where}."
    inside = [value for value in sorted(ignored) if value < size]
    kept = [value for value in range(size) if value not in ignored]
    if not inside:
        return kept, names, note
    if values and values[-1] >= size:  # the names are those of the other values alone, as ADE20K's 150 are
        kept = [value for value in range(size + len(ignored)) if value not in ignored][:size]
        return kept, names, f"{note} They are those of the values {ranges(kept)}."
    dropped = listing([f"{names[value]} ({value})" for value in inside])
    return kept, tuple(names[value] for value in kept), f"{note} Not labelled, and so no class: {dropped}."


def _ignored_note(class_of: Mapping[int, int]) -> str:
    ignored = sorted(value for value, label in class_of.items() if label == UNLABELLED)
    if not ignored:
        return "Every value of the masks is a class."
    return f"Masks: {ranges(ignored)} {'is' if len(ignored) == 1 else 'are'} not labelled."


def _by_colour(config: DataConfig, masks: Encoded) -> tuple[tuple[str, ...], MaskReading, list[str]]:
    if config.ignore_label is not None or config.class_names is not None:
        raise UserError(
            "data.palette says what the classes are: data.ignore_label and data.class_names have no effect beside it.",
            "Leave them out; a colour whose name is ignore has no label.",
        )
    assert config.palette is not None
    path = expand_user(config.palette)
    names, colours = read_palette(path)
    ignored = sum(label == UNLABELLED for label in colours.values())
    note = f"Classes: {len(names)} colours of {path.name}, and {ignored} that have no label."
    mask_reading = MaskReading({}, colours)
    for encoded, name in _some(masks):
        with suppress(UnreadableImage):
            read_raster(encoded, name, lambda image, name=name: _check_colours(image, name, mask_reading))
    return names, mask_reading, [note]


def _check_colours(found: Image.Image | NDArray[Any], name: str, mask_reading: MaskReading) -> None:
    """Refuse a mask with colours that the palette lacks; where it has all, this is quicker than its classes are."""
    assert mask_reading.colours is not None
    own = None
    if isinstance(found, Image.Image) and found.format != "JPEG":
        own = found.convert("RGB").getcolors(maxcolors=_MOST_CLASSES)
    if own is None or any(colour not in mask_reading.colours for _, colour in own):
        mask_reading.classes(found, name)


def read_palette(path: Path) -> tuple[tuple[str, ...], dict[Colour, int]]:
    """Return class names and the class of each colour, from a file with a line ``R G B NAME`` each.

    Red, green and blue are from 0 to 255, apart by spaces, tabs or commas; the name may stand in front of them as well.
    Lines that begin with ``#``, and a line of column names without a number, are no colours. Several colours may have
    one name; those named ``ignore``, ``void``, ``unlabelled`` or ``unknown`` have no label.

    Raises:
        UserError: it can't be read, or has another line.
    """
    with reading(path):
        content = path.read_bytes()
    hint = "A line a colour: '128 64 128 road', red, green and blue from 0 to 255."
    names: dict[str, int] = {}
    colours: dict[Colour, int] = {}
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        parts = [part for part in re.split(r"[\s,;]+", line.strip()) if part]
        if not parts or parts[0].startswith("#") or (number == 1 and not any(part.isdecimal() for part in parts)):
            continue
        digits = [part.isascii() and part.isdecimal() and int(part) <= 255 for part in parts]
        starts = (0, len(parts) - 3)
        start = next((start for start in starts if len(parts) >= 4 and all(digits[start : start + 3])), None)
        if start is None:
            raise UserError(f"{path}: line {number} is no colour with a name: {line[:60]!r}.", hint)
        red, green, blue = map(int, parts[start : start + 3])
        name = " ".join(parts[:start] + parts[start + 3 :])
        if (red, green, blue) in colours:
            raise UserError(f"{path}: line {number} has the colour {red} {green} {blue} once more.", hint)
        is_class = name.lower() not in _NO_CLASS
        colours[red, green, blue] = names.setdefault(name, len(names)) if is_class else UNLABELLED
    if not names:
        raise UserError(f"{path} has no classes.", hint)
    return _checked(list(names), str(path)), colours
