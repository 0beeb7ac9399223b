"""YOLO's folders: a text file of boxes for each image, and ``data.yaml`` with names and splits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError, reading
from kdcli.base.text import counted, expand_user, have
from kdcli.config.data import DataConfig
from kdcli.data.classes import listing
from kdcli.data.images.dense.boxes import Boxes, make_boxes, parsed
from kdcli.data.images.dense.classes import BESIDE, given_names, names_of
from kdcli.data.images.dense.files import Found, Split, source_of
from kdcli.data.listing import is_hidden, is_image, list_files
from kdcli.data.split_names import SPLIT_NAMES, match_splits

_YAML = re.compile(r"(data|dataset)\.ya?ml", re.IGNORECASE)
_HINT = "A line a box: CLASS CENTRE_X CENTRE_Y WIDTH HEIGHT, in shares of the image; or CLASS and a polygon's points."


def find_yolo(path: Path, config: DataConfig) -> Found | None:
    """Return images and boxes of YOLO's text files; None where there are none.

    Raises:
        UserError: ``data.yaml`` names what is not there, a text file is no list of boxes or belongs to two images, or
            classes have no names.
    """
    root = path if path.is_dir() else path.parent
    file = path if path.is_file() else _yaml_of(root)
    if file is not None and not file.name.lower().endswith((".yaml", ".yml")):
        return None
    settings = {} if file is None else _settings(file)
    folders = _by_yaml(settings, file) if file is not None else _by_folders(root, config)
    if not folders:
        return None
    notes: list[str] = []
    images = {split: _images(places, root) for split, places in folders.items()}
    found = {split: [(image, label_file(image)) for image in of] for split, of in images.items()}
    _check_one_each([pair for of in found.values() for pair in of])
    if not any(Path(label).is_file() for of in found.values() for _, label in of):
        if file is None:
            return None
        raise UserError(f"{file} names images, but none of them has a text file of boxes.", _HINT)
    names, where = _names(settings, file, root, config)
    splits: dict[str, Split] = {}
    for split, pairs in found.items():
        boxes = [_read(label) for _, label in pairs]
        without = sum(not Path(label).is_file() for _, label in pairs)
        if without:
            show = "it shows" if without == 1 else "they show"
            notes.append(
                f"{counted(without, 'image', of=len(pairs))} of the {split} split {have(without)} no text file: {show}"
                " nothing."
            )
        splits[split] = Split(source_of([image for image, _ in pairs], root), boxes)
    names, note = _check_classes(names, where, splits)
    return Found(f"YOLO text files{f' by {file.name}' if file else ''}", splits, [*notes, note], names)


def _check_one_each(pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse images that differ in their suffix alone: a text file belongs to one."""
    of: dict[str, str] = {}
    for image, label in pairs:
        if of.setdefault(label, image) != image and Path(label).is_file():
            raise UserError(f"{label} belongs to both {of[label]} and {image}.", "Give each a name of its own.")


def _yaml_of(root: Path) -> Path | None:
    return next((entry for entry in sorted(root.iterdir()) if _YAML.fullmatch(entry.name) and entry.is_file()), None)


def _settings(file: Path) -> dict[str, Any]:
    import yaml

    with reading(file):
        content = file.read_bytes()
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} couldn't be read: {error}", "Expected YOLO's train, val and names.") from error
    if not isinstance(found, dict) or "train" not in found:
        raise UserError(f"{file} has no train.", "Expected YOLO's train, val and names.")
    return found


def _by_yaml(settings: Mapping[str, Any], file: Path) -> dict[str, list[Path]]:
    base = settings.get("path")
    found: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        key = next((name for name in names if settings.get(name)), None)
        if key is None:
            continue
        value = settings[key]
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{file}: {key} is {value!r}.", "It names a folder of images, or a list of such.")
        found[split] = [_place(entry, base, file, split) for entry in entries]
    return found


def _place(entry: str, base: Any, file: Path, split: str) -> Path:
    """Return where a folder of images is; exporters write paths such as ``../train/images`` for one beside the file."""
    bases = [file.parent]
    if isinstance(base, str) and base:
        bases = [expand_user(base), file.parent / base, file.parent]
    tries = [folder / entry for folder in bases] + [file.parent / re.sub(r"^(\.\./)+", "", entry)]
    place = next((place for place in tries if place.exists()), None)
    if place is None:
        raise UserError(
            f"{file} names {entry} for the {split} split, which is not there.",
            f"Looked at {listing([str(place) for place in tries])}.",
        )
    return place


