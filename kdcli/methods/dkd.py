"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.facts import UNLABELLED
from kdcli.config.methods import DKDOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput


class DKD(LogitMethod):
    """:func:`kdcli.losses.dkd` over common labels, of the labelled samples or words."""

    scope = "local"

    def __init__(self, options: DKDOptions, context: Context) -> None:
        super().__init__(options, context)
        self.settings = {"temperature": options.temperature, "alpha": options.alpha, "beta": options.beta}

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Share:
        """Return the mean over what is labelled; zero, with a gradient, when there is none."""
        labelled = targets != UNLABELLED
        # One pass over all, with any class for those without: no tensor's shape depends on the labels.
        labels = targets.where(labelled, 0)
        ours, theirs = (logits.where(labelled[:, None], 0) for logits in self.common_logits(student, teacher))
        # Where both have the same logits the divergence is zero.
        count = labelled.sum()
        return Share(losses.dkd(ours, theirs, labels, **self.settings).sum() / count.clamp(min=1), count)


build = DKD
