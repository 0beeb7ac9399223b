"""Masked generative distillation (Yang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdcli import losses
from kdcli.config.methods import MGDOptions
from kdcli.machine.seeding import stable_seed
from kdcli.methods.aligned import AlignedMethod
from kdcli.methods.base import Context
from kdcli.models.outputs import ModelOutput


class MGD(AlignedMethod):
    """``Σ (g(m x) − t)²`` of each sample and level: ``g`` regenerates the teacher's map from the unmasked positions.

    Masks are drawn by (seed, step, level, sample), so they are the same in any process. The number of steps so far is
    in the state dict.

    Attributes:
        generators: two 3x3 convolutions with a ReLU between, of each level.
        steps: int64, training steps so far.
    """

    steps: Tensor

    def __init__(self, options: MGDOptions, context: Context) -> None:
        super().__init__(options, context)
        if options.projector is None:  # which comes with statistics of the batch
            self.scope = "local"
        self.masked, self.seed = options.masked, context.seed
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, kernel_size=3, padding=1),
            )
            for width in self.channels
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the loss of each sample at every level."""
        step, ids = int(self.steps), samples.tolist()
        for level, (ours, theirs) in enumerate(self.pairs(student, teacher)):
            kept = self._kept(step, level, ids, ours.shape[2], ours.shape[3]).to(ours.device)
            yield losses.squared_error(self.generators[level](ours * kept), theirs)
        if self.training:
            self.steps += 1

    def _kept(self, step: int, level: int, samples: list[int], rows: int, columns: int) -> Tensor:
        """Return 1 at the positions that are not masked and 0 elsewhere, (B, 1, rows, columns)."""
        drawn = []
        for sample in samples:
            generator = torch.Generator().manual_seed(stable_seed("mgd", self.seed, step, level, sample))
            drawn.append(torch.rand(1, rows, columns, generator=generator))
        return (torch.stack(drawn) >= self.masked).float()


build = MGD
