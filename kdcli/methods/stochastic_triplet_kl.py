"""REFILLED's first stage (Ye, Lu and Zhan, CVPR 2020): comparisons of triplets."""

from __future__ import annotations

from torch import Tensor

from kdcli import losses
from kdcli.base.facts import UNLABELLED
from kdcli.base.reads import Reads
from kdcli.config.methods import StochasticTripletOptions
from kdcli.methods.base import Context, Method
from kdcli.models.outputs import ModelOutput


class StochasticTriplet(Method):
    """``KL(p_t ‖ p_s)`` of the probabilities of triplets, over the labelled part of the batch."""

    def __init__(self, options: StochasticTripletOptions, context: Context) -> None:
        super().__init__(options.weight)
        assert options.student_tap is not None, "the plan writes the taps out"
        assert options.teacher_tap is not None, "the plan writes the taps out"
        self.student_reads, self.teacher_reads = Reads((options.student_tap,)), Reads((options.teacher_tap,))
        self.taps = options.student_tap, options.teacher_tap
        self.temperature, self.mining, self.margin = options.temperature, options.mining, options.margin

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Tensor:
        """Return the loss; zero, with a gradient, when nothing in the batch has a label."""
        assert teacher is not None
        embedding = student.features[self.taps[0]]
        labelled = targets != UNLABELLED
        if not labelled.any():
            return 0 * embedding.sum()
        return losses.stochastic_triplet_kl(
            embedding[labelled],
            teacher.features[self.taps[1]][labelled],
            targets[labelled],
            temperature=self.temperature,
            mining=self.mining,
            margin=self.margin,
        )


build = StochasticTriplet
