"""REFILLED's second stage (Ye, Lu and Zhan, CVPR 2020): a classifier made of the teacher's class centres."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kdcli import losses
from kdcli.base.facts import UNLABELLED
from kdcli.base.reads import LOGITS, Reads
from kdcli.config.methods import LocalClassifierOptions
from kdcli.machine.team import Team
from kdcli.methods.base import Context, Method
from kdcli.models.outputs import ModelOutput
from kdcli.tasks.features.class_means import class_means


class LocalClassifier(Method):
    """``KL(softmax(t / τ) ‖ softmax(s / τ))`` over the classes in the batch, over its labelled part."""

    centers: Tensor | None

    def __init__(self, options: LocalClassifierOptions, context: Context) -> None:
        super().__init__(options.weight)
        assert context.teacher is not None, "the plan lets it pass only with a teacher"
        assert options.teacher_tap is not None, "the plan writes the taps out"
        self.student_reads, self.teacher_reads = Reads(heads=(LOGITS,)), Reads((options.teacher_tap,))
        self.tap = options.teacher_tap
        self.temperature = options.temperature
        self.looks_ahead = options.centers == "global"
        shape = (len(context.task.class_names), context.teacher.feature_dims[options.teacher_tap])
        self.register_buffer("centers", torch.zeros(shape) if self.looks_ahead else None)

    def look(self, outputs: Iterable[tuple[ModelOutput, Tensor]], team: Team) -> None:
        """Take the mean teacher embedding of every class for its centre."""
        assert self.centers is not None
        embeddings = ((teacher.features[self.tap], targets) for teacher, targets in outputs)
        means, _ = class_means(embeddings, self.centers.shape[0], self.centers.shape[1], team)
        self.centers.copy_(means)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Tensor:
        """Return the loss; zero, with a gradient, when nothing in the batch has a label."""
        assert student.logits is not None
        assert teacher is not None
        labelled = targets != UNLABELLED
        if not labelled.any():
            return 0 * student.logits.sum()
        return losses.local_classifier_kl(
            student.logits[labelled],
            teacher.features[self.tap][labelled],
            targets[labelled],
            temperature=self.temperature,
            centers=self.centers,
        )


build = LocalClassifier
