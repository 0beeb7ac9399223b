"""Feature distillation through a projector (Learning to Project, BMVC 2024; VkD, CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from kdcli import losses
from kdcli.base.reads import Reads
from kdcli.config.methods import ProjectionOptions
from kdcli.losses.normalize import OVER_SAMPLES, normalizer
from kdcli.methods.base import Context, PairMethod
from kdcli.methods.projected import Projected
from kdcli.models.outputs import ModelOutput
from kdcli.projectors.maps import build_projector


class Projection(PairMethod, Projected):
    """``D(M(Z_s P), N(Z_t))``, or ``D(M(Z_s), N(Z_t) P)`` for a projector that acts on the teacher.

    ``D`` is the distance, ``N`` the normalisation of the teacher's features, ``M`` that of the student's side.
    """

    is_aligned = True

    def __init__(self, options: ProjectionOptions, context: Context) -> None:
        super().__init__(options, context)
        if options.distance != "log_sum" and not OVER_SAMPLES & {options.normalize, options.normalize_student}:
            self.scope = "local"
        ((student_dim, teacher_dim),) = self.widths(options, context)
        self.projector = build_projector(
            options.projector, student_dim, teacher_dim, orthogonal_map=options.orthogonal_map
        )
        self.lr_scale = options.lr_scale
        self.normalize_teacher = normalizer(options.normalize)
        self.normalize_student = normalizer(options.normalize_student)
        self.distance = _distance(options)

    def projections(self) -> tuple[Projected, ...]:
        """Return itself."""
        return (self,)

    def embedding_projector(self) -> nn.Module | None:
        """Return the projector of the student's pooled features, where they are brought to the teacher's."""
        is_last = self.student_reads == self.teacher_reads == Reads(("pooled",))
        return self.projector if is_last and self.projector.direction == "student_to_teacher" else None

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the distance, a scalar."""
        for pair in self.pairs(student, teacher):
            yield self.distance(*pair)


def _distance(options: ProjectionOptions) -> Callable[[Tensor, Tensor], Tensor]:
    if options.distance == "log_sum":
        return partial(losses.log_sum, alpha=options.log_sum_alpha)
    return partial({"mse": losses.mse, "smooth_l1": losses.smooth_l1}[options.distance], reduction="mean")


build = Projection
