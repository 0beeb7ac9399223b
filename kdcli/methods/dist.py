"""DIST (Huang et al., NeurIPS 2022): correlations of probabilities between and within classes."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.config.methods import DISTOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.models.outputs import ModelOutput


class DIST(LogitMethod):
    """:func:`kdcli.losses.dist` over common labels."""

    def __init__(self, options: DISTOptions, context: Context) -> None:
        super().__init__(options, context)
        self.settings = {"temperature": options.temperature, "beta": options.beta, "gamma": options.gamma}

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Tensor:
        """Return the loss; labels are not read."""
        ours, theirs = self.common_logits(student, teacher)
        return losses.dist(ours, theirs, **self.settings)


build = DIST
