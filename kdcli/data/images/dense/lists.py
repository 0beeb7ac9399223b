"""Lists of files: csv, tsv, text and jsonl, with a path to an image and to its mask or depth, or with boxes."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError, did_you_mean, reading
from kdcli.base.text import counted, have
from kdcli.config.data import BoxFormat, DataConfig
from kdcli.data.classes import listing
from kdcli.data.images.dense.boxes import Boxes, make_boxes, parsed
from kdcli.data.images.dense.classes import given_names
from kdcli.data.images.dense.files import Found, Paths, Split, source_of
from kdcli.data.listing import list_files, suffix_of
from kdcli.data.split_names import SPLIT_NAMES, split_files

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
IMAGE_COLUMNS = (
    *("image", "images", "img", "image_path", "img_path", "file_name", "filename", "file", "path", "rgb", "input"),
    *("pixel_values", "image_id"),
)
TARGET_COLUMNS = {
    "pixels": (
        *("mask", "masks", "mask_path", "annotation", "annotations", "segmentation", "segmentation_mask", "seg"),
        *("label", "labels", "label_path", "semantic", "target", "gt"),
    ),
    "depth": ("depth", "depth_map", "depths", "depth_path", "depth_image", "target", "label", "gt"),
    "boxes": ("objects", "boxes", "bboxes", "bbox", "annotations", "faces"),
}
CLASS_COLUMNS = ("labels", "label", "category", "categories", "category_id", "class", "classes", "class_name", "name")
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x_min", "y_min", "x_max", "y_max"))
_FLAGS = {"iscrowd": "crowd", "is_crowd": "crowd", "difficult": "difficult", "is_difficult": "difficult"}
"""What cells call that a box is a crowd's or difficult."""
_OPTIONS = ("splits", "image_column", "label_column")
_SPLIT = ("split", "subset", "set")
_HINT = (
    "The first line names the columns: image, and mask, depth or boxes; data.image_column and data.label_column name"
    " others. Paths are relative to the list."
)
_JSON_HINT = "A line is an object with image, and mask or boxes."
Row = Mapping[str, Any]


def find_lists(path: Path, target: str, config: DataConfig) -> Found | None:
    """Return what a list or the lists in a folder name; None where there is no list with fitting columns.

    A csv file without names of columns has an image and a mask or depth in the first two. A column ``split`` cuts.

    Raises:
        UserError: a list can't be read, names an image twice, or more than half of its paths are missing; or a box is
            none.
    """
    root = path if path.is_dir() else path.parent
    if path.is_file():
        if suffix_of(path.name) not in SUFFIXES:
            return None
        by_split, notes = {"train": [path.name]}, list[str]()
    else:
        files = list_files(root, lambda name: suffix_of(name) in SUFFIXES, deep=False).files
        names = [os.path.basename(file) for file in files]  # noqa: PTH119
        names = [name for name in names if _fits(root / name, target, config)]
        if not names:
            return None
        by_split, notes = split_files(names, config.splits, where=str(root))
    rows: dict[str, list[Row]] = {split: [] for split in by_split}
    for split, names in by_split.items():
        for name in names:
            rows[split] += _rows(root / name, target)
    if not all(rows.values()):
        raise UserError(f"{path} has no rows.", _HINT)
    if list(rows) == ["train"]:
        rows, note = _by_column(rows["train"], str(path))
        notes += [note] if note else []
    form = f"list of files ({listing([name for names in by_split.values() for name in names], limit=3)})"
    if target == "boxes":
        return _boxed(rows, root, form, notes, config)
    splits = {}
    first = rows["train"][0]
    columns = (
        _column(first, config.image_column, IMAGE_COLUMNS, "image"),
        _column(first, config.label_column, TARGET_COLUMNS[target], "label"),
    )
    for split, own in rows.items():
        pairs = {}
        for number, row in enumerate(own, 1):
            image, found = (row.get(column) for column in columns)
            if not isinstance(image, str) or not image or not isinstance(found, str | None):
                raise UserError(f"{path}: row {number} of the {split} split has no paths.", _HINT)
            if _at(root, image) in pairs:
                raise _named_twice(str(path), number, split, image)
            pairs[_at(root, image)] = _at(root, found) if found else None
        _check_there(list(pairs), str(path))
        _check_there([target for target in pairs.values() if target is not None], str(path))
        kept = {image: of for image, of in pairs.items() if of is not None or split == "train"}
        if lacking := sum(of is None for of in pairs.values()):
            fate = "unlabelled" if split == "train" else "left out"
            notes.append(
                f"{counted(lacking, 'image', of=len(pairs))} of the {split} split {have(lacking)} no {columns[1]}:"
                f" {fate}."
            )
        splits[split] = Split(source_of(kept, root), Paths(list(kept.values())))
    notes.append(f"Columns: images from {columns[0]}, {target} from {columns[1]}.")
    return Found(form, splits, notes, options=_OPTIONS)


