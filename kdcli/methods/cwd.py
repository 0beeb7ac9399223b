"""Channel-wise distillation of features (Shu et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from kdcli import losses
from kdcli.config.methods import CWDOptions
from kdcli.methods.aligned import AlignedMethod
from kdcli.methods.base import Context
from kdcli.models.outputs import ModelOutput


class CWD(AlignedMethod):
    """:func:`kdcli.losses.cwd` of the maps, summed over the layers."""

    def __init__(self, options: CWDOptions, context: Context) -> None:
        super().__init__(options, context)
        if options.projector is None:  # which comes with statistics of the batch
            self.scope = "local"
        self.temperature = options.temperature

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the loss of each sample."""
        for pair in self.pairs(student, teacher):
            yield losses.cwd(*pair, temperature=self.temperature)


build = CWD
