"""From a data set's name to splits of images with masks, depth or boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from kdcli.base.errors import UserError, hint_of_moved, reading
from kdcli.base.tasks import TASKS, Target
from kdcli.base.text import expand_user
from kdcli.config.data import DataConfig
from kdcli.data.images.decode import UnreadableImage
from kdcli.data.images.deep import find_range, set_range
from kdcli.data.images.dense.boxes import Boxes, BoxTargets, box_notes, settle_labels
from kdcli.data.images.dense.classes import mask_classes
from kdcli.data.images.dense.coco import find_coco
from kdcli.data.images.dense.demos import is_demo, open_demo_data, suggest_demo
from kdcli.data.images.dense.depth import DepthReading, DepthTargets, is_float
from kdcli.data.images.dense.files import Encoded, Found, Paths, read_raster, size_of
from kdcli.data.images.dense.folders import find_folders
from kdcli.data.images.dense.masks import MaskTargets
from kdcli.data.images.dense.splits import complete_dense
from kdcli.data.images.dense.voc import find_boxes, find_masks
from kdcli.data.images.dense.yolo import find_yolo
from kdcli.data.images.sources import DenseSource, FileSource, ImageSource, OfficialSplits, Targets
from kdcli.data.images.splits import ImageData

DenseTarget = Literal["pixels", "depth", "boxes"]
_FORMS = {
    "pixels": "images/ and masks/, also in train/, val/ and test/.",
    "depth": "images/ and depth/, also in train/, val/ and test/.",
    "boxes": "COCO, YOLO or Pascal VOC folders.",
}
_LOOKED_AT = 16
"""So many pairs of an image and a mask or depth have their sizes compared, before anything is read."""


def open_dense(config: DataConfig, target: Target, *, seed: int) -> ImageData:
    """Open the images that ``config`` names with masks, depth or boxes, and split them.

    The form is recognised by what lies on disk. Targets are torchvision's ``tv_tensors``: a ``Mask`` int64 (H, W) of
    classes, ``UNLABELLED`` where there is none; a ``Mask`` float32 (H, W) of metres, 0 where nothing was measured; or
    ``{"boxes": BoundingBoxes XYXY float32 (n, 4), "labels": int64 (n,)}``, with ``difficult`` or ``crowd``, bool (n,),
    where the data have it.

    Args:
        config: name, splits and labels.
        target: of the task's row: ``pixels``, ``depth`` or ``boxes``.
        seed: the run's; cuts the validation split. Test images never depend on it.

    Raises:
        UserError: an unknown name or form, missing or unsuitable files, or a split that can't be made.
    """
    assert target in ("pixels", "depth", "boxes")
    with reading(config.name):
        if is_demo(config.name):
            return open_demo_data(config, target, seed=seed)
        path, forms = expand_user(config.name), f"Expected {_FORMS[target]}"
        if not path.exists():
            raise UserError(
                f"There is no data set or folder {config.name!r}.",
                " ".join(filter(None, (hint_of_moved(config.name), suggest_demo(config.name, target), forms))),
            )
        found = _find(path, config, target)
        if found is None:
            raise UserError(f"{path} is in no form that kdcli knows for {target}.", forms)
        return _open(found, config, target, path if path.is_dir() else path.parent, seed)


def _find(path: Path, config: DataConfig, target: DenseTarget) -> Found | None:
    if target == "boxes":
        forms = (find_coco, find_boxes) if path.is_dir() else (find_coco,)
        found = (form(path, config.splits) for form in forms)
        return find_yolo(path, config) or next(filter(None, found), None)
    if not path.is_dir():
        return None
    if target == "pixels" and (masks := find_masks(path, config.splits)) is not None:
        return masks
    return find_folders(path, target, config.splits)


def _open(found: Found, config: DataConfig, target: DenseTarget, folder: Path | None, seed: int) -> ImageData:
    notes = [f"Form: {found.form}.", *found.notes]
    train = found.splits["train"]
    names: tuple[str, ...]
    if target == "boxes":
        names, boxes, note = settle_labels(
            {split: of.targets for split, of in found.splits.items()}, found.class_names or (), config, found.form
        )
        kept, more = box_notes(boxes)
        more = [note, *more]
        for name, split in found.splits.items():
            check_box_sizes(split.images, kept[name])
        sources = {name: DenseSource(of.images, BoxTargets(kept[name])) for name, of in found.splits.items()}
        return _complete(sources, names, [*notes, *more], config, target, seed, targets=None)
    if target == "pixels":
        names, masks, more = mask_classes(found, config, folder, train.targets)

        def targets(encoded: Encoded) -> Targets:
            return MaskTargets(encoded, masks)
    else:
        depth, more = depth_reading(found, config, train.targets)
        names = ("depth",)

        def targets(encoded: Encoded) -> Targets:
            return DepthTargets(encoded, depth)

    for split in found.splits.values():
        check_sizes(split.images, split.targets)

    sources = {name: DenseSource(split.images, targets(split.targets)) for name, split in found.splits.items()}
    return _complete(sources, names, [*notes, *more], config, target, seed, targets=targets)


def _complete(
    sources: Mapping[str, DenseSource],
    names: tuple[str, ...],
    notes: Sequence[str],
    config: DataConfig,
    target: DenseTarget,
    seed: int,
    *,
    targets: Callable[[Encoded], Targets] | None,
) -> ImageData:
    """Return the splits; ``targets`` makes those of images without any, None where there can be none."""
    deep_range, deep_notes = find_range(sources["train"], config.deep_range)
    official = OfficialSplits(
        names, sources["train"], sources.get("validation"), sources.get("test"), (*notes, *deep_notes)
    )

    def unlabelled(images: ImageSource) -> ImageSource:
        assert targets is not None
        return DenseSource(images, targets(Paths([None] * len(images))))

    task = next((row.name for row in TASKS.values() if row.target == target), "")
    data = complete_dense(
        official,
        config,
        task=task,
        kind=target,
        seed=seed,
        unlabelled=unlabelled,
    )
    set_range((data.train, data.validation, data.test), deep_range)
    return replace(data, deep_range=deep_range)


def depth_reading(found: Found, config: DataConfig, files: Encoded) -> tuple[DepthReading, list[str]]:
    """Return how depth is read, and notes: on its scale, and on what some files then hold.

    Raises:
        UserError: files of whole numbers, whose scale is not known.
    """
    labelled = [index for index in range(len(files)) if files.encoded(index) is not None]
    chosen = dict.fromkeys(labelled[number * len(labelled) // _LOOKED_AT] for number in range(_LOOKED_AT))
    floats, whole = list[int](), list[int]()
    for index in chosen:
        encoded, name = files.encoded(index), files.describe(index)
        assert encoded is not None
        try:
            (floats if read_raster(encoded, name, is_float) else whole).append(index)
        except UnreadableImage:
            continue
    scale, why = config.depth_scale, "as data.depth_scale says"
    if scale is None and found.depth_scale is not None:
        scale, why = found.depth_scale, f"as of {found.form}"
    if scale is None and whole:
        raise UserError(
            f"The depth files hold whole numbers, such as {files.describe(whole[0])}, and their unit is not known.",
            "data.depth_scale is how many of it are in a metre: 1000 for millimetres, as in NYUv2; 256 as in KITTI.",
        )
    if scale is None:
        scale, why = 1.0, "as they are floats"
    unit = "metres" if scale == 1 else f"{scale:g} to a metre"
    note = (
        f"Depth: values are {unit}, {why}; {config.invalid_depth:g} means not measured, and so does what is not from"
        f" {config.min_depth:g} to {config.max_depth:g} metres."
    )
    reading = DepthReading(scale, config.invalid_depth, config.min_depth, config.max_depth)
    return reading, [note, *_look_at_depth(reading, files, [*floats, *whole])]


def _look_at_depth(reading: DepthReading, files: Encoded, indices: Sequence[int]) -> list[str]:
    """Return a note on what some files hold, so that a wrong scale is seen."""
    every = replace(reading, nearest=0.0, farthest=math.inf)
    number, size, beyond, parts = 0, 0, 0, []
    for index in indices:
        encoded, name = files.encoded(index), files.describe(index)
        assert encoded is not None
        try:
            metres = read_raster(encoded, name, lambda image, name=name: every.metres(image, name))
        except UnreadableImage:
            continue
        measured = metres[metres > 0]
        number, size = number + 1, size + metres.size
        beyond += int(((measured < reading.nearest) | (measured > reading.farthest)).sum())
        parts.append(measured)
    values = np.concatenate(parts) if parts else np.zeros(0)
    if number and len(values) == beyond:
        told = f"They are from {values.min():.3g} to {values.max():.3g} metres. " if len(values) else ""
        raise UserError(
            f"In {number} depth files that were looked at no depth counts. {told}".rstrip(),
            "Check data.depth_scale, data.invalid_depth, data.min_depth and data.max_depth.",
        )
    if not number:
        return []
    low, middle, high = np.quantile(values, (0.01, 0.5, 0.99))
    lost = f" {beyond / size:.1%} are beyond data.min_depth or data.max_depth and left out." if beyond else ""
    return [
        f"Of the pixels of {number} depth files looked at, {len(values) / size:.0%} are measured, mostly from {low:.3g}"
        f" to {high:.3g} metres, half of them below {middle:.3g}.{lost}"
    ]


def check_sizes(images: ImageSource, targets: Encoded) -> None:
    """Compare the sizes of some images with those of what belongs to them, by their headers.

    Raises:
        UserError: they differ.
    """
    if not isinstance(images, FileSource):
        return
    size = len(images)
    for index in dict.fromkeys(number * size // _LOOKED_AT for number in range(_LOOKED_AT)):
        encoded = targets.encoded(index)
        sizes = None if encoded is None else (size_of(images.paths[index]), size_of(encoded))
        if sizes is None or None in sizes or sizes[0] == sizes[1]:
            continue
        assert sizes[0] is not None
        assert sizes[1] is not None
        if sizes[0] == sizes[1][::-1]:  # perhaps turned by its EXIF data: seen when it is read
            continue
        raise UserError(
            f"{targets.describe(index)} is {sizes[1][0]}x{sizes[1][1]}, and its image {images.paths[index]} is"
            f" {sizes[0][0]}x{sizes[0][1]} (width x height).",
            "An image and what belongs to it have one size.",
        )


def check_box_sizes(images: ImageSource, boxes: Sequence[Boxes]) -> None:
    """Compare the sizes of some images with those that their annotations have, by their headers.

    Raises:
        UserError: they differ.
    """
    if not isinstance(images, FileSource):
        return
    size = len(images)
    for index in dict.fromkeys(number * size // _LOOKED_AT for number in range(_LOOKED_AT)):
        said, found = boxes[index].size, size_of(images.paths[index])
        if said is None or found is None or found == said or found == said[::-1]:
            continue
        raise UserError(
            f"{images.paths[index]} is {found[0]}x{found[1]}, and its boxes are of an image of {said[0]}x{said[1]}"
            " (width x height).",
            "Boxes are in pixels of the very image.",
        )
