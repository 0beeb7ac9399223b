"""The task's own loss on the labels."""

from __future__ import annotations

from torch import Tensor

from kdcli.config.methods import SupervisedOptions
from kdcli.methods.base import Context, Method
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput


class Supervised(Method):
    """``task.supervised_loss(student logits, targets)``."""

    scope = "local"

    def __init__(self, options: SupervisedOptions, context: Context) -> None:
        super().__init__(options.weight)
        self.label_smoothing = options.label_smoothing
        self.terms = options.loss or {}
        self.task = context.task
        self.student_reads = self.task.reads(context.student)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Share:
        """Return the task's loss; the teacher is not read."""
        (head,) = self.student_reads.heads
        loss = self.task.supervised_loss(
            student.heads[head], targets, label_smoothing=self.label_smoothing, terms=self.terms
        )
        return Share(loss, self.task.count_labels(targets))


build = Supervised