def _by_folders(root: Path, config: DataConfig) -> dict[str, list[Path]]:
    """Return the folders of images where there are folders images and labels, in or above those of the splits."""
    here = {entry.name: entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name)}
    if "images" in here and "labels" in here:
        inner = {e.name: e for e in sorted(here["images"].iterdir()) if e.is_dir() and not is_hidden(e.name)}
        found = match_splits(inner, config.splits, where=str(here["images"]), kind="folder") if inner else {}
        if "train" in found:
            return {split: [inner[name]] for split, name in found.items()}
        return {"train": [here["images"]]}
    inside = {
        name: entry for name, entry in here.items() if (entry / "labels").is_dir() and (entry / "images").is_dir()
    }
    found = match_splits(inside, config.splits, where=str(root), kind="folder") if inside else {}
    return {split: [inside[name] / "images"] for split, name in found.items()} if "train" in found else {}


def _images(places: Sequence[Path], root: Path) -> list[str]:
    found: list[str] = []
    for place in places:
        if place.is_dir():
            found += list_files(place, is_image).files
        else:
            with reading(place):
                lines = place.read_text("utf-8", "replace").splitlines()
            found += [os.path.normpath(place.parent / line.strip()) for line in lines if line.strip()]
    if not found:
        raise UserError(f"There are no images in {listing([str(place) for place in places])}.", f"Looked below {root}.")
    return list(dict.fromkeys(found))


def label_file(image: str) -> str:
    """Return the text file of an image: in ``labels`` where the image is in ``images``, else beside it."""
    head, folder, tail = image.rpartition(f"{os.sep}images{os.sep}")
    stem = os.path.splitext(f"{head}{os.sep}labels{os.sep}{tail}" if folder else image)[0]  # noqa: PTH122
    return f"{stem}.txt"


def _read(label: str) -> Boxes:
    path = Path(label)
    if not path.is_file():
        return make_boxes([], [], is_share=True)
    with reading(path):
        text = path.read_bytes().decode("utf-8", "replace")
    rows: list[list[float]] = []
    labels: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        where = f"{path}: line {number}"
        if not re.fullmatch(r"\d{1,6}(\.0*)?", parts[0], re.ASCII):
            raise UserError(f"{where} begins with {parts[0][:20]!r}, which is no number of a class.", _HINT)
        try:
            values = [float(part) for part in parts[1:]]
        except ValueError as error:
            raise UserError(f"{where} has something that is no number.", _HINT) from error
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise UserError(f"{where} has {len(values)} numbers after the class.", _HINT)
        if any(not -0.01 <= value <= 1.01 for value in values):
            raise UserError(f"{where} has a number beyond 0 and 1: shares are expected, and not pixels.", _HINT)
        if len(values) == 4:
            x, y, width, height = values
            rows.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        else:
            rows.append([min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])])
        labels.append(int(float(parts[0])))
    return parsed(label, lambda: make_boxes(rows, labels, is_share=True))


def _names(
    settings: Mapping[str, Any], file: Path | None, root: Path, config: DataConfig
) -> tuple[tuple[str, ...] | None, str]:
    if config.class_names is not None:
        return given_names(config, None)
    if file is not None and settings.get("names") is not None:
        try:
            names = tuple(names_of(settings["names"]))
        except ValueError as error:
            raise UserError(f"{file}: names couldn't be read: {error}.", "Names are a list, or numbered.") from error
        return names, file.name
    places = [root, root / "labels", root / "train" / "labels"]
    place = next((place for place in places if any((place / name).is_file() for name in BESIDE)), root)
    return given_names(config, place)


def _check_classes(
    names: tuple[str, ...] | None, where: str, splits: Mapping[str, Split]
) -> tuple[tuple[str, ...], str]:
    largest = max(
        (int(boxes.labels.max()) for split in splits.values() for boxes in split.targets if len(boxes)), default=-1
    )
    if names is None:
        if largest < 0:
            raise UserError("None of the text files has a box, and no file names the classes.", _HINT)
        names = tuple(str(label) for label in range(largest + 1))
        return names, f"Classes: {len(names)}, numbered; data.class_names names them."
    if largest >= len(names):
        raise UserError(
            f"A box has the class {largest}, but {where} names {len(names)} classes, from 0 to {len(names) - 1}.",
            "Name every class.",
        )
    return names, f"Classes: {len(names)}, named by {where}: {listing(names)}."
