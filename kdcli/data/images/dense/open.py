"""From a data set's name to splits of images with masks, depth or boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from kdcli.base.errors import UserError, beside, hint_of_moved, reading
from kdcli.base.tasks import DEFAULT_TASK, TASKS, Target
from kdcli.base.text import expand_user
from kdcli.config.data import DataConfig
from kdcli.data.columns import extension_of, load_extension
from kdcli.data.images.deep import find_range, set_range
from kdcli.data.images.dense.boxes import BoxTargets, box_notes, count_boxes, settle_labels
from kdcli.data.images.dense.cityscapes import find_cityscapes
from kdcli.data.images.dense.classes import mask_classes
from kdcli.data.images.dense.coco import find_coco
from kdcli.data.images.dense.demos import is_demo, open_demo_data, suggest_demo
from kdcli.data.images.dense.depth import DepthTargets, depth_reading
from kdcli.data.images.dense.files import Encoded, Found, Paths
from kdcli.data.images.dense.folders import find_folders
from kdcli.data.images.dense.lists import find_lists
from kdcli.data.images.dense.masks import MaskTargets
from kdcli.data.images.dense.nyu import find_nyu
from kdcli.data.images.dense.sizes import check_box_sizes, check_sizes
from kdcli.data.images.dense.splits import complete_dense
from kdcli.data.images.dense.tables import find_in_tables
from kdcli.data.images.dense.voc import find_boxes, find_masks
from kdcli.data.images.dense.yolo import find_yolo
from kdcli.data.images.sources import DenseSource, ImageSource, OfficialSplits, Targets
from kdcli.data.images.splits import ImageData
from kdcli.data.images.tables import holds_tables, load_hub, load_local_tables

DenseTarget = Literal["pixels", "depth", "boxes"]
_FORMS = {
    "pixels": "Expected folders images/ and masks/ (also in train/, val/ and test/), those of Cityscapes or Pascal VOC,"
    " a csv or jsonl file of paths, a table, or demo:scenes.",
    "depth": "Expected folders images/ and depth/ (also in train/, val/ and test/), those of NYUv2, a csv or jsonl file"
    " of paths, a table, or demo:scenes.",
    "boxes": "Expected folders of COCO, YOLO or Pascal VOC, a csv or jsonl file of paths and boxes, a table, or"
    " demo:scenes.",
}
_WHAT: Mapping[DenseTarget, str] = {"pixels": "masks", "depth": "depth", "boxes": "boxes"}


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
        try:
            found, folder = _find(config, target)
        except UserError as error:
            raise UserError(error.message, f"{_of_another_task(config, target)}{error.hint}") from error
        _check_options(found, config)
        return _open(found, config, target, folder, seed)


def _find(config: DataConfig, target: DenseTarget) -> tuple[Found, Path | None]:
    """Return what there is, and the folder that it lies in."""
    if (entry := extension_of(config.name)) is not None:
        return find_in_tables(load_extension(entry, config), config.splits, [], target, config), None
    scheme, _, rest = config.name.partition(":")
    if scheme == "hf" and rest:
        found = find_in_tables(load_hub(rest, config), config.splits, [], target, config)
        return replace(found, options=(*found.options, "subset")), None
    path, forms = expand_user(config.name), _FORMS[target]
    if not path.exists():
        near = beside(config.name) or suggest_demo(config.name, target)
        hints = (hint_of_moved(config.name), near, forms)
        raise UserError(f"There is no data set or folder {config.name!r}.", " ".join(filter(None, hints)))
    if holds_tables(path):
        loaded, asked, notes = load_local_tables(path, config)
        return find_in_tables(loaded, asked, notes, target, config), path if path.is_dir() else path.parent
    if path.is_dir():
        found_here = next(filter(None, (find() for find in _folder_forms(path, target, config))), None)
    elif target == "boxes":
        found_here = find_coco(path, None) or find_yolo(path, config)
    else:
        found_here = None
    found_here = found_here or find_lists(path, target, config)
    if found_here is None:
        raise UserError(f"{path} is in no form that kdcli knows for {_WHAT[target]}.", forms)
    return found_here, path if path.is_dir() else path.parent


def _of_another_task(config: DataConfig, target: DenseTarget) -> str:
    """Return which task the data are for, where they lie on disk in a form of another one's; else ``""``."""
    if extension_of(config.name) is not None or not expand_user(config.name).exists():
        return ""
    for other, what in _WHAT.items():
        if other != target:
            with suppress(UserError, OSError):
                _find(config, other)
                task = next(name for name, row in TASKS.items() if row.target == other)
                return f"It holds {what}: --task {task}. "
    return ""


def _folder_forms(path: Path, target: DenseTarget, config: DataConfig) -> list[Callable[[], Found | None]]:
    """Return what looks for each form of a folder, the most special one first."""
    splits = config.splits
    if target == "boxes":
        return [lambda: find_coco(path, splits), lambda: find_yolo(path, config), lambda: find_boxes(path, splits)]
    if target == "pixels":
        special = [lambda: find_cityscapes(path), lambda: find_masks(path, splits)]
    else:
        special = [lambda: find_nyu(path)]
    return [*special, lambda: find_folders(path, target, splits)]


def _check_options(found: Found, config: DataConfig) -> None:
    """Refuse options that a form doesn't read."""
    for option in ("image_column", "label_column", "subset", "splits", "box_format"):
        if getattr(config, option) is not None and option not in found.options:
            raise UserError(
                f"data.{option} is set, but {config.name} is read as {found.form}, where it has no effect.",
                "Leave it out.",
            )


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
        data = _complete(sources, names, [*notes, *more], config, target, seed)
        counts = count_boxes({"train": data.train, "validation": data.validation, "test": data.test})
        return replace(data, facts=replace(data.facts, notes=(*data.facts.notes, counts)))
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
    groups = found.groups
    return _complete(sources, names, [*notes, *more], config, target, seed, targets=targets, groups=groups)


def _complete(
    sources: Mapping[str, DenseSource],
    names: tuple[str, ...],
    notes: Sequence[str],
    config: DataConfig,
    target: DenseTarget,
    seed: int,
    *,
    targets: Callable[[Encoded], Targets] | None = None,
    groups: Sequence[str] = (),
) -> ImageData:
    """Return the splits; ``targets`` makes those of images without any, where there can be such."""
    deep_range, deep_notes = find_range(sources["train"], config.deep_range)
    official = OfficialSplits(
        names, sources["train"], sources.get("validation"), sources.get("test"), (*notes, *deep_notes)
    )

    def unlabelled(images: ImageSource) -> ImageSource:
        assert targets is not None
        return DenseSource(images, targets(Paths([None] * len(images))))

    task = next((row.name for row in TASKS.values() if row.target == target), DEFAULT_TASK)
    data = complete_dense(
        official,
        config,
        task=task,
        kind=target,
        seed=seed,
        unlabelled=unlabelled,
        groups=groups,
    )
    set_range((data.train, data.validation, data.test), deep_range)
    return replace(data, deep_range=deep_range)
