"""Distillation of depth: the teacher's prediction is a target at every pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli import losses
from kdcli.base.reads import DEPTH, Reads
from kdcli.config.methods import DenseRegressionOptions
from kdcli.methods.base import Context, Method
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput
from kdcli.tasks.dense.depth import DepthEstimation, depth_loss
from kdcli.tasks.dense.depth_metrics import is_measured, resize_depth, to_metres


class DenseRegression(Method):
    """A loss between the student's depth and the teacher's, both at the target's size; a mean over images."""

    scope = "local"
    student_reads = Reads(heads=(DEPTH,))
    teacher_reads = Reads(heads=(DEPTH,))

    def __init__(self, options: DenseRegressionOptions, context: Context) -> None:
        super().__init__(options.weight)
        assert options.loss is not None, "the plan settles the loss"
        assert isinstance(context.task, DepthEstimation), "the plan lets it pass with depth alone"
        assert context.teacher is not None, "the plan lets it pass only with a teacher"
        self.loss_name, self.gradient = options.loss, options.gradient
        self.depth, self.kind = context.task.depth, context.teacher.depth

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Share:
        """Return the loss; of the labels it reads what a relative depth is fitted to."""
        assert teacher is not None
        size = (targets.shape[1], targets.shape[2])
        ours, theirs = (resize_depth(side.heads[DEPTH], size)[:, 0] for side in (student, teacher))
        valid = theirs.isfinite()
        theirs = torch.where(valid, theirs, 0.0)
        near, floor = self.depth.nearest, self.depth.inverse_floor
        inverse = theirs if self.kind == "inverse" else 1 / theirs.clamp(min=floor)
        if self.loss_name == "scale_shift_invariant":
            values = losses.scale_shift_invariant(1 / ours.clamp(min=floor), inverse, valid)
        else:
            known = valid
            if self.kind == "inverse":
                known = valid & is_measured(targets, self.depth).flatten(1).any(dim=1)[:, None, None]
                theirs = to_metres(theirs, targets, self.depth, self.kind)
            theirs = theirs.clamp(near, self.depth.farthest)
            values = depth_loss(self.loss_name, ours, theirs, known, self.depth)
        if self.gradient:
            student_map, teacher_map = (
                losses.standardize_depth(side, valid) for side in (1 / ours.clamp(min=floor), inverse)
            )
            values = values + self.gradient * losses.gradient_matching(student_map, teacher_map, valid)
        return Share.of(values)


build = DenseRegression
