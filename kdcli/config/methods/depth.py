"""The options of the distillation of depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from kdcli.base.errors import UserError
from kdcli.base.reads import DEPTH
from kdcli.config.methods.base import MethodSection, Needs

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


class DenseRegressionOptions(MethodSection):
    """The teacher's depth as a target beside the measured one, at every pixel of every image."""

    method: Literal["dense_regression"] = "dense_regression"
    loss: Literal["silog", "l1", "berhu", "scale_shift_invariant"] | None = None
    """By default ``silog`` of a teacher in metres, ``scale_shift_invariant`` of one whose depth is relative. With the
    other three a relative depth is first aligned to the measured one of its image, as for the metrics; an image without
    measured depth then adds nothing."""
    gradient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the gradients' difference beside it, over four scales (MiDaS has 0.5): of inverse depth without its
    median, in units of its mean absolute deviation. Here and with ``scale_shift_invariant`` depth is a hundredth of
    ``data.max_depth`` at least."""

    needs: ClassVar[Needs] = Needs()
    trains_classifier: ClassVar[bool] = True
    why_no_projector: ClassVar[str] = "compares depth, which needs no map"

    def settled(self, situation: Situation) -> Self:
        """Return the options with the loss written out."""
        if self.loss is not None or situation.teacher is None:
            return self
        usual = "scale_shift_invariant" if situation.teacher.depth == "inverse" else "silog"
        return self.model_copy(update={"loss": usual})

    def check(self, situation: Situation) -> None:
        """Refuse also a teacher without depth."""
        super().check(situation)
        teacher = situation.teacher
        assert teacher is not None, "it needs one"
        if DEPTH not in situation.student.heads:
            raise UserError(
                f"{situation.key}: {self.method} is about depth, and the task is {situation.data.task}.",
                f"Remove {self.method}.",
            )
        if DEPTH not in teacher.heads:
            raise UserError(
                f"{situation.key}: {self.method} needs a teacher that gives depth, and {teacher.name} is for"
                f" {teacher.task}.",
                f"Remove {self.method}; a projection works across tasks.",
            )
        if not teacher.pretrained:
            raise UserError(
                f"{situation.key}: {self.method} has the student repeat the teacher's depth, and {teacher.name} is"
                " untrained.",
                f"Remove {self.method}, or name a trained teacher.",
            )
