"""Feature distillation through a projector (Learning to Project, BMVC 2024; VkD, CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from kdcli import losses
from kdcli.base.reads import Reads
from kdcli.config.methods import ProjectionOptions
from kdcli.losses.normalize import OVER_SAMPLES, normalizer
from kdcli.methods.base import Context, Method, PairMethod
from kdcli.methods.projected import Projected, ProjectedPair
from kdcli.models.outputs import ModelOutput
from kdcli.projectors.maps import build_projector


class Distances(PairMethod):
    """The distance ``D`` of what :meth:`projections` make of each pair of layers, summed over the pairs."""

    is_aligned = True

    def __init__(self, options: ProjectionOptions, context: Context) -> None:
        super().__init__(options, context)
        if options.distance != "log_sum" and not OVER_SAMPLES & {options.normalize, options.normalize_student}:
            self.scope = "local"
        self.distance = _distance(options)

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the distance of each pair, a scalar."""
        for pair in self.pairs(student, teacher):
            yield self.distance(*pair)


class Levels(Distances):
    """The sum over pairs of layers of ``D(M(Z_s P), N(Z_t))``, each with a projector of its own.

    ``D`` is the distance, ``N`` the normalisation of the teacher's features, ``M`` that of the student's side; of
    projectors that act on the teacher it is ``D(M(Z_s), N(Z_t) P)``. With maps, an orthogonal projector, both sides
    standardised and smooth L1 it is VkD's loss for detection.

    Attributes:
        levels: a projector with its normalisations for each pair.
    """

    def __init__(self, options: ProjectionOptions, context: Context) -> None:
        super().__init__(options, context)
        self.levels = nn.ModuleList(
            ProjectedPair(
                build_projector(options.projector, *widths, orthogonal_map=options.orthogonal_map),
                lr_scale=options.lr_scale,
                normalize_student=normalizer(options.normalize_student),
                normalize_teacher=normalizer(options.normalize),
            )
            for widths in self.widths(options, context)
        )

    def projections(self) -> Sequence[Projected]:
        """Return one of every pair."""
        return list(self.levels)  # type: ignore[arg-type]  # a ModuleList forgets the class of its modules


class Projection(Distances, Projected):
    """One pair of layers: as :class:`Levels`, with the only projector as its own."""

    def __init__(self, options: ProjectionOptions, context: Context) -> None:
        super().__init__(options, context)
        ((student_dim, teacher_dim),) = self.widths(options, context)
        self.projector = build_projector(
            options.projector, student_dim, teacher_dim, orthogonal_map=options.orthogonal_map
        )
        self.lr_scale = options.lr_scale
        self.normalize_teacher = normalizer(options.normalize)
        self.normalize_student = normalizer(options.normalize_student)

    def projections(self) -> tuple[Projected, ...]:
        """Return itself."""
        return (self,)

    def embedding_projector(self) -> nn.Module | None:
        """Return the projector of the student's pooled features, where they are brought to the teacher's."""
        is_last = self.student_reads == self.teacher_reads == Reads(("pooled",))
        return self.projector if is_last and self.projector.direction == "student_to_teacher" else None


def _distance(options: ProjectionOptions) -> Callable[[Tensor, Tensor], Tensor]:
    if options.distance == "log_sum":
        return partial(losses.log_sum, alpha=options.log_sum_alpha)
    return partial({"mse": losses.mse, "smooth_l1": losses.smooth_l1}[options.distance], reduction="mean")


def build(options: ProjectionOptions, context: Context) -> Method:
    """Build the method: a run's files name the projector of one pair otherwise than those of several."""
    return Projection(options, context) if options.layers is None else Levels(options, context)
