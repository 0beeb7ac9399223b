"""Teacher-free spectral regularisation (Learning to Project, BMVC 2024)."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.reads import Reads
from kdcli.config.methods import SpectralOptions
from kdcli.methods.base import Context, Method
from kdcli.models.outputs import ModelOutput


class SpectralRegularization(Method):
    """Share of the student features' energy outside their leading singular directions.

    Of maps the features of all positions of the batch are rows.
    """

    def __init__(self, options: SpectralOptions, context: Context) -> None:
        super().__init__(options.weight)
        self.reads = options.reads
        tap = (options.student_tap,)
        self.student_reads = Reads(maps=tap) if self.reads == "maps" else Reads(tap)
        self.tap = options.student_tap
        self.rank = options.rank

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Tensor:
        """Return the loss; neither teacher nor labels are read."""
        features = student.maps[self.tap] if self.reads == "maps" else student.features[self.tap]
        return losses.spectral_regularization(losses.rows_of(features), rank=self.rank)


build = SpectralRegularization
