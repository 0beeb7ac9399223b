"""Images with masks, depth and boxes that need no download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import Target
from kdcli.data.images.dense.materials import SPLITS, Materials, Split, find_materials
from kdcli.data.images.dense.motorcycle import WINDOW, MotorcycleSource, find_pair
from kdcli.data.images.dense.scenes import LEAST_VISIBLE, SIZE, SceneSource
from kdcli.data.images.sources import OfficialSplits

DENSE_DEMOS: Mapping[str, tuple[Target, ...]] = {
    "scenes": ("pixels", "depth", "boxes", "label"),
    "motorcycle": ("depth",),
}
"""Every demo, and what it has a target for."""
SCENES: Mapping[Split, int] = {"train": 2000, "validation": 300, "test": 500}
"""How many scenes there are of each split."""
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
    fitting = [f"demo:{demo}" for demo, targets in DENSE_DEMOS.items() if target in targets]
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


def _scenes(materials: Materials, target: Target) -> OfficialSplits:
    names = {"depth": ("depth",), "pixels": ("background", *materials.class_names)}.get(target, materials.class_names)
    told = {
        "label": ("The class of a scene is that of its nearest object.",),
        "boxes": (f"Boxes are of the visible part; an object seen to less than {LEAST_VISIBLE:.0%} has none.",),
    }
    train, validation, test = (SceneSource(materials, split, SCENES[split], target=target) for split in SPLITS)
    notes = (materials.note, f"Scenes are {SIZE}x{SIZE} pixels.", *told.get(target, ()))
    return OfficialSplits(names, train, validation, test, notes)


def _motorcycle() -> OfficialSplits:
    folder = find_pair()
    train, validation, test = (MotorcycleSource(folder, split) for split in SPLITS)
    note = (
        f"One photograph of scikit-image with measured depth, in windows of {WINDOW}x{WINDOW} pixels; the splits' parts"
        " share no pixel, but all show one scene."
    )
    return OfficialSplits(("depth",), train, validation, test, (note,))
