"""Distillation of images: what the teacher makes of an image is a target for the student."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.reads import IMAGE, Reads
from kdcli.config.methods import ImageRegressionOptions
from kdcli.methods.base import Context, Method
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput
from kdcli.tasks.translation.task import image_loss


class ImageRegression(Method):
    """A loss between the student's image and the teacher's, at the student's size; a mean over images."""

    scope = "local"
    student_reads = Reads(heads=(IMAGE,))
    teacher_reads = Reads(heads=(IMAGE,))

    def __init__(self, options: ImageRegressionOptions, context: Context) -> None:
        super().__init__(options.weight)
        self.terms = options.loss

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Share:
        """Return the loss; targets are not read."""
        assert teacher is not None
        ours, theirs = (side.heads[IMAGE] for side in (student, teacher))
        theirs = losses.resize_image(theirs, (ours.shape[2], ours.shape[3]))
        return Share.of(image_loss(ours, theirs, self.terms))


build = ImageRegression
