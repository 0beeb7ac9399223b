"""The options of the loss on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from kdcli.base.errors import UserError
from kdcli.base.facts import LABELLED
from kdcli.config.methods.base import MethodSection, Needs

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


class SupervisedOptions(MethodSection):
    """The task's own loss on the labels."""

    method: Literal["supervised"] = "supervised"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1

    needs: ClassVar[Needs] = Needs(teacher=False, labels=LABELLED)
    trains_classifier: ClassVar[bool] = True
    is_asked_for: ClassVar[bool] = False
    why_no_projector: ClassVar[str] = "reads the labels alone"

    def check(self, situation: Situation) -> None:
        """Refuse also to smooth numbers."""
        super().check(situation)
        if situation.data.label_kind in ("number", "depth") and self.label_smoothing:
            what = situation.data.labels.parts or "numbers"
            raise UserError(
                f"{situation.key}: label_smoothing is for classes, and the labels are {what}.",
                "Set label_smoothing to 0.",
            )
