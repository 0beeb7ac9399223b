"""Folders of images beside folders of masks or depth: ``images/`` and ``masks/``, or ``images/`` and ``depth/``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdcli.base.errors import UserError
from kdcli.base.text import counted, have
from kdcli.config.data import SplitsConfig
from kdcli.data.classes import listing
from kdcli.data.images.dense.files import Found, Paths, Split, is_raster
from kdcli.data.images.sources import FileSource
from kdcli.data.listing import is_hidden, is_image, list_files, unread_notes
from kdcli.data.split_names import check_understood, match_splits

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "rgb", "photos", "input", "inputs", "color", "colour", "x")
TARGETS: Mapping[Literal["pixels", "depth"], tuple[str, ...]] = {
    "pixels": (
        *("masks", "mask", "labels", "label", "annotations", "annotation", "segmentation", "segmentations"),
        *("segmentationclass", "segmentation_class", "semantic", "gt", "ground_truth", "groundtruth", "targets", "y"),
    ),
    "depth": (
        *("depth", "depths", "depth_map", "depth_maps", "depthmaps", "depth_gt", "gt", "ground_truth", "groundtruth"),
        *("targets", "y"),
    ),
}
"""Names of the folders of targets, in any case."""
_WORDS = (
    *("image", "img", "rgb", "color", "colour", "leftimg8bit", "frame"),
    *("mask", "masks", "label", "labels", "seg", "segmentation", "gt", "groundtruth", "l", "annotation"),
    *("depth", "depths", "depthmap", "sync", "target"),
)
"""Words at either end of a file's name that only say which of the two it is."""
_ENDS = re.compile(rf"^(?:(?:{'|'.join(_WORDS)})[-_. ]+)+|(?:[-_. ]+(?:{'|'.join(_WORDS)}))+$", re.IGNORECASE)


@dataclass(frozen=True)
class _Place:
    """A folder of images and one of targets."""

    images: Path
    targets: Path


def targets_among(folders: Sequence[Path]) -> tuple[Path, Path, Literal["pixels", "depth"]] | None:
    """Return folders of images, of their targets, and what these are: where most images have a target of their name.

    Args:
        folders: beside one another; class folders have other names, or files of other names.
    """
    words = [folder for folder in folders if len(folder.name) > 1]  # x and y may well be classes
    for target, names in TARGETS.items():
        for images in (folder for folder in words if folder.name.lower() in IMAGES):
            for other in (folder for folder in words if folder.name.lower() in names):
                stems, found = _stems(images), _stems(other)
                if 2 * len(stems & found) > len(stems):
                    return images, other, target
    return None


def _stems(folder: Path) -> set[str]:
    """Return what the files of a folder are called, without what says whether they are images or targets."""
    files = list_files(folder, is_raster).files
    return {_without_words(os.path.splitext(path.removeprefix(f"{folder}{os.sep}"))[0]) for path in files}  # noqa: PTH122


def find_folders(root: Path, target: Literal["pixels", "depth"], asked: SplitsConfig | None) -> Found | None:
    """Return images and targets out of folders beside one another; None where there are no such folders.

    They lie in ``root``, in each of the folders of the splits (``train/images``, ``train/masks``), or have the folders
    of the splits in them (``images/train``, ``masks/train``).

    Args:
        root: the folder.
        target: what is looked for.
        asked: ``data.splits``.

    Raises:
        UserError: the splits are not understood, or images and targets don't go together.
    """
    here = _place(root, target)
    folders = {folder.name: folder for folder in _folders(root)}
    places: dict[str, _Place] = {}
    notes: list[str] = []
    if here is None:
        inside = {name: place for name, folder in folders.items() if (place := _place(folder, target)) is not None}
        if not inside:
            return None
        found = match_splits(inside, asked, where=str(root), kind="folder")
        others = [name for name in inside if name not in found.values()]
        note = check_understood(found, others, asked, where=str(root), kind="folder") if others or found else None
        if not found:
            raise UserError(
                f"{root} has no training split; its folders are {listing(sorted(inside))}.", "Call it train."
            )
        if "train" not in found:
            check_understood(found, others, asked, where=str(root), kind="folder")
        notes += [f"Splits: the folders {', '.join(found.values())} in {root}.", *([note] if note else [])]
        places = {split: inside[name] for split, name in found.items()}
        form = f"folders {places['train'].images.name}/ and {places['train'].targets.name}/ in those of the splits"
    else:
        form = f"folders {here.images.name}/ and {here.targets.name}/"
        inner = [
            {folder.name for folder in _folders(side) if list_files(folder, is_raster).files}
            for side in (here.images, here.targets)
        ]
        both = inner[0] & inner[1]
        found = match_splits(both, asked, where=str(here.images), kind="folder")
        is_split = "train" in found and (len(found) > 1 or asked is not None)
        if is_split:
            others = sorted((inner[0] | inner[1]) - set(found.values()))
            notes += [f"Splits: the folders {', '.join(found.values())} in both."]
            notes += [f"Left out: the folders {listing(others)}."] if others else []
            places = {split: _Place(here.images / name, here.targets / name) for split, name in found.items()}
        else:
            places = {"train": here}
    unread: Counter[str] = Counter()
    splits = {split: _split(place, split, root, unread, notes) for split, place in places.items()}
    return Found(form, splits, [*notes, *unread_notes(unread)])


