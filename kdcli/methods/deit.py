"""DeiT's distillation token (Touvron et al., ICML 2021)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.config.methods import DeiTOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.models.base import ModelOutput


class DeiT(LogitMethod):
    """The teacher's labels, or its probabilities, for the head of the distillation token.

    The run's other methods see the class token's logits; evaluation takes the mean of both heads.
    """

    distillation_logits = True

    def __init__(self, options: DeiTOptions, context: Context) -> None:
        super().__init__(options, context)
        self.kind = options.kind
        self.temperature = options.temperature

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the loss; labels are not read."""
        assert student.distillation_logits is not None
        teacher_logits = self.common_logits(teacher)
        if self.kind == "hard":
            return losses.deit_hard(student.distillation_logits, teacher_logits)
        return losses.deit_soft(student.distillation_logits, teacher_logits, temperature=self.temperature)


build = DeiT
