"""Pascal VOC's folders: boxes in xml files, masks with a palette, and lists of the splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from kdcli.base.errors import UserError, reading
from kdcli.base.text import counted, have
from kdcli.config.data import SplitsConfig
from kdcli.data.classes import listing
from kdcli.data.images.dense.boxes import Boxes, make_boxes, parsed
from kdcli.data.images.dense.files import Found, Paths, Split, is_raster
from kdcli.data.images.sources import FileSource
from kdcli.data.listing import is_hidden, is_image, list_files, suffix_of
from kdcli.data.split_names import match_splits

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Of the masks of VOC2007 to VOC2012."""
_OWN = re.compile(r"VOC20\d\d(_\w+)?")
_IMAGES = ("JPEGImages", "images", "Images", "imgs")
_BOXES = ("Annotations", "annotations", "xml", "xmls")
_HINT = "Expected an object with a name and a bndbox of xmin, ymin, xmax and ymax in pixels, from 1 on."


def find_boxes(path: Path, asked: SplitsConfig | None) -> Found | None:
    """Return images and boxes by xml files in ``Annotations``, or beside the images in folders of the splits; or None.

    Raises:
        UserError: a list or an xml file is none, or images are missing.
    """
    root = _devkit(path)
    places = _of_kind(root, _IMAGES, _BOXES, ".xml")
    if places is None:
        return _beside(root, asked)
    images, annotations = places
    xmls = _by_stem(list_files(annotations, _is_xml).files)
    pictures = _by_stem(list_files(images, is_image).files)
    lists, notes = _lists(root / "ImageSets" / "Main", asked)
    chosen = _chosen(lists, xmls, pictures, notes, what=str(annotations))
    return _by_xml(chosen, xmls, pictures, root, f"Pascal VOC ({images.name}/ and {annotations.name}/)", notes)


def find_masks(path: Path, asked: SplitsConfig | None) -> Found | None:
    """Return images and masks in ``SegmentationClass``, with the lists of ``ImageSets/Segmentation``; or None.

    Raises:
        UserError: a list is none, or images are missing.
    """
    root = _devkit(path)
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    if not images.is_dir() or not masks.is_dir():
        return None
    targets = _by_stem(list_files(masks, is_raster).files)
    pictures = _by_stem(list_files(images, is_image).files)
    lists, notes = _lists(root / "ImageSets" / "Segmentation", asked)
    chosen = _chosen(lists, targets, pictures, notes, what=str(masks))
    splits = {
        split: Split(FileSource([pictures[name] for name in of], root=root), Paths([targets[name] for name in of]))
        for split, of in chosen.items()
    }
    names = VOC_CLASSES if _OWN.fullmatch(root.name) else None
    return Found("Pascal VOC (JPEGImages/ and SegmentationClass/)", splits, notes, names, ignored=(255,))


def _devkit(path: Path) -> Path:
    """Return the folder itself, or the one such as ``VOCdevkit/VOC2012`` in it."""
    below = [path, path / "VOCdevkit"]
    inner = [entry for folder in below if folder.is_dir() for entry in sorted(folder.iterdir()) if entry.is_dir()]
    found = [entry for entry in inner if (entry / "JPEGImages").is_dir()]
    if (path / "JPEGImages").is_dir() or not found:
        return path
    if len(found) > 1:
        raise UserError(f"{path} has {listing([entry.name for entry in found])}.", "Name one of them.")
    return found[0]


def _of_kind(root: Path, first: Sequence[str], second: Sequence[str], suffix: str) -> tuple[Path, Path] | None:
    images = next((root / name for name in first if (root / name).is_dir()), None)
    others = [root / name for name in second if (root / name).is_dir()]
    other = next((f for f in others if list_files(f, lambda name: suffix_of(name) == suffix).files), None)
    return None if images is None or other is None else (images, other)


def _is_xml(name: str) -> bool:
    return suffix_of(name) == ".xml"


def _lists(folder: Path, asked: SplitsConfig | None) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names in each split's list, and notes; nothing where there are no lists."""
    files = (
        {entry.stem: entry for entry in sorted(folder.iterdir()) if suffix_of(entry.name) == ".txt"}
        if folder.is_dir()
        else {}
    )
    if not files:
        return {}, ["Splits: there are no lists in ImageSets."]
    found = match_splits(files, asked, where=str(folder), kind="file")
    if "train" not in found and "trainval" in files:
        found = {"train": "trainval", **{split: name for split, name in found.items() if split == "test"}}
    if "train" not in found:
        raise UserError(
            f"{folder} has no train.txt; its lists are {listing(sorted(files))}.", "data.splits.train=NAME names one."
        )
    lists = {split: _names(files[name]) for split, name in found.items()}
    usual = {*found.values(), "trainval"}
    others = [name for name in files if name not in usual and not re.fullmatch(r"\w+_(train|val|trainval|test)", name)]
    notes = [f"Splits: the lists {listing([f'{name}.txt' for name in found.values()])} in {folder}."]
    notes += [f"Left out: the lists {listing(others)}."] if others else []
    return lists, notes


def _names(file: Path) -> list[str]:
    with reading(file):
        lines = file.read_text("utf-8", "replace").splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise UserError(f"{file} is empty.", "It names an image in every line.")
    return list(dict.fromkeys(Path(name).stem if "/" in name or is_named_file(name) else name for name in names))


