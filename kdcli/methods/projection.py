"""Feature distillation through a projector (Learning to Project, BMVC 2024; VkD, CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from kdcli import losses
from kdcli.base.reads import Reads
from kdcli.config.methods import ProjectionOptions
from kdcli.losses.normalize import normalizer
from kdcli.methods.base import Context, Method
from kdcli.methods.projected import Projected
from kdcli.models.outputs import ModelOutput
from kdcli.projectors.maps import build_projector


class Projection(Method, Projected):
    """``D(M(Z_s P), N(Z_t))``, or ``D(M(Z_s), N(Z_t) P)`` for a projector that acts on the teacher.

    ``D`` is the distance, ``N`` the normalisation of the teacher's features, ``M`` that of the student's side.
    """

    is_aligned = True

    def __init__(self, options: ProjectionOptions, context: Context) -> None:
        super().__init__(options.weight)
        assert context.teacher is not None, "the plan lets a projection pass only with a teacher"
        self.student_reads, self.teacher_reads = Reads((options.student_tap,)), Reads((options.teacher_tap,))
        self.taps = options.student_tap, options.teacher_tap
        self.projector = build_projector(
            options.projector,
            context.student.feature_dims[options.student_tap],
            context.teacher.feature_dims[options.teacher_tap],
            orthogonal_map=options.orthogonal_map,
        )
        self.lr_scale = options.lr_scale
        self.normalize_teacher = normalizer(options.normalize)
        self.normalize_student = normalizer(options.normalize_student)
        self.distance = _distance(options)

    def projections(self) -> tuple[Projected, ...]:
        """Return itself."""
        return (self,)

    def sides(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the student's (B, d_s) and the teacher's (B, d_t)."""
        assert teacher is not None
        yield student.features[self.taps[0]], teacher.features[self.taps[1]]

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the distance; labels are not read."""
        (pair,) = self.sides(student, teacher)
        return self.distance(*self.project(*pair))


def _distance(options: ProjectionOptions) -> Callable[[Tensor, Tensor], Tensor]:
    if options.distance == "log_sum":
        return partial(losses.log_sum, alpha=options.log_sum_alpha)
    return {"mse": losses.mse, "smooth_l1": losses.smooth_l1}[options.distance]


build = Projection
