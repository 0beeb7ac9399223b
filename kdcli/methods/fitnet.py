"""Hints (FitNets, Romero et al., ICLR 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcli import losses
from kdcli.config import FitNetOptions
from kdcli.methods.base import Context, LayerMethod
from kdcli.models.base import ModelOutput


class FitNet(LayerMethod):
    """The squared error between a regression on the student's maps and the teacher's maps, summed over the layers.

    Attributes:
        regressors: one a pair. A convolutional one has the kernel, ``H_s − H_t + 1`` a side, that takes the student's
            grid to the teacher's; where the student's grid is smaller, the teacher's map is average-pooled to it. A
            linear one is a 1x1 convolution on the common grid.
    """

    def __init__(self, options: FitNetOptions, context: Context) -> None:
        super().__init__(options, context)
        assert context.teacher is not None
        self.is_linear = options.regressor == "linear"
        self.loss = losses.mse if options.reduction == "mean" else losses.fitnet
        self.regressors = nn.ModuleList()
        for student_tap, teacher_tap in self.layers:
            (rows, columns), (fewer_rows, fewer_columns) = (
                context.student.grids[student_tap],
                context.teacher.grids[teacher_tap],
            )
            kernel = max(rows - fewer_rows, 0) + 1, max(columns - fewer_columns, 0) + 1
            narrow, wide = context.student.feature_dims[student_tap], context.teacher.feature_dims[teacher_tap]
            self.regressors.append(nn.Conv2d(narrow, wide, kernel_size=1 if self.is_linear else kernel))

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the sum; labels are not read."""
        terms = []
        for regressor, (ours, theirs) in zip(self.regressors, self.pairs(student, teacher), strict=True):
            if self.is_linear:
                ours, theirs = losses.common_grid(ours, theirs)
            regressed = regressor(ours)
            terms.append(self.loss(*losses.common_grid(regressed, theirs)))
        return torch.stack(terms).sum()


build = FitNet
