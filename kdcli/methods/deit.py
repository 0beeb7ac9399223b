"""DeiT's distillation token (Touvron et al., ICML 2021)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.reads import DISTILLATION, Reads
from kdcli.config.methods import DeiTOptions
from kdcli.methods.base import Context, LogitMethod
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput


class DeiT(LogitMethod):
    """The teacher's labels, or its probabilities, for the head of the distillation token.

    The run's other methods see the class token's logits; evaluation takes the mean of both heads.
    """

    scope = "local"

    def __init__(self, options: DeiTOptions, context: Context) -> None:
        super().__init__(options, context)
        self.student_reads = Reads(heads=(DISTILLATION,))
        self.kind = options.kind
        self.temperature = options.temperature

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Share:
        """Return the loss; labels are not read."""
        logits = self.common_logits(student, teacher)
        if self.kind == "hard":
            return Share.of(losses.deit_hard(*logits))
        return Share.of(losses.deit_soft(*logits, temperature=self.temperature))


build = DeiT
