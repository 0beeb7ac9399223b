"""Class folders: ``DIR/CLASS/...``, or ``DIR/train/CLASS/...`` with ``val`` and ``test`` beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.tasks import TASKS
from kdcli.config.data import SplitsConfig
from kdcli.data.classes import listing
from kdcli.data.images.dense.folders import targets_among
from kdcli.data.images.sources import FileSource, OfficialSplits, file_identity
from kdcli.data.listing import IMAGE_SUFFIXES, is_hidden, is_image, list_files, lost, told, unread_notes
from kdcli.data.split_names import EXPECTED, check_understood, match_splits, split_like

_LAYOUT = "Expected DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE with DIR/val and DIR/test alike."
_ANY_LAYOUT = "Expected images in DIR, in any depth; or all of them in DIR/train, DIR/val and DIR/test."
_KNOWN = f"Known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}; files with other suffixes are looked into."


def open_folder(root: Path, splits: SplitsConfig | None = None) -> OfficialSplits:
    """Find the classes and the splits in a folder.

    Args:
        root: the folder.
        splits: what the folders of the splits are called, where not as usual.

    Raises:
        UserError: no images, no class folders, a class without images or of which most files are not read, splits with
            other classes than ``train``, or folders that look like splits and are not understood.
    """
    found, notes = split_folders(root, splits, reads=is_image)
    unread: Counter[str] = Counter()
    if not found:
        names, whole = _class_folders(root, root, unread)
        notes = [f"Classes: the {len(names)} folders in {root}.", *_alike_inside(root, whole), *unread_notes(unread)]
        return OfficialSplits(names, whole, notes=tuple(notes))
    _count_beside(root, unread)
    names, train = _class_folders(found["train"], root, unread)
    others: dict[str, FileSource] = {}
    for split in ("validation", "test"):
        if split in found:
            split_names, others[split] = _class_folders(found[split], root, unread)
            _check_same_classes(found[split], split_names, names)
    notes += unread_notes(unread)
    return OfficialSplits(names, train, others.get("validation"), others.get("test"), tuple(notes))


def open_any_folder(root: Path, splits: SplitsConfig | None = None) -> OfficialSplits:
    """Take every image below a folder, in any depth, in folders ``train``, ``val`` and ``test`` or without any splits.

    They have the labels that :func:`open_folder` finds, or none, with a note why.

    Raises:
        UserError: no images, images beside the folders of the splits, or folders that look like splits and are not
            understood.
    """
    found, notes = split_folders(root, splits, reads=is_image, classes=False)
    paths: dict[str, list[str]] = {}
    unread: Counter[str] = Counter()
    if found:
        beside = list_files(root, is_image, deep=False)
        if beside.files:
            raise UserError(
                f"{root} has {', '.join(path.name for path in found.values())}, and {len(beside.files)} images beside"
                " them.",
                _ANY_LAYOUT,
            )
        unread += beside.unread
    for split, folder in (found or {"train": root}).items():
        files = list_files(folder, is_image)
        unread += files.unread
        # One name of each file: the splits cut from the whole must not share any.
        paths[split] = list({file_identity(path): path for path in sorted(files.files, reverse=True)}.values())[::-1]
        if not paths[split]:
            raise UserError(f"{folder} has no images{_but(files.unread)}. {_KNOWN}", _ANY_LAYOUT)
    if not found:
        notes = [f"All images below {root}."]
    names, label_of, note = _labels_by_folder(root, splits, paths)
    sources = {
        split: FileSource(files, [label_of.get(f, UNLABELLED) for f in files], root=root)
        for split, files in paths.items()
    }
    return OfficialSplits(
        names,
        sources["train"],
        sources.get("validation"),
        sources.get("test"),
        notes=(*notes, note, *unread_notes(unread)),
    )


def _labels_by_folder(
    root: Path, splits: SplitsConfig | None, paths: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], dict[str, int], str]:
    """Return class names and the class of each file, and a note; neither where the folders are no classes."""
    try:
        labelled = open_folder(root, splits)
    except UserError as error:
        return (), {}, f"No labels: {error.message}"
    sources = (labelled.train, labelled.validation, labelled.test)
    label_of = {
        path: label
        for source in sources
        if isinstance(source, FileSource)
        for path, label in zip(source.paths, source.labels, strict=True)
    }
    if outside := [path for files in paths.values() for path in files if path not in label_of]:
        return (), {}, f"No labels: {len(outside)} images lie outside of class folders, such as {outside[0]}."
    if len(labelled.class_names) < 2:
        return (), {}, "No labels: there is one folder of images."
    return labelled.class_names, label_of, f"Labels: the {len(labelled.class_names)} folders of images."


def split_folders(
    root: Path, asked: SplitsConfig | None, *, reads: Callable[[str], bool], classes: bool = True
) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, or nothing where ``root`` holds class folders, and notes.

    A class may well be called ``train``: it has no folders inside, and the folders of splits have the classes in them.

    Args:
        root: the folder.
        asked: ``data.splits``.
        reads: whether the file of a path is a sample.
        classes: the splits have class folders inside; without them, samples in any depth.

    Raises:
        UserError: two folders for one split, a name of ``asked`` that is not there, or folders that look like splits
            and are not understood: no training split, or one that is alone beside other folders of samples.
    """
    folders = {folder.name: folder for folder in _visible_folders(root)}
    found = match_splits(folders, asked, where=str(root), kind="folder")
    others = [name for name in folders if name not in found.values()]
    layout = _LAYOUT if classes else _ANY_LAYOUT
    is_asked = asked is not None and bool(asked.model_dump(exclude_none=True))
    if not is_asked and not _are_splits(folders, found, others, classes=classes):
        if found and not others:
            problem = "no class folders in train" if "train" in found else "no train folder"
            raise UserError(f"{root} has {', '.join(found.values())}, but {problem}.", f"{layout} {EXPECTED}")
        return {}, []
    samples = [name for name in others if _holds(folders[name], reads)]
    notes = [f"Splits: the folders {', '.join(found.values())} in {root}."]
    if "train" not in found or samples:
        note = check_understood(found, samples or others, asked, where=str(root), kind="folder")
        notes += [note] if note else []
    return {split: folders[name] for split, name in found.items()}, notes