def _by_stem(files: Sequence[str], *, below: Path | None = None) -> dict[str, str]:
    """Return the files by their names without suffix, and without folder or with those below ``below``.

    Raises:
        UserError: two have one name.
    """
    found: dict[str, str] = {}
    for file in files:
        path = Path(file)
        name = path.stem if below is None else str(path.relative_to(below).with_suffix(""))
        if name in found:
            raise UserError(
                f"Both {found[name]} and {file} are called {name}: what belongs to which can't be told.",
                "Give every image a name of its own, without suffix and folder too.",
            )
        found[name] = file
    return found


def is_named_file(name: str) -> bool:
    """Whether a name in a list has the suffix of an image."""
    return suffix_of(name) in (".jpg", ".jpeg", ".png", ".bmp")


def _chosen(
    lists: Mapping[str, Sequence[str]],
    targets: Mapping[str, str],
    pictures: Mapping[str, str],
    notes: list[str],
    *,
    what: str,
) -> dict[str, list[str]]:
    """Return the names of each split that have an image and what belongs to it; ``notes`` is told of the others."""
    splits = dict(lists) or {"train": sorted(pictures)}
    chosen: dict[str, list[str]] = {}
    for split, names in splits.items():
        complete = [name for name in names if name in targets and name in pictures]
        lacking = [name for name in names if name not in targets or name not in pictures]
        if 2 * len(complete) <= len(names):
            raise UserError(
                f"Of {len(names)} names of the {split} split {len(complete)} have an image and a file in {what};"
                f" {lacking[0]} has not.",
                "Put the files there, or take the names out of the list.",
            )
        if lacking:
            notes.append(
                f"{counted(len(lacking), 'name', of=len(names))} of the {split} split {have(len(lacking))} no image or"
                f" no file in {what}, such as {lacking[0]}: left out."
            )
        chosen[split] = complete
    listed = {name for names in chosen.values() for name in names}
    if lists and (rest := [name for name in targets if name not in listed]):
        notes.append(f"In no list: {counted(len(rest), 'file')} in {what}, such as {rest[0]}, left out.")
    return chosen


def _beside(root: Path, asked: SplitsConfig | None) -> Found | None:
    """Return images with xml files beside them, in folders of the splits or in one folder."""
    folders = {entry.name: entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name)}
    with_xml = {name: folder for name, folder in folders.items() if list_files(folder, _is_xml).files}
    found = match_splits(with_xml, asked, where=str(root), kind="folder") if with_xml else {}
    places = {split: with_xml[name] for split, name in found.items()} if "train" in found else {"train": root}
    notes = [f"Splits: the folders {', '.join(found.values())} in {root}."] if len(places) > 1 else []
    splits: dict[str, Split] = {}
    form = "Pascal VOC's xml files beside the images"
    read: dict[str, tuple[list[str], list[_Read]]] = {}
    for split, folder in places.items():
        xmls = _by_stem(list_files(folder, _is_xml, deep=split in found).files, below=folder)
        pictures = _by_stem(list_files(folder, is_image, deep=split in found).files, below=folder)
        if not xmls or not pictures:
            return None
        names = _chosen({}, xmls, pictures, notes, what=str(folder))["train"]
        read[split] = [pictures[name] for name in names], [_read(xmls[name]) for name in names]
    classes, splits = _numbered(read, root)
    return Found(form, splits, notes, classes)


_Read = tuple[str, tuple[int, int] | None, list[str], list[list[float]], list[bool]]
"""Of an xml file: its path, the image's size, and of every object name, corners and whether it is difficult."""


def _by_xml(
    chosen: Mapping[str, Sequence[str]],
    xmls: Mapping[str, str],
    pictures: Mapping[str, str],
    root: Path,
    form: str,
    notes: list[str],
) -> Found:
    read = {
        split: ([pictures[name] for name in names], [_read(xmls[name]) for name in names])
        for split, names in chosen.items()
    }
    classes, splits = _numbered(read, root)
    return Found(form, splits, notes, classes)


def _numbered(
    read: Mapping[str, tuple[list[str], list[_Read]]], root: Path
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Return the class names in order, and the splits with boxes."""
    classes = tuple(sorted({name for _, of in read.values() for entry in of for name in entry[2]}))
    if not classes:
        raise UserError(f"No xml file in {root} has an object.", _HINT)
    labels = {name: label for label, name in enumerate(classes)}

    def boxes(entry: _Read) -> Boxes:
        file, size, names, rows, difficult = entry
        chosen = [labels[name] for name in names]
        return parsed(file, lambda: make_boxes(rows, chosen, {"difficult": difficult}, size=size))

    return classes, {
        split: Split(FileSource(paths, root=root), [boxes(entry) for entry in of])
        for split, (paths, of) in read.items()
    }


def _read(file: str) -> _Read:
    path = Path(file)
    with reading(path):
        content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise UserError(f"{path} defines entities, which are not read.", "Save it as plain xml.")
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path} is no xml: {error}.", _HINT) from error
    names, rows, difficult = [], [], []
    for number, entry in enumerate(tree.iter("object"), 1):
        name = (entry.findtext("name") or "").strip()
        box = entry.find("bndbox")
        texts = [None if box is None else box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = (float(text or "") for text in texts)
        except ValueError as error:
            raise UserError(f"{path}: object {number} has no corners.", _HINT) from error
        if not name:
            raise UserError(f"{path}: object {number} has no name.", _HINT)
        names.append(name)
        rows.append([left - 1, top - 1, right, bottom])  # of pixels that are counted from 1: the last one is inside
        difficult.append((entry.findtext("difficult") or "0").strip() not in ("0", ""))
    try:
        width, height = (int(float(tree.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    except (ValueError, OverflowError):
        width = height = 0
    return file, (width, height) if width > 0 and height > 0 else None, names, rows, difficult