def _fits(file: Path, target: str, config: DataConfig) -> bool:
    """Whether a list in a folder has an image and what is looked for; other csv files may lie there too."""
    try:
        rows = _rows(file, target)
    except UserError:
        return False
    if not rows:
        return False
    first = rows[0]
    has_image = any(name in first for name in ((config.image_column or ""), *IMAGE_COLUMNS))
    names = ((config.label_column or ""), *TARGET_COLUMNS[target])
    has_corners = target == "boxes" and _corners(first) is not None
    return has_image and (has_corners or any(name in first for name in names))


def _rows(file: Path, target: str) -> list[Row]:
    with reading(file):
        text = file.read_bytes()
    try:
        lines = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} couldn't be read: it is no UTF-8 ({error}).", "Save the file as UTF-8.") from error
    if suffix_of(file.name) == ".jsonl":
        return [_json_row(line, f"{file}: line {number}") for number, line in enumerate(lines.splitlines(), 1) if line]
    try:
        if suffix_of(file.name) == ".txt":
            table = [line.split() for line in lines.splitlines()]
        else:
            delimiter = "\t" if suffix_of(file.name) == ".tsv" else ","
            table = list(csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"{file} couldn't be read: {error}.", _HINT) from error
    table = [[cell.strip() for cell in row] for row in table if row]
    if not table:
        return []
    header = [cell.lower() for cell in table[0]]
    if os.path.isfile(file.parent / table[0][0]) and target != "boxes":  # noqa: PTH113 - it names no columns
        if any(len(row) < 2 for row in table):
            raise UserError(f"{file} has a line without two paths.", _HINT)
        return [{"image": row[0], TARGET_COLUMNS[target][0]: _none(row[1])} for row in table]
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{file} has more than one column {twice[0]}.", _HINT)
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(header):
            raise UserError(f"{file}: row {number} has {len(row)} cells, and the first has {len(header)}.", _HINT)
    return [{name: cell or None for name, cell in zip(header, row, strict=True)} for row in table[1:]]


def _none(cell: str) -> str | None:
    """Return nothing for what some lists write where there is no file."""
    return None if cell.lower() in ("", "none") else cell


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is no json: {error}.", "A line is an object with image, and mask or boxes."
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is no json object.", _JSON_HINT)
    return row


def _by_column(rows: Sequence[Row], where: str) -> tuple[dict[str, list[Row]], str]:
    """Return the rows by the split that a column names, and a note; all of them where there is none."""
    column = next((name for name in _SPLIT if name in rows[0]), None)
    if column is None:
        return {"train": list(rows)}, ""
    split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    found: dict[str, list[Row]] = {}
    for number, row in enumerate(rows, 1):
        value = row.get(column)
        split = split_of.get(str(value).lower())
        if split is None:
            raise UserError(
                f"{where}: row {number} has the {column} {value!r}.",
                f"Splits are called {', '.join(split_of)}.",
            )
        found.setdefault(split, []).append(row)
    if "train" not in found:
        raise UserError(f"{where} has no row of the training split.", f"Its {column} is train.")
    return {split: found[split] for split in SPLIT_NAMES if split in found}, f"Splits: the column {column}."


def _column(row: Row, asked: str | None, usual: Sequence[str], kind: str) -> str:
    if asked is not None:
        if asked not in row:
            raise UserError(
                f"data.{kind}_column is {asked!r}, but the columns are {listing(list(row))}.",
                did_you_mean(asked, row) or "Choose one of these.",
            )
        return asked
    found = next((name for name in usual if name in row), None)
    if found is None:
        raise UserError(f"Found no {kind} column; the columns are {listing(list(row))}.", _HINT)
    return found


