"""The options of the loss on the labels."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import LABELLED, LabelKind
from kdcli.base.tasks import TASKS
from kdcli.base.text import short_repr
from kdcli.config.methods.base import MethodSection, Needs
from kdcli.config.section import Positive

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


_NO_CLASSES: tuple[LabelKind, ...] = ("number", "depth", "boxes", "image")
"""Kinds of labels that nothing smooths."""


def _from_name(value: Any) -> Any:
    """Return a loss's name alone as the sum of it."""
    return {value: 1.0} if isinstance(value, str) else value


class SupervisedOptions(MethodSection):
    """The task's own loss on the labels."""

    method: Literal["supervised"] = "supervised"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread over all classes; where it is not given, 0 of labels that usually have none
    and of losses that read none."""
    loss: Annotated[Mapping[str, Positive], BeforeValidator(_from_name), Field(min_length=1)] | None = None
    """A loss of the task by name, or several with a weight each, whose sum it is; by default the task's usual one."""

    needs: ClassVar[Needs] = Needs(
        teacher=False, labels=tuple(kind for kind in LABELLED if kind not in ("unpaired", "samples"))
    )
    trains_classifier: ClassVar[bool] = True
    asks_labels_loss: ClassVar[bool] = True
    is_asked_for: ClassVar[bool] = False
    why_no_projector: ClassVar[str] = "reads the labels alone"

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        return super().idle | ({"loss"} if self.loss is None else set())

    def meaningless(self, situation: Situation) -> Set[str]:
        """The smoothing of labels that are no classes, and beside losses that read none."""
        row, terms = TASKS[situation.data.task], self.loss or ()
        unread = bool(terms) and not any(name in row.smoothed_losses for name in terms)
        return {"label_smoothing"} if unread or situation.data.label_kind in _NO_CLASSES else set()

    def shown(self) -> dict[str, str]:
        """Return its settings as the plan prints them, by name; the losses as a sum."""
        if self.loss is None:
            return super().shown()
        terms = (name if weight == 1 else f"{weight:g} {name}" for name, weight in self.loss.items())
        return super().shown() | {"loss": " + ".join(terms)}

    def settled(self, situation: Situation) -> Self:
        """Return the options with the task's usual loss, where it has several, and without smoothing by default."""
        row = TASKS[situation.data.task]
        loss = {row.losses[0]: 1.0} if self.loss is None and row.losses else self.loss
        update: dict[str, Any] = {"loss": loss} if loss is not self.loss else {}
        is_read = not row.losses or any(name in row.smoothed_losses for name in loss or ())
        if "label_smoothing" not in self.model_fields_set and not (is_read and situation.data.labels.is_smoothed):
            update["label_smoothing"] = 0.0
        return self.model_copy(update=update)

    def check(self, situation: Situation) -> None:
        """Refuse also losses that the task does not have, and to smooth labels where nothing reads it."""
        if situation.data.label_kind == "unpaired":
            raise UserError(
                f"{situation.key}: {self.method} compares an image with its own target, and these are images of two"
                " kinds without pairs.",
                "Use cycle_gan in its place, or data whose images have targets.",
            )
        super().check(situation)
        key, row = situation.key, TASKS[situation.data.task]
        losses = row.losses or situation.student.losses
        for name in self.loss or ():
            if not losses:
                raise UserError(
                    f"{key}: supervised.loss is {short_repr(name)}, and {row.name} has one loss, which has no name.",
                    "Leave loss out.",
                )
            if name not in losses:
                owner = row.name if row.losses else situation.student.name
                raise UserError(
                    f"{key}: {owner} has no loss {short_repr(name)}. {did_you_mean(name, losses)}".rstrip(),
                    f"Valid: {', '.join(losses)}.",
                )
        if not self.label_smoothing:
            return
        if situation.data.label_kind in _NO_CLASSES:
            what = situation.data.labels.parts or "numbers"
            raise UserError(
                f"{key}: label_smoothing is for classes, and the labels are {what}.", "Set label_smoothing to 0."
            )
        terms = self.loss or ()
        if terms and not any(name in row.smoothed_losses for name in terms):
            raise UserError(
                f"{key}: label_smoothing has no effect: {' and '.join(terms)} of {row.name} read"
                f"{'s' if len(terms) == 1 else ''} none.",
                "Leave label_smoothing out."
                + (f" It is for {' and '.join(row.smoothed_losses)}." if row.smoothed_losses else ""),
            )
