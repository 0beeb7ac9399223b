"""Cityscapes as it is unpacked: ``leftImg8bit`` and ``gtFine``, with folders of the splits and of cities."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdcli.base.errors import UserError
from kdcli.base.text import counted, have
from kdcli.data.images.dense.classes import look
from kdcli.data.images.dense.files import Found, Paths, Split
from kdcli.data.images.sources import FileSource
from kdcli.data.listing import is_image, list_files
from kdcli.data.split_names import SPLIT_NAMES

TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The values in ``_labelIds.png`` of the 19 classes that are evaluated; of cityscapesScripts' ``labels.py``."""
CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
_IMAGE = "_leftImg8bit"
_KINDS = ("labelTrainIds", "labelIds")
"""Ends of the names of masks, the better one first."""


def find_cityscapes(root: Path) -> Found | None:
    """Return images and masks of the 19 classes; None where there is no ``leftImg8bit`` beside a folder of masks.

    Masks are ``_labelTrainIds.png`` where there are such, else ``_labelIds.png``, whose other values have no label. A
    test split whose masks are empty, as those of Cityscapes are, is left out.

    Raises:
        UserError: an image without a mask, or no training images.
    """
    images = root / "leftImg8bit"
    masks = next((root / name for name in ("gtFine", "gtCoarse") if (root / name).is_dir()), None)
    if not images.is_dir() or masks is None:
        return None
    notes: list[str] = []
    splits: dict[str, Split] = {}
    kind = ""
    for split, names in SPLIT_NAMES.items():
        folder = next((images / name for name in names if (images / name).is_dir()), None)
        if folder is None:
            continue
        paths = [file for file in list_files(folder, is_image).files if Path(file).stem.endswith(_IMAGE)]
        if not paths:
            continue
        if not kind:
            kind = next((kind for kind in _KINDS if os.path.isfile(_mask_of(paths[0], images, masks, kind))), "")  # noqa: PTH113
            if not kind:
                tries = [_mask_of(paths[0], images, masks, end) for end in _KINDS]
                raise UserError(
                    f"{paths[0]} has neither {' nor '.join(tries)}.",
                    "Unpack gtFine_trainvaltest.zip beside leftImg8bit.",
                )
        targets = [_mask_of(path, images, masks, kind) for path in paths]
        lacking = [path for path, mask in zip(paths, targets, strict=True) if not os.path.isfile(mask)]  # noqa: PTH113
        if lacking and split != "test":
            raise UserError(
                f"{counted(len(lacking), 'image', of=len(paths))} of the {split} split {have(len(lacking))} no mask"
                f" _{kind}.png, such as {lacking[0]}.",
                f"Complete {masks}.",
            )
        if split == "test" and (lacking or not _is_labelled(targets, kind)):
            notes.append("Test: left out, as the masks of Cityscapes' test images are not public.")
            continue
        splits[split] = Split(FileSource(paths, root=root), Paths(targets))
    if "train" not in splits:
        raise UserError(f"{images} has no images in train/CITY/.", "Unpack leftImg8bit_trainvaltest.zip.")
    values = tuple(range(len(CLASSES))) if kind == _KINDS[0] else TRAIN_IDS
    others = (255,) if kind == _KINDS[0] else (*(value for value in range(35) if value not in TRAIN_IDS), 255)
    return Found(f"Cityscapes ({masks.name}, {kind})", splits, notes, CLASSES, values, others, options=())


def _mask_of(path: str, images: Path, masks: Path, kind: str) -> str:
    below = path.removeprefix(str(images))
    stem = os.path.splitext(below)[0].removesuffix(_IMAGE)  # noqa: PTH122
    return f"{masks}{stem}_{masks.name}_{kind}.png"


def _is_labelled(masks: list[str], kind: str) -> bool:
    seen = look(Paths(masks[:4])).values
    classes = np.arange(len(CLASSES)) if kind == _KINDS[0] else np.array(TRAIN_IDS)
    return bool(np.isin(seen, classes).any())
