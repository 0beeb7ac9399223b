"""Distillation of logits (Hinton et al. 2015)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.config import LogitKDOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.models.base import ModelOutput


class LogitKD(LogitMethod):
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))`` over common labels."""

    def __init__(self, options: LogitKDOptions, context: Context) -> None:
        super().__init__(options, context)
        self.temperature = options.temperature

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the loss; labels are not read."""
        assert student.logits is not None
        return losses.logit_kd(student.logits, self.common_logits(teacher), temperature=self.temperature)


build = LogitKD
