"""COCO's json files of instances: their boxes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError, reading
from kdcli.base.text import counted
from kdcli.config.data import SplitsConfig
from kdcli.data.classes import listing
from kdcli.data.images.dense.boxes import Boxes, make_boxes, parsed
from kdcli.data.images.dense.files import Found, Split, source_of
from kdcli.data.listing import is_hidden, list_files, suffix_of
from kdcli.data.split_names import split_files

_KEYS = ("images", "annotations", "categories")
_OTHER = ("person_keypoints_", "captions_", "panoptic_", "stuff_", "image_info_")
"""COCO's own files of other kinds, by the beginnings of their names."""
_HEAD = 2**20
"""Bytes of a file in which COCO's keys are looked for."""
_LOOKED_AT = 16
_LISTED = 12


def find_coco(path: Path, asked: SplitsConfig | None) -> Found | None:
    """Return images and boxes by COCO's json files; None where there are none.

    They lie in ``annotations/``, beside the images, or in each of the folders of the splits; or ``path`` is such a
    file.

    Raises:
        UserError: the splits are not understood, a file is none of COCO's, or most images are missing.
    """
    root = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else list(_candidates(root))
    files = [file for file in files if suffix_of(file.name) == ".json" and _is_coco(file)]
    if not files:
        return None
    names = [str(file.relative_to(root)) for file in files]
    by_split, notes = split_files(names, asked, where=str(root))
    read = {split: [_read(root / name) for name in of] for split, of in by_split.items()}
    categories = _categories([(root / by_split[split][0], parts[0]) for split, parts in read.items()])
    labels = {number: label for label, number in enumerate(sorted(categories))}
    splits: dict[str, Split] = {}
    for split, parts in read.items():
        paths: list[str] = []
        boxes: list[Boxes] = []
        for name, content in zip(by_split[split], parts, strict=True):
            more = _split(root / name, content, labels, root, split)
            paths += more[0]
            boxes += more[1]
        splits[split] = Split(source_of(paths, root), boxes)
    form = f"COCO json ({listing([name for of in by_split.values() for name in of], limit=3)})"
    return Found(form, splits, notes, tuple(categories[number] for number in sorted(categories)))


def _candidates(root: Path) -> Iterator[Path]:
    folders = [root, *(entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name))]
    for folder in folders:
        found = list_files(folder, lambda name: suffix_of(name) == ".json", deep=False).files
        files = [Path(file) for file in found if not Path(file).name.startswith(_OTHER)]
        yield from files


def _is_coco(path: Path) -> bool:
    with reading(path), path.open("rb") as file:
        head = file.read(_HEAD)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(f'"{key}"'.encode() in head for key in _KEYS)


def _read(path: Path) -> dict[str, Any]:
    hint = "Expected COCO's instances: a json object with images, annotations and categories."
    with reading(path):
        content = path.read_bytes()
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} couldn't be read: {error}.", hint) from error
    lacking = [key for key in _KEYS if not isinstance(found, dict) or not isinstance(found.get(key), list)]
    if lacking:
        raise UserError(f"{path} has no list of {listing(lacking)}.", hint)
    for key in _KEYS:
        if wrong := [number for number, entry in enumerate(found[key]) if not isinstance(entry, dict)]:
            raise UserError(f"{path}: {key}[{wrong[0]}] is no json object.", hint)
    content_: dict[str, Any] = found
    return content_


