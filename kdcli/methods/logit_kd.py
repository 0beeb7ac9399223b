"""Distillation of logits (Hinton et al. 2015), also by other divergences."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdcli import losses
from kdcli.config.methods import LogitKDOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput


class LogitKD(LogitMethod):
    """``T² D(softmax(teacher / T), softmax(student / T))`` over common labels or tokens, KL by default.

    Of maps it is the mean over all positions, labelled or not: pixel KD.
    """

    scope = "local"

    def __init__(self, options: LogitKDOptions, context: Context) -> None:
        super().__init__(options, context)
        self.how: dict[str, Any] = {
            "temperature": options.temperature,
            "divergence": options.divergence,
            "beta": options.beta,
        }

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Share:
        """Return the loss; labels are not read."""
        if student.vocabulary is not None:
            theirs = self.common_vocabulary(teacher)
            return Share.of(losses.chunked_divergence(student.vocabulary, theirs, **self.how))
        return Share.of(losses.logit_kd(*self.common_logits(student, teacher), **self.how))


build = LogitKD
