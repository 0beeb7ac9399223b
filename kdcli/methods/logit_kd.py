"""Distillation of logits (Hinton et al. 2015), also by other divergences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdcli import losses
from kdcli.config.methods import LogitKDOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput


class LogitKD(LogitMethod):
    """``T² D(softmax(teacher / T), softmax(student / T))`` over common labels or tokens, KL by default.

    Of maps it is the mean over all positions, labelled or not: pixel KD. Of labels that are each true or not by
    themselves it is that of ``sigmoid(logit / T)`` and its rest, the mean over samples and labels.
    """

    scope = "local"

    def __init__(self, options: LogitKDOptions, context: Context) -> None:
        super().__init__(options, context)
        self.is_binary = context.task.labels_are_independent
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
        sides = self.common_logits(student, teacher)
        if self.is_binary:
            sides = _as_pairs(sides[0]), _as_pairs(sides[1])
        return Share.of(losses.logit_kd(*sides, **self.how))


def _as_pairs(logits: Tensor) -> Tensor:
    """Return logits (N, C) as (N * C, 2), whose softmax is the sigmoid of each and its rest."""
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, 1)


build = LogitKD