def _categories(files: Sequence[tuple[Path, dict[str, Any]]]) -> dict[int, str]:
    """Return the category names by id, the same in all files."""
    found: dict[int, str] = {}
    for number, (path, content) in enumerate(files):
        own: dict[int, str] = {}
        for place, entry in enumerate(content["categories"]):
            identity, name = entry.get("id"), entry.get("name")
            if not _is_id(identity) or not isinstance(name, str) or not name.strip():
                raise UserError(f"{path}: categories[{place}] has no id or no name.", "Both are needed.")
            if identity in own or name in own.values():
                raise UserError(f"{path}: categories[{place}] is there twice: {identity}, {name}.", "Keep one.")
            own[identity] = name
        if not own:
            raise UserError(f"{path} has no categories.", "Boxes need a class each.")
        if number and own != found:
            raise UserError(f"{path} has other categories than {files[0][0]}.", "All splits need the same ones.")
        found = own
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _split(
    path: Path, content: dict[str, Any], labels: Mapping[int, int], root: Path, split: str
) -> tuple[list[str], list[Boxes]]:
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for place, entry in enumerate(content["images"]):
        identity, name = entry.get("id"), entry.get("file_name")
        if not isinstance(identity, int | str) or not isinstance(name, str) or not name:
            raise UserError(f"{path}: images[{place}] has no id or no file_name.", "Both are needed.")
        if identity in by_image:
            raise UserError(
                f"{path}: images[{place}] has the id {identity} of another one.", "Every image has its own."
            )
        by_image[identity] = []
    for place, entry in enumerate(content["annotations"]):
        identity, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(identity, int | str) or identity not in by_image:
            raise UserError(f"{path}: annotations[{place}] is of an image that is not there: {identity!r}.", "Add it.")
        if not isinstance(category, int | str) or category not in labels:
            raise UserError(
                f"{path}: annotations[{place}] is of a category that is not there: {category!r}.", "Add it."
            )
        by_image[identity].append(entry)
    names = [entry["file_name"] for entry in content["images"]]
    folder = image_folder(names, _folders(path, root, split), where=str(path))
    boxes = [
        parsed(f"{path}: image {entry['file_name']}", partial(_boxes, entry, by_image[entry["id"]], labels))
        for entry in content["images"]
    ]
    return [os.path.normpath(folder / name) for name in names], boxes


def _boxes(image: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], labels: Mapping[int, int]) -> Boxes:
    sides = [side for side in (image.get("width"), image.get("height")) if isinstance(side, int) and side > 0]
    size = (sides[0], sides[1]) if len(sides) == 2 else None
    return make_boxes(
        [entry["bbox"] for entry in entries],
        [labels[entry["category_id"]] for entry in entries],
        {"crowd": [bool(entry.get("iscrowd", 0)) for entry in entries]},
        size=size,
        form="xywh",
    )


def _folders(path: Path, root: Path, split: str) -> list[Path]:
    """Return folders that a file's images may lie in: beside it, or in one of the name that is in its own name."""
    tail = re.sub(r"^(instances|annotations)[-_]", "", path.stem)
    words = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test",)}[split]
    inner = ("", tail, *words, "JPEGImages")
    places = [above / name for above in (root, root / "images", path.parent, path.parent.parent) for name in inner]
    return [path.parent, *places]


def image_folder(names: Sequence[str], folders: Sequence[Path], *, where: str) -> Path:
    """Return the first of the folders that has most of the images.

    Raises:
        UserError: none has half of those that are looked for.
    """
    size = len(names)
    looked = [names[number * size // _LOOKED_AT] for number in range(_LOOKED_AT)] if size > _LOOKED_AT else names
    if not names:
        raise UserError(f"{where} has no images.", "Name the images there.")
    counts = {folder: sum((folder / name).is_file() for name in looked) for folder in dict.fromkeys(folders)}
    best = max(counts, key=lambda folder: counts[folder])
    if 2 * counts[best] < len(looked):
        tried = listing([str(folder) for folder in counts if folder.is_dir()], limit=_LISTED)
        raise UserError(
            f"Of {counted(len(looked), 'image')} of {where} looked for, {counts[best]}"
            f" {'was' if counts[best] == 1 else 'were'} found: {looked[0]} for one was looked for in {tried}.",
            "Put the images beside the annotations, or in a folder images or of the split's name.",
        )
    return best
