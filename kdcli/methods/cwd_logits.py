"""Channel-wise distillation of logits (Shu et al., ICCV 2021)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.config.methods import CWDLogitsOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput


class CWDLogits(LogitMethod):
    """:func:`kdcli.losses.cwd` of the logits of all positions over common labels."""

    scope = "local"

    def __init__(self, options: CWDLogitsOptions, context: Context) -> None:
        super().__init__(options, context)
        self.temperature = options.temperature

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Share:
        """Return the loss; labels are not read."""
        ours, theirs = self.common_maps(student, teacher)
        return Share.of(losses.cwd(ours, theirs, temperature=self.temperature))


build = CWDLogits
