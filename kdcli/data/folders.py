"""Class folders: ``DIR/CLASS/...``, or ``DIR/train/CLASS/...`` with ``val`` and ``test`` beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdcli.data.sources import FileSource, OfficialSplits, file_identity
from kdcli.errors import UserError
from kdcli.facts import UNLABELLED

_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
_LAYOUT = "Expected DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE with DIR/val and DIR/test alike."
_ANY_LAYOUT = "Expected images in DIR, in any depth; or all of them in DIR/train, DIR/val and DIR/test."


def open_folder(root: Path) -> OfficialSplits:
    """Find the classes and the splits in a folder.

    Raises:
        UserError: no images, no class folders, an empty class, splits with other classes than ``train``, or two
            folders for one split.
    """
    found = split_folders(root)
    if not found:
        names, whole = _class_folders(root)
        return OfficialSplits(names, whole, notes=(f"Classes: the {len(names)} folders in {root}.",))
    names, train = _class_folders(found["train"])
    others: dict[str, FileSource] = {}
    for split in ("validation", "test"):
        if split in found:
            split_names, others[split] = _class_folders(found[split])
            _check_same_classes(found[split], split_names, names)
    notes = [f"Splits: the folders {', '.join(folder.name for folder in found.values())} in {root}."]
    return OfficialSplits(names, train, others.get("validation"), others.get("test"), tuple(notes))


def open_any_folder(root: Path) -> OfficialSplits:
    """Take every image below a folder, in any depth, in folders ``train``, ``val`` and ``test`` or without any splits.

    They have the labels that :func:`open_folder` finds, or none, with a note why.

    Raises:
        UserError: no images, images beside the folders of the splits, or no or two folders for one of them.
    """
    found = _named_splits(root)
    others = sorted(entry.name for entry in _visible_folders(root) if entry not in found.values())
    loose = sum(_is_image(entry.name) for entry in root.iterdir())
    # A folder called train alone may be one of many.
    is_split = "train" in found and (not others or len(found) > 1 or bool(_visible_folders(found["train"])))
    if found and not is_split and not others:
        raise UserError(
            f"{root} has {', '.join(path.name for path in found.values())}, but no train folder.", _ANY_LAYOUT
        )
    if is_split and loose:
        raise UserError(
            f"{root} has {', '.join(path.name for path in found.values())}, and {loose} images beside them.",
            _ANY_LAYOUT,
        )
    paths: dict[str, list[str]] = {}
    for split, folder in found.items() if is_split else [("train", root)]:
        # One name of each file: the splits cut from the whole must not share any.
        paths[split] = list({file_identity(path): path for path in reversed(list_images(folder))}.values())[::-1]
        if not paths[split]:
            raise UserError(f"{folder} has no images. Known extensions: {', '.join(IMG_EXTENSIONS)}.", _ANY_LAYOUT)
    if is_split:
        notes = [f"Splits: the folders {', '.join(found[split].name for split in paths)} in {root}."]
        if others:
            notes.append(f"Left out: {', '.join(others)}.")
    else:
        notes = [f"All images below {root}."]
    names, label_of, note = _labels_by_folder(root, paths)
    sources = {split: FileSource(files, [label_of.get(f, UNLABELLED) for f in files]) for split, files in paths.items()}
    return OfficialSplits(names, sources["train"], sources.get("validation"), sources.get("test"), notes=(*notes, note))


def _labels_by_folder(root: Path, paths: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], dict[str, int], str]:
    """Return class names and the class of each file, and a note; neither where the folders are no classes."""
    try:
        labelled = open_folder(root)
    except UserError as error:
        return (), {}, f"No labels: {error.message}"
    splits = (labelled.train, labelled.validation, labelled.test)
    label_of = {
        path: label
        for source in splits
        if isinstance(source, FileSource)
        for path, label in zip(source.paths, source.labels, strict=True)
    }
    if outside := [path for files in paths.values() for path in files if path not in label_of]:
        return (), {}, f"No labels: {len(outside)} images lie outside of class folders, such as {outside[0]}."
    if len(labelled.class_names) < 2:
        return (), {}, "No labels: there is one folder of images."
    return labelled.class_names, label_of, f"Labels: the {len(labelled.class_names)} folders of images."


def list_images(folder: Path) -> list[str]:
    """Return the image files below ``folder``, sorted; hidden files and folders are left out."""
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        paths += [str(Path(parent, name)) for name in files if _is_image(name)]
    return sorted(paths)


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split, or nothing where ``root`` holds class folders."""
    found = _named_splits(root)
    if "train" in found and any(entry.is_dir() for entry in found["train"].iterdir()):
        return found
    others = [entry for entry in _visible_folders(root) if entry not in found.values()]
    if found and not others:
        problem = "no class folders in train" if "train" in found else "no train folder"
        raise UserError(f"{root} has {', '.join(path.name for path in found.values())}, but {problem}.", _LAYOUT)
    return {}  # a class may well be called "train"


def _visible_folders(root: Path) -> list[Path]:
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name)]


def _named_splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split, by its name alone."""
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir()) if entry.is_dir()}
    found: dict[str, Path] = {}
    for split, names in _SPLIT_FOLDERS.items():
        matches = [folders[name] for name in names if name in folders]
        if len(matches) > 1:
            raise UserError(
                f"{root} has more than one {split} folder: {', '.join(match.name for match in matches)}.",
                "Keep one of them.",
            )
        if matches:
            found[split] = matches[0]
    return found


class _VisibleImageFolder(ImageFolder):
    """Torchvision's ImageFolder without hidden folders such as ``.ipynb_checkpoints``."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = sorted(entry.name for entry in Path(directory).iterdir() if entry.is_dir())
        names = [name for name in names if not is_hidden(name)]
        return names, {name: index for index, name in enumerate(names)}


def _class_folders(root: Path) -> tuple[tuple[str, ...], FileSource]:
    """Return the class names and the labelled files of one folder of class folders."""
    if not any(entry.is_dir() and not is_hidden(entry.name) for entry in root.iterdir()):
        loose = sum(_is_image(entry.name) for entry in root.iterdir())
        raise UserError(
            f"{root} has {f'{loose} images but ' if loose else ''}no class folders.",
            _LAYOUT,
        )
    folder = _VisibleImageFolder(root, is_valid_file=_is_image, allow_empty=True)
    if not folder.samples:
        raise UserError(f"{root} has no images. Known extensions: {', '.join(IMG_EXTENSIONS)}.", _LAYOUT)
    filled = set(folder.targets)
    if empty := [name for index, name in enumerate(folder.classes) if index not in filled]:
        raise UserError(
            f"{root}: no images of class {', '.join(empty)}.",
            "Remove the empty folder, or put images into it; known extensions: " + ", ".join(IMG_EXTENSIONS) + ".",
        )
    return tuple(folder.classes), FileSource((path for path, _ in folder.samples), folder.targets)


def _check_same_classes(folder: Path, names: tuple[str, ...], train_names: tuple[str, ...]) -> None:
    unknown, missing = set(names) - set(train_names), set(train_names) - set(names)
    if unknown or missing:
        parts = [f"it has {', '.join(sorted(unknown))}, which train has not"] if unknown else []
        parts += [f"it lacks {', '.join(sorted(missing))}"] if missing else []
        raise UserError(
            f"The class folders of {folder} don't match those of train: {'; '.join(parts)}.",
            "Every split needs the same class folders, spelt alike.",
        )


def _is_image(path: str) -> bool:
    name = os.path.basename(path)  # noqa: PTH119 - called for every file of a large set
    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith((".", "__MACOSX"))
