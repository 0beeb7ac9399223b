"""DeiT's distillation token (Touvron et al., ICML 2021)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.reads import DISTILLATION, Reads
from kdcli.config.methods import DeiTOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.models.outputs import ModelOutput


class DeiT(LogitMethod):
    """The teacher's labels, or its probabilities, for the head of the distillation token.

    The run's other methods see the class token's logits; evaluation takes the mean of both heads.
    """

    def __init__(self, options: DeiTOptions, context: Context) -> None:
        super().__init__(options, context)
        self.student_reads = Reads(heads=(DISTILLATION,))
        self.kind = options.kind
        self.temperature = options.temperature

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the loss; labels are not read."""
        logits, teacher_logits = student.heads[DISTILLATION], self.common_logits(teacher)
        if self.kind == "hard":
            return losses.deit_hard(logits, teacher_logits)
        return losses.deit_soft(logits, teacher_logits, temperature=self.temperature)


build = DeiT