def _at(root: Path, path: str) -> str:
    return os.path.normpath(root / path)


def _check_there(paths: Sequence[str], where: str) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 - a Path each is a waste
    if 2 * len(missing) > len(paths):
        raise UserError(
            f"Of {counted(len(paths), 'file')} that {where} names {len(missing)} can't be found, such as {missing[0]}.",
            "Paths are absolute, or relative to the list.",
        )


def _corners(row: Row) -> tuple[str, ...] | None:
    return next((names for names in _CORNERS if all(name in row for name in names)), None)


def _boxed(rows: Mapping[str, Sequence[Row]], root: Path, form: str, notes: list[str], config: DataConfig) -> Found:
    first = rows["train"][0]
    image = _column(first, config.image_column, IMAGE_COLUMNS, "image")
    corners = _corners(first)
    read: dict[str, list[tuple[str, RawBoxes]]] = {}
    if corners is not None and config.label_column is None:
        name = _column(first, None, CLASS_COLUMNS, "label")
        for split, own in rows.items():
            by_image: dict[str, RawBoxes] = {}
            for number, row in enumerate(own, 1):
                where = f"row {number} of the {split} split"
                raw = by_image.setdefault(_path(row, image, where), RawBoxes())
                values = [row.get(corner) for corner in corners]
                if any(value is not None for value in values):
                    try:
                        raw.rows.append([float(value or "") for value in values])
                    except (TypeError, ValueError) as error:
                        raise UserError(f"{where} has no corners: {values}.", _HINT) from error
                    raw.labels.append(_label(row.get(name), where))
            read[split] = list(by_image.items())
    else:
        column = _column(first, config.label_column, TARGET_COLUMNS["boxes"], "label")
        for split, own in rows.items():
            whole: dict[str, RawBoxes] = {}
            for number, row in enumerate(own, 1):
                where = f"row {number} of the {split} split"
                raw = raw_boxes(row.get(column), row, column, where)
                path = _path(row, image, where)
                if path in whole:
                    raise _named_twice(form, number, split, path)
                whole[path] = raw
            read[split] = list(whole.items())
    every = [raw for of in read.values() for _, raw in of]
    names, label_of, more = class_labels(every, None, config)
    splits = {}
    for split, of in read.items():
        paths = [_at(root, path) for path, _ in of]
        _check_there(paths, form)
        boxes = [parsed(path, partial(raw.boxes, label_of, config.box_format)) for path, raw in of]
        splits[split] = Split(source_of(paths, root), boxes)
    notes += [*more, format_note(every, config)]
    return Found(form, splits, notes, names, options=(*_OPTIONS, "box_format"))


def _named_twice(where: str, number: int, split: str, image: str) -> UserError:
    return UserError(
        f"{where}: row {number} of the {split} split names the image {image} once more.",
        "A row has all that belongs to an image: keep one of them, or put them together.",
    )


def _path(row: Row, column: str, where: str) -> str:
    path = row.get(column)
    if not isinstance(path, str) or not path:
        raise UserError(f"{where} has no {column}.", _HINT)
    return path


