"""Distillation of logits (Hinton et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli import losses
from kdcli.config import LogitKDOptions
from kdcli.methods.base import Context, Method
from kdcli.models.base import ModelOutput


class LogitKD(Method):
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))`` over common labels."""

    student_logits = True
    teacher_logits = True
    label_map: Tensor

    def __init__(self, options: LogitKDOptions, context: Context) -> None:
        super().__init__(options.weight)
        self.temperature = options.temperature
        assert context.label_map is not None, "the plan lets logit KD pass only with common labels"
        self.register_buffer("label_map", torch.tensor(context.label_map), persistent=False)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor) -> Tensor:
        """Return the loss; the teacher's logits are put into the student's label order."""
        assert student.logits is not None
        assert teacher is not None
        assert teacher.logits is not None
        teacher_logits = teacher.logits.index_select(1, self.label_map)
        return losses.logit_kd(student.logits, teacher_logits, temperature=self.temperature)


build = LogitKD