def _folders(root: Path) -> list[Path]:
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name)]


def _place(root: Path, target: Literal["pixels", "depth"]) -> _Place | None:
    """Return the folders of images and of targets right in a folder, by the first of their names that there are."""
    named = {folder.name.lower(): folder for folder in _folders(root)}
    images = next((named[name] for name in IMAGES if name in named), None)
    targets = next((named[name] for name in TARGETS[target] if name in named), None)
    return None if images is None or targets is None else _Place(images, targets)


def _split(place: _Place, split: str, root: Path, unread: Counter[str], notes: list[str]) -> Split:
    images, targets = list_files(place.images, is_image), list_files(place.targets, is_raster)
    unread += images.unread + targets.unread
    pairs, alone = pair(
        images.files, targets.files, root=(place.images, place.targets), what=(str(place.images), str(place.targets))
    )
    return paired(pairs, alone, split=split, root=root, notes=notes)


def pair(
    images: Sequence[str], targets: Sequence[str], *, root: tuple[Path, Path], what: tuple[str, str]
) -> tuple[dict[str, str | None], list[str]]:
    """Return the target of every image, and the targets without an image.

    They have one path below their folders but for the suffix; or but for words at its ends such as ``_mask`` and
    ``rgb_``.

    Args:
        images: paths.
        targets: paths.
        root: the folder of either.
        what: the folders in words.

    Raises:
        UserError: there are none, none go together, or two targets go with one image.
    """
    for files, where in zip((images, targets), what, strict=True):
        if not files:
            raise UserError(f"{where} has no files that can be read.", "Images, PNG and TIFF files, npy and npz files.")
    names = [
        {path: os.path.splitext(path.removeprefix(f"{folder}{os.sep}"))[0] for path in paths}  # noqa: PTH122
        for paths, folder in zip((images, targets), root, strict=True)
    ]
    found = _match(*names)
    if len([path for path in found.values() if path is not None]) < min(len(images), len(targets)):
        cut = [{path: _without_words(name) for path, name in side.items()} for side in names]
        wider = _match(*cut)
        if sum(path is not None for path in wider.values()) > sum(path is not None for path in found.values()):
            found = wider
    used = {path for path in found.values() if path is not None}
    alone = [path for path in targets if path not in used]
    if 2 * len(used) < len(images):
        raise UserError(
            f"{counted(len(used), 'image', of=len(images))} in {what[0]} {have(len(used))} a file of the same name in"
            f" {what[1]}; the first ones are {_first(names[0])} and {_first(names[1])}.",
            "An image and what belongs to it have one name, but for the suffix, or words such as _mask or _depth.",
        )
    return found, alone


def _first(names: Mapping[str, str]) -> str:
    return next(iter(sorted(os.path.basename(path) for path in names)))  # noqa: PTH119


def _without_words(name: str) -> str:
    folder, slash, last = name.rpartition(os.sep)
    return folder + slash + (_ENDS.sub("", last) or last)


def _match(images: Mapping[str, str], targets: Mapping[str, str]) -> dict[str, str | None]:
    """Return the target of each image by what is left of their names; none for an image where that is not one."""
    by_name: dict[str, list[str]] = {}
    for path, name in targets.items():
        by_name.setdefault(name, []).append(path)
    of_images = Counter(images.values())
    found: dict[str, str | None] = {}
    for path, name in images.items():
        fitting = by_name.get(name, [])
        if len(fitting) > 1:
            raise UserError(f"{fitting[0]} and {fitting[1]} both belong to the image {path}.", "Keep one of them.")
        if fitting and of_images[name] > 1:
            both = [other for other, of in images.items() if of == name]
            raise UserError(f"{fitting[0]} belongs to both {both[0]} and {both[1]}.", "Give each a name of its own.")
        found[path] = fitting[0] if fitting else None
    return found


def paired(
    pairs: Mapping[str, str | None], alone: Sequence[str], *, split: str, root: Path | None, notes: list[str]
) -> Split:
    """Return a split of images and the files of their targets.

    Images of the training split that have none stay, unlabelled; those of other splits are left out. ``notes`` is told.
    """
    lacking = [path for path, target in pairs.items() if target is None]
    kept = dict(pairs)
    if lacking:
        is_one = len(lacking) == 1
        fates = ("it stays, unlabelled", "it is left out") if is_one else ("they stay, unlabelled", "they are left out")
        fate = fates[split != "train"]
        notes.append(
            f"{counted(len(lacking), 'image', of=len(pairs))} of the {split} split {have(len(lacking))} no file that"
            f" belongs to {'it' if is_one else 'them'}, such as {lacking[0]}: {fate}."
        )
        if split != "train":
            kept = {path: target for path, target in pairs.items() if target is not None}
    if alone:
        are = "it is" if len(alone) == 1 else "they are"
        notes.append(
            f"{counted(len(alone), 'file')} of the {split} split {have(len(alone))} no image, such as {alone[0]}: {are}"
            " left out."
        )
    return Split(FileSource(kept, root=root), Paths(list(kept.values())))
