"""Hints (FitNets, Romero et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from kdcli import losses
from kdcli.config.methods import FitNetOptions
from kdcli.methods.base import Context, LayerMethod
from kdcli.models.outputs import ModelOutput


class FitNet(LayerMethod):
    """The squared error between a regression on the student's maps and the teacher's maps, summed over the layers.

    Attributes:
        regressors: one a pair. A convolutional one has the kernel, ``H_s − H_t + 1`` a side, that takes the student's
            grid to the teacher's; where the student's grid is smaller, the teacher's map is average-pooled to it. That
            of the benchmark halves or doubles a grid where that is all it takes, and ends in batch normalisation and
            ReLU. A linear one is a 1x1 convolution on the common grid. With a projector, which regresses standardised
            maps on the common grid, they change nothing.
    """

    is_aligned = True

    def __init__(self, options: FitNetOptions, context: Context) -> None:
        super().__init__(options, context)
        assert context.teacher is not None
        self.is_linear = options.regressor == "linear"
        if (
            options.projector is None and options.regressor != "benchmark"
        ):  # whose batch normalisation looks at the batch
            self.scope = "local"
        self.compare: Any = partial(losses.mse, reduction="mean") if options.reduction == "mean" else losses.fitnet
        self.regressors = nn.ModuleList()
        for student_tap, teacher_tap in self.layers:
            if options.projector is not None:
                self.regressors.append(nn.Identity())
                continue
            ours, theirs = context.student.grids[student_tap], context.teacher.grids[teacher_tap]
            narrow, wide = context.student.feature_dims[student_tap], context.teacher.feature_dims[teacher_tap]
            if options.regressor == "benchmark":
                regressor = _halving_or_doubling(narrow, wide, ours, theirs) or _shrinking(narrow, wide, ours, theirs)
                self.regressors.append(nn.Sequential(regressor, nn.BatchNorm2d(wide), nn.ReLU()))
            else:
                linear = nn.Conv2d(narrow, wide, kernel_size=1)
                self.regressors.append(linear if self.is_linear else _shrinking(narrow, wide, ours, theirs))

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the mean squared error, or of each sample half the sum of its elements."""
        for regressor, (ours, theirs) in zip(self.regressors, self.pairs(student, teacher), strict=True):
            if self.is_linear:
                ours, theirs = losses.common_grid(ours, theirs)
            regressed = regressor(ours)
            yield self.compare(*losses.common_grid(regressed, theirs))


def _halving_or_doubling(narrow: int, wide: int, ours: tuple[int, int], theirs: tuple[int, int]) -> nn.Module | None:
    """Return the benchmark's convolution from one grid to half or twice of it; None between others."""
    if ours == (2 * theirs[0], 2 * theirs[1]):
        return nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1)
    if theirs == (2 * ours[0], 2 * ours[1]):
        return nn.ConvTranspose2d(narrow, wide, kernel_size=4, stride=2, padding=1)
    return None


def _shrinking(narrow: int, wide: int, ours: tuple[int, int], theirs: tuple[int, int]) -> nn.Conv2d:
    """Return the convolution whose kernel takes a grid to a smaller one; of 1 along a side that is no larger."""
    rows, columns = (max(own - other, 0) + 1 for own, other in zip(ours, theirs, strict=True))
    return nn.Conv2d(narrow, wide, kernel_size=(rows, columns))


build = FitNet
