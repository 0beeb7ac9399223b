"""Variational information distillation (Ahn et al., CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdcli import losses
from kdcli.config.methods import VIDOptions
from kdcli.methods.base import Context, LayerMethod
from kdcli.models.outputs import ModelOutput

_EPS = 1e-5


class VID(LayerMethod):
    """The teacher's maps under a Gaussian whose mean is predicted from the student's, summed over the layers.

    Maps are average-pooled to a common grid. The regressor is that of RepDistiller (Tian et al., ICLR
    2020): three 1x1 convolutions as wide as the teacher, with ReLU between. A projector takes its place: the student's
    projected maps are the mean of the teacher's, both standardised; an inverted one makes the student's maps themselves
    the mean of the teacher's projected ones, with a variance for each of the student's channels.

    Attributes:
        regressors: one a pair; with a projector they change nothing.
        raw_variances: ``α`` of each pair, one value for each channel of what is predicted.
    """

    is_aligned = True

    def __init__(self, options: VIDOptions, context: Context) -> None:
        super().__init__(options, context)
        if options.projector is None:
            self.scope = "local"
        assert context.teacher is not None
        self.regressors, self.raw_variances = nn.ModuleList(), nn.ParameterList()
        for student_tap, teacher_tap in self.layers:
            narrow, wide = context.student.feature_dims[student_tap], context.teacher.feature_dims[teacher_tap]
            self.regressors.append(
                nn.Identity()
                if options.projector is not None
                else nn.Sequential(
                    nn.Conv2d(narrow, wide, 1, bias=False),
                    nn.ReLU(),
                    nn.Conv2d(wide, wide, 1, bias=False),
                    nn.ReLU(),
                    nn.Conv2d(wide, wide, 1, bias=False),
                )
            )
            raw = math.log(math.expm1(options.initial_variance - _EPS))  # softplus⁻¹
            width = narrow if options.projector == "inverted" else wide
            self.raw_variances.append(nn.Parameter(torch.full((width,), raw)))

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the negative log-likelihood of each element."""
        layers = zip(self.regressors, self.raw_variances, self.pairs(student, teacher), strict=True)
        for regressor, raw_variance, pair in layers:
            ours, theirs = losses.common_grid(*pair)
            yield losses.vid(regressor(ours), theirs, raw_variance=raw_variance, eps=_EPS)


build = VID
