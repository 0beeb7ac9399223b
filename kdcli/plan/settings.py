"""What the plan says of settings that nothing here reads, or that are hard on this run's images."""

from __future__ import annotations

from kdcli.base.facts import DataFacts, ModelFacts, Preprocessing
from kdcli.base.tasks import TASKS
from kdcli.config.data import AugmentConfig
from kdcli.config.run import RunConfig
from kdcli.plan.plan import Decision

CROPS = "crops"
_TINY = 32
"""Sides in pixels; below it a usual crop leaves little to see."""


def tell_settings(config: RunConfig, student: ModelFacts, data: DataFacts) -> list[Decision]:
    """Return a decision with a warning for settings without effect, and one on the crops of tiny images."""
    decisions = []
    if unread := unread_settings(config, data):
        told = "; ".join(f"{name}: {why}" for name, why in unread)
        what = "This setting has" if len(unread) == 1 else "These settings have"
        decisions.append(Decision("without effect", told, "", warning=f"{what} no effect. {told}."))
    if (hint := _crops(config, student)) is not None:
        decisions.append(hint)
    return decisions


def unread_settings(config: RunConfig, data: DataFacts) -> list[tuple[str, str]]:
    """Return the keys that are set to something else than their default and that this run does not read, and why.

    Those that can be told from the config alone are refused elsewhere.
    """
    found = []
    augment, usual = config.augment, AugmentConfig()
    if config.train.cache_dtype != "float32" and config.teacher.name == "none":
        found.append(("train.cache_dtype", "there is no teacher whose outputs are rounded"))
    if augment.crop_ratio != usual.crop_ratio and augment.crop_scale == (1.0, 1.0):
        found.append(("augment.crop_ratio", "nothing is cropped at augment.crop_scale=[1,1]"))
    own = type(config.data).model_fields["labelled_share"].default
    if config.data.labelled_share != own and data.num_labelled == data.num_train:
        found.append(("data.labelled_share", f"all {data.num_train} training {data.noun}s have labels"))
    return found


def _crops(config: RunConfig, student: ModelFacts) -> Decision | None:
    """Return a hint for tiny images whose crops are those of large ones, where one class is seen in a whole image."""
    task, augment = TASKS[student.task], config.augment
    if (
        not task.reads_images
        or task.target != "label"
        or augment.pad
        or augment.crop_scale != AugmentConfig().crop_scale
    ):
        return None
    assert isinstance(student.preprocessing, Preprocessing)
    side = max(student.preprocessing.image_size)
    if side > _TINY:
        return None
    share = augment.crop_scale[0]
    return Decision(
        CROPS,
        f"{share:.0%} to 100% of the area, of {side} pixels a side",
        f"The smallest leave {round(side * share**0.5)} pixels a side. Where what is to be told fills the image,"
        " gentler ones often do better: --set 'augment.crop_scale=[0.8,1]', or as usual for CIFAR --set"
        " 'augment.crop_scale=[1,1]' --set augment.pad=4.",
    )
