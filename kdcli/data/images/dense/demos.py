"""Images with masks, depth and boxes that need no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torchvision import tv_tensors

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import UNLABELLED, LabelKind
from kdcli.base.tasks import TASKS, Target
from kdcli.config.data import DataConfig
from kdcli.data.images.dense.materials import SPLITS, Materials, Split, find_materials
from kdcli.data.images.dense.motorcycle import WINDOW, MotorcycleSource, find_pair
from kdcli.data.images.dense.scenes import LEAST_VISIBLE, SIZE, SceneSource
from kdcli.data.images.dense.splits import complete_dense
from kdcli.data.images.sources import DenseSource, OfficialSplits
from kdcli.data.images.splits import ImageData

DENSE_DEMOS: Mapping[str, tuple[Target, ...]] = {
    "scenes": ("pixels", "depth", "boxes", "label"),
    "motorcycle": ("depth",),
}
"""Every demo, and what it has a target for."""
SCENES: Mapping[Split, int] = {"train": 2000, "validation": 300, "test": 500}
"""How many scenes there are of each split."""
_PREFIX = "demo:"
_OF_FILES = (
    "splits", "image_column", "label_column", "subset", "class_names", "ignore_label", "palette", "depth_scale",
    "invalid_depth", "deep_range",
)  # fmt: skip
_WHAT = {"pixels": "masks", "depth": "depth", "boxes": "boxes", "label": "classes"}


def open_dense_demo(name: str, target: Target, *, root: Path | None = None) -> OfficialSplits:
    """Open ``demo:NAME`` with targets of one kind; its splits share neither objects nor photographs.

    Args:
        name: without ``demo:``.
        target: of the task's row; ``label`` is the class of each scene's nearest object.
        root: ``data.root``, where Fashion-MNIST lies.

    Raises:
        UserError: there is no such demo, it has no such targets, or what it is made of is not installed.
    """
    fitting = _fitting(target)
    if name not in DENSE_DEMOS:
        raise UserError(
            f"There is no demo:{name} with {_WHAT.get(target, target)}.",
            f"{did_you_mean(f'demo:{name}', fitting)} There is: {', '.join(fitting)}.".strip(),
        )
    if target not in DENSE_DEMOS[name]:
        kinds = ", ".join(_WHAT[kind] for kind in DENSE_DEMOS[name])
        raise UserError(
            f"demo:{name} has {kinds}, and no {_WHAT.get(target, target)}.",
            f"Use {' or '.join(fitting)}." if fitting else "Use other data.",
        )
    return _motorcycle() if target == "depth" and name != "scenes" else _scenes(find_materials(root), target)


def _fitting(target: Target) -> list[str]:
    return [f"{_PREFIX}{demo}" for demo, targets in DENSE_DEMOS.items() if target in targets]


def is_demo(name: str) -> bool:
    """Whether data of this name come with the libraries, or would."""
    return name.startswith(_PREFIX) and len(name) > len(_PREFIX)


def suggest_demo(name: str, target: Target) -> str:
    """Return which demo a name may have meant that names nothing; empty for none."""
    exact = [demo for demo in _fitting(target) if demo.removeprefix(_PREFIX) == name.lower()]
    return f"Did you mean {exact[0]}?" if exact else did_you_mean(name, _fitting(target))


def open_demo_data(config: DataConfig, target: Target, *, seed: int) -> ImageData:
    """Open the demo that ``config`` names, and take or withhold as it says.

    Raises:
        UserError: as :func:`open_dense_demo`; an option about files of data; or a ``root`` that nothing is read from.
    """
    name = config.name.removeprefix(_PREFIX)
    defaults = {key: field.default for key, field in DataConfig.model_fields.items()}
    if given := [f"data.{key}" for key in _OF_FILES if getattr(config, key) != defaults[key]]:
        are = "is" if len(given) == 1 else "are"
        raise UserError(f"{' and '.join(given)} {are} set, and {config.name} is in no files of yours.", "Leave it out.")
    return complete_dense(
        open_dense_demo(name, target, root=config.root),
        config,
        task=next((row.name for row in TASKS.values() if row.target == target), ""),
        kind=cast(LabelKind, target),
        seed=seed,
        unlabelled=lambda images: DenseSource(images, _NoTargets(target, len(images))),
    )


class _NoTargets:
    """Of images whose masks or depth are not known; see :class:`kdcli.data.images.sources.Targets`."""

    in_memory = True

    def __init__(self, target: Target, number: int) -> None:
        self.labels: Sequence[int] = (UNLABELLED,) * number
        self.fill: float = 0.0 if target == "depth" else UNLABELLED
        self._type = torch.float32 if target == "depth" else torch.int64

    def load(self, index: int, size: tuple[int, int], name: str) -> tv_tensors.Mask:
        """Return a mask, (H, W), that says nothing anywhere."""
        return tv_tensors.Mask(torch.full(size[::-1], self.fill, dtype=self._type))

    def content(self, index: int) -> None:
        """Return None: there is nothing."""
        return

    def size(self, index: int) -> int:
        """Return 0."""
        return 0


def _scenes(materials: Materials, target: Target) -> OfficialSplits:
    names = {"depth": ("depth",), "pixels": ("background", *materials.class_names)}.get(target, materials.class_names)
    told = {
        "label": (f"The class of a scene is that of its nearest object; {_others()}",),
        "boxes": (f"Boxes are of the visible part; an object seen to less than {LEAST_VISIBLE:.0%} has none.",),
    }
    train, validation, test = (SceneSource(materials, split, SCENES[split], target=target) for split in SPLITS)
    notes = (materials.note, f"Scenes are {SIZE}x{SIZE} pixels.", *told.get(target, ()))
    return OfficialSplits(names, train, validation, test, notes)


def _others() -> str:
    """Return what else scenes have targets for, in words."""
    names = [row.name for row in TASKS.values() if row.target in DENSE_DEMOS["scenes"] and row.target != "label"]
    return f"scenes have masks, depth and boxes too, with --task {', '.join(names[:-1])} or {names[-1]}."


def _motorcycle() -> OfficialSplits:
    folder = find_pair()
    train, validation, test = (MotorcycleSource(folder, split) for split in SPLITS)
    note = (
        f"One photograph of scikit-image with measured depth, in windows of {WINDOW}x{WINDOW} pixels; the splits' parts"
        " share no pixel, but all show one scene."
    )
    return OfficialSplits(("depth",), train, validation, test, (note,))
