"""NYUv2 as its users have it on disk: scene folders of BTS and AdaBins, or the csv files of DenseDepth."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from kdcli.base.errors import UserError, reading
from kdcli.base.text import counted, have
from kdcli.data.classes import listing
from kdcli.data.images.dense.files import Found, Paths, Split, source_of
from kdcli.data.images.sources import FileSource
from kdcli.data.listing import is_image, list_files

MILLIMETRES = 1000.0
"""Units in a metre of depth files of 16 bits."""
EIGHT_BITS = 25.5
"""Likewise of DenseDepth's training files of 8 bits, of which 255 is 10 metres."""
_DEPTH = re.compile(r"sync_depth_(\d+)\.png")
_CSV = {"train": "nyu2_train.csv", "test": "nyu2_test.csv"}


def find_nyu(root: Path) -> Found | None:
    """Return images and depth; None where there is neither ``nyu2_train.csv`` nor a file ``sync_depth_00001.png``.

    Images of one scene look alike: the validation split is cut by scenes.

    Raises:
        UserError: images or depth that a list names are missing, or there is nothing to train on.
    """
    places = (root, root / "data")
    folder = next((place for place in places if (place / _CSV["train"]).is_file()), None)
    return _by_scenes(root) if folder is None else _by_csv(folder)


def _by_csv(folder: Path) -> Found:
    splits: dict[str, Split] = {}
    for split, name in _CSV.items():
        file = folder / name
        if not file.is_file():
            continue
        with reading(file):
            rows = list(csv.reader(file.read_text("utf-8-sig", "replace").splitlines()))
        pairs = [(row[0].strip(), row[1].strip()) for row in rows if len(row) >= 2]
        if not pairs or len(pairs) < len([row for row in rows if row]):
            raise UserError(f"{file} has a line without an image and a depth file.", "A line is IMAGE,DEPTH.")
        base = next((place for place in (folder, folder.parent) if (place / pairs[0][0]).is_file()), None)
        if base is None:
            raise UserError(
                f"{file} names {pairs[0][0]}, which is neither below {folder} nor below {folder.parent}.",
                "Keep nyu2_train and nyu2_test beside the csv files.",
            )
        images, depth = ([os.path.normpath(base / pair[side]) for pair in pairs] for side in (0, 1))
        splits[split] = Split(source_of(images, folder), Paths(depth))
    groups = _scenes(splits["train"])
    form = f"NYUv2 ({listing([name for split, name in _CSV.items() if split in splits])}, after DenseDepth)"
    return Found(form, splits, depth_scale=MILLIMETRES, byte_scale=EIGHT_BITS, options=(), groups=groups)


def _by_scenes(root: Path) -> Found | None:
    if not any(_DEPTH.fullmatch(Path(path).name) for path in _some(root)):
        return None
    files = list_files(root, is_image).files
    known = set(files)
    pairs: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    alone = 0
    for path in files:
        head, _, name = path.rpartition(os.sep)
        match = _DEPTH.fullmatch(name)
        if not match:
            continue
        tries = [f"{head}{os.sep}rgb_{match[1]}{suffix}" for suffix in (".jpg", ".png", ".ppm")]
        image = next((image for image in tries if image in known), None)
        if image is None:
            alone += 1
            continue
        folders = Path(head.removeprefix(str(root)).lower()).parts
        pairs["test" if "test" in folders or "testing" in folders else "train"].append((image, path))
    if not pairs["train"]:
        raise UserError(
            f"{root} has {counted(len(pairs['test']), 'pair')} of NYUv2, none of them outside of folders test.",
            "Add sync/.",
        )
    if not alone <= len(files) // 2:
        some = counted(alone, "file")
        raise UserError(f"Of sync_depth_*.png in {root}, {some} {have(alone)} no rgb_* beside.", "Add the images.")
    splits = {
        split: Split(source_of([image for image, _ in of], root), Paths([depth for _, depth in of]))
        for split, of in pairs.items()
        if of
    }
    notes = [f"{counted(alone, 'depth file')} {have(alone)} no image: left out."] if alone else []
    form = "NYUv2 (rgb_* and sync_depth_* in folders of scenes, after BTS)"
    return Found(form, splits, notes, depth_scale=MILLIMETRES, options=(), groups=_scenes(splits["train"]))


def _some(root: Path, *, depth: int = 4) -> list[str]:
    """Return a few files of each folder on the way down to the first folder without folders."""
    found: list[str] = []
    pending = [(root, 0)]
    while pending and len(found) < 256:
        folder, level = pending.pop()
        with reading(folder):
            entries = sorted(folder.iterdir())
        found += [str(entry) for entry in entries if not entry.is_dir()][:64]
        if level < depth:
            pending += [(entry, level + 1) for entry in entries[:3] if entry.is_dir()]
    return found


def _scenes(split: Split) -> tuple[str, ...]:
    assert isinstance(split.images, FileSource)
    return tuple(os.path.dirname(path) for path in split.images.paths)  # noqa: PTH120