def _label(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{where} has a box whose class is {value!r}.", "A class is a name, or a number from 0 on.")
    return value


class RawBoxes:
    """The boxes of an image as they are written: rows of four numbers, and names or numbers of classes.

    Attributes:
        form: what the four numbers are, by what they are called.
    """

    def __init__(self) -> None:
        self.form: BoxFormat = "xyxy"
        self.rows: list[list[float]] = []
        self.labels: list[int | str] = []
        self.flags: dict[str, list[bool]] = {}
        self.size: tuple[int, int] | None = None

    def boxes(self, label_of: Callable[[int | str], int], asked: BoxFormat | None) -> Boxes:
        """Return the boxes with numbered labels; ``asked`` is in place of their own format."""
        labels = [label_of(label) for label in self.labels]
        return make_boxes(self.rows, labels, self.flags, size=self.size, form=asked or self.form)


def format_note(read: Iterable[RawBoxes], config: DataConfig) -> str:
    """Return a sentence on what the four numbers of a box are; rows may have different names for them."""
    forms = sorted({config.box_format or raw.form for raw in read if raw.rows})
    return f"Boxes are {' and '.join(forms)} in pixels{', each as it is called' if len(forms) > 1 else ''}."


def raw_boxes(value: Any, row: Row, column: str, where: str) -> RawBoxes:
    """Return what a cell holds, in the format that its name says.

    A mapping of lists (``{"bbox": [...], "category": [...]}``), a list of mappings, or a list of rows of numbers, whose
    classes are in a column of ``row`` beside it. ``boxes`` are corners, ``bbox`` is left, top, width and height.

    Raises:
        UserError: it is something else.
    """
    hint = 'Expected {"bbox": [[...], ...], "category": [...]}, a list of such mappings, or boxes and labels.'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{where} has no boxes in {column}: {value[:60]!r}.", hint) from error
    raw, key = RawBoxes(), column
    width, height = row.get("width"), row.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        raw.size = (width, height)
    if value is None:
        return raw
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        value = {name: [entry.get(name) for entry in value] for name in value[0]}
    if isinstance(value, Mapping):
        key = next((name for name in ("bbox", "boxes", "bboxes", "box") if name in value), "")
        classes = next((value[name] for name in CLASS_COLUMNS if name in value), None)
        rows = value.get(key)
        flags = {flag: value[name] for name, flag in _FLAGS.items() if value.get(name) is not None}
    else:
        rows, flags = value, {}
        classes = next((row[name] for name in CLASS_COLUMNS if name in row and name != column), None)
        if isinstance(classes, str):
            try:
                classes = json.loads(classes)
            except ValueError:
                classes = None
    if rows == [] and classes is None:
        classes = []
    if not isinstance(rows, list) or not isinstance(classes, list) or len(rows) != len(classes):
        raise UserError(f"{where}: {column} holds no boxes with a class each.", hint)
    for entry, label in zip(rows, classes, strict=True):
        numbers = isinstance(entry, list | tuple) and all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in entry
        )
        if not numbers or len(entry) != 4:
            raise UserError(f"{where}: {column} has a box {entry!r}, which is not four numbers.", hint)
        raw.rows.append(list(entry))
        raw.labels.append(_label(label, where))
    for flag, values in flags.items():
        if not isinstance(values, list) or len(values) != len(rows):
            raise UserError(f"{where}: {column} does not say of each box whether it is {flag}.", hint)
        raw.flags[flag] = [bool(value) for value in values]
    raw.form = "xyxy" if key in ("boxes", "bboxes") else "xywh"
    return raw


def class_labels(
    read: Iterable[RawBoxes], own_names: Sequence[str] | None, config: DataConfig
) -> tuple[tuple[str, ...], Callable[[int | str], int], list[str]]:
    """Return class names, from a written class to its label, and notes.

    Args:
        read: all boxes.
        own_names: of numbers, as the data have them.
        config: ``data.class_names`` is for numbers that have no names, and else their order.

    Raises:
        UserError: names beside numbers, or a number without a name.
    """
    found = {label for raw in read for label in raw.labels}
    texts = {label for label in found if isinstance(label, str)}
    given, where = (None, "") if config.class_names is None else given_names(config, None)
    if not found:
        raise UserError("No image has a box.", "Check data.label_column.")
    if texts and all(text.isascii() and text.isdecimal() for text in texts):
        found, texts = {int(label) for label in found}, set()
    if texts and len(texts) < len(found):
        raise UserError(f"Some classes are numbers, some are names such as {min(texts)!r}.", "Use one of the two.")
    if texts:
        names = given or tuple(sorted(texts))
        if lacking := sorted(texts - set(names)):
            raise UserError(f"{where} has no {listing(lacking)}, which boxes have.", "Name every class.")
        places = {name: label for label, name in enumerate(names)}
        return names, lambda label: places[str(label)], []
    largest, smallest = max(map(int, found)), min(map(int, found))
    if smallest < 0:
        raise UserError(f"A box has the class {smallest}.", "Classes are numbered from 0 on.")
    names = given or tuple(own_names or map(str, range(largest + 1)))
    if largest >= len(names):
        raise UserError(
            f"A box has the class {largest}, but there are {len(names)} names, of the classes 0 to {len(names) - 1}.",
            "Name every class.",
        )
    notes = [] if given or own_names else [f"Classes: {len(names)}, numbered; data.class_names names them."]
    return names, int, notes