def _are_splits(folders: Mapping[str, Path], found: Mapping[str, str], others: Sequence[str], *, classes: bool) -> bool:
    """Whether folders are meant as splits, and not as classes or as samples without any."""
    if any(_visible_folders(folders[name]) for name in found.values()):
        return True
    if not classes and "train" in found and (len(found) > 1 or not others):
        return True
    like = {split: name for name in others if (split := split_like(name)) is not None} | dict(found)
    return "train" in like and len(like) > 1 and len(found) < len(like)


def _alike_inside(root: Path, whole: FileSource) -> list[str]:
    """Return a note where the folders in ``root`` hold folders of the same names and no images: splits, perhaps."""
    inside: dict[str, set[str]] = {}
    for path in whole.paths:
        name, *rest = path.removeprefix(f"{root}{os.sep}").split("/")
        inside.setdefault(name, set()).add(rest[0] if len(rest) > 1 else "")
    first, *others = inside.values()
    if len(first) < 2 or "" in first or not others or any(names != first for names in others):
        return []
    return [f"Each of them holds the folders {listing(sorted(first))}: if they are splits, data.splits names them."]


def _count_beside(root: Path, unread: Counter[str]) -> None:
    """Add to ``unread`` the files in ``root`` itself, beside its folders."""
    beside = list_files(root, is_image, deep=False)
    unread += beside.unread
    if beside.files:
        unread["images beside the folders"] += len(beside.files)


def _visible_folders(root: Path) -> list[Path]:
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name)]


def _holds(folder: Path, reads: Callable[[str], bool]) -> bool:
    return bool(list_files(folder, reads).files)


def _class_folders(folder: Path, root: Path, unread: Counter[str]) -> tuple[tuple[str, ...], FileSource]:
    """Return the class names and the labelled files of a folder of class folders; ``unread`` is added to.

    Args:
        folder: with the class folders.
        root: the data folder.
        unread: kind -> number of files that are not read.
    """
    names = tuple(entry.name for entry in _visible_folders(folder))
    beside = list_files(folder, is_image, deep=False)
    if not names:
        loose = len(beside.files)
        raise UserError(
            f"{folder} has {f'{loose} images but ' if loose else ''}no class folders{_but(beside.unread)}.", _LAYOUT
        )
    _check_are_classes(folder, names)
    listings = {name: list_files(folder / name, is_image) for name in names}
    count = sum(len(found.files) for found in listings.values())
    if not count:
        raise UserError(
            f"{folder} has no images{_but(sum((found.unread for found in listings.values()), Counter()))}. {_KNOWN}",
            _LAYOUT,
        )
    if empty := [f"{name}{_but(found.unread)}" for name, found in listings.items() if not found.files]:
        raise UserError(
            f"{folder}: no images of class {listing(empty)}.",
            f"Remove the empty folder, or put images into it. {_KNOWN}",
        )
    for name, found in listings.items():
        if lost(found.unread) > len(found.files):
            raise UserError(
                f"{folder / name}: {len(found.files)} images are read, and most files are not: {told(found.unread)}.",
                f"Convert them to one of kdcli's formats, or move them elsewhere. {_KNOWN}",
            )
    if len(beside.files) > count:
        raise UserError(
            f"{folder} has {len(beside.files)} images beside its class folders, and only {count} inside.", _LAYOUT
        )
    for found in listings.values():
        unread += found.unread
    _count_beside(folder, unread)
    paths = [path for found in listings.values() for path in found.files]
    labels = [label for label, found in enumerate(listings.values()) for _ in found.files]
    return names, FileSource(paths, labels, root=root)


def _check_are_classes(folder: Path, names: Sequence[str]) -> None:
    """Refuse images and their masks or depth, which are no two classes."""
    if (found := targets_among([folder / name for name in names])) is not None:
        images, targets, what = found
        task = next(name for name, row in TASKS.items() if row.target == what)
        raise UserError(
            f"{folder}: {images.name}/ and {targets.name}/ are no classes: their files have the same names.",
            f"Images with {'masks' if what == 'pixels' else 'depth'} are for --task {task}.",
        )


def _but(unread: Mapping[str, int]) -> str:
    return f" (not read: {told(unread)})" if unread else ""


def _check_same_classes(folder: Path, names: tuple[str, ...], train_names: tuple[str, ...]) -> None:
    unknown, missing = set(names) - set(train_names), set(train_names) - set(names)
    if unknown or missing:
        parts = [f"it has {', '.join(sorted(unknown))}, which train has not"] if unknown else []
        parts += [f"it lacks {', '.join(sorted(missing))}"] if missing else []
        raise UserError(
            f"The class folders of {folder} don't match those of train: {'; '.join(parts)}.",
            "Every split needs the same class folders, spelt alike.",
        )
