"""The task's own loss on the labels."""

from __future__ import annotations

from torch import Tensor

from kdcli.base.reads import Reads
from kdcli.config.methods import SupervisedOptions
from kdcli.methods.base import Context, Method
from kdcli.models.outputs import ModelOutput


class Supervised(Method):
    """``task.supervised_loss(student logits, targets)``."""

    def __init__(self, options: SupervisedOptions, context: Context) -> None:
        super().__init__(options.weight)
        self.label_smoothing = options.label_smoothing
        self.task = context.task
        self.student_reads = Reads(heads=context.student.predictions)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the task's loss; the teacher is not read."""
        logits = student.logits if student.vocabulary is None else student.vocabulary
        assert logits is not None
        return self.task.supervised_loss(logits, targets, label_smoothing=self.label_smoothing)


build = Supervised
