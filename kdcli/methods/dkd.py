"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.facts import UNLABELLED
from kdcli.config.methods import DKDOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.models.outputs import ModelOutput


class DKD(LogitMethod):
    """:func:`kdcli.losses.dkd` over common labels, of the labelled part of the batch."""

    def __init__(self, options: DKDOptions, context: Context) -> None:
        super().__init__(options, context)
        self.settings = {"temperature": options.temperature, "alpha": options.alpha, "beta": options.beta}

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the mean over the labelled images; zero, with a gradient, when there is none."""
        assert student.logits is not None
        labelled = targets != UNLABELLED
        # One pass over all images, with any class for those without: no tensor's shape depends on the labels.
        labels = targets.where(labelled, 0)
        ours, theirs = (logits.where(labelled[:, None], 0) for logits in (student.logits, self.common_logits(teacher)))
        # Where both have the same logits the divergence is zero.
        share = labelled.sum().clamp(min=1) / len(labels)
        return losses.dkd(ours, theirs, labels, **self.settings) / share


build = DKD
