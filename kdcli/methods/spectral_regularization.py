"""Teacher-free spectral regularisation (Learning to Project, BMVC 2024)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.reads import Reads
from kdcli.config.methods import SpectralOptions
from kdcli.methods.base import Context, Method
from kdcli.models.outputs import ModelOutput


class SpectralRegularization(Method):
    """Share of the student features' energy outside their leading singular directions."""

    def __init__(self, options: SpectralOptions, context: Context) -> None:
        super().__init__(options.weight)
        self.student_reads = Reads((options.student_tap,))
        self.tap = options.student_tap
        self.rank = options.rank

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Tensor:
        """Return the loss; neither teacher nor labels are read."""
        return losses.spectral_regularization(student.features[self.tap], rank=self.rank)


build = SpectralRegularization
