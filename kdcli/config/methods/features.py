"""The options of projection and spectral regularisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdcli.base.names import DistanceName, NormalizeName, OrthogonalMap, ProjectorName
from kdcli.config.methods.base import FeaturePair, MethodSection, Needs, ReadsLayers, pair, projector_rate
from kdcli.config.section import Name, Positive


class ProjectionOptions(MethodSection):
    """Feature distillation through a projector."""

    method: Literal["projection"] = "projection"
    projector: ProjectorName
    """The map between both sides."""
    normalize: NormalizeName = "standardize"
    """Applied to the teacher's features."""
    normalize_student: NormalizeName = "none"
    """Applied to the student's side."""
    distance: DistanceName = "mse"
    """Between the features once they are mapped and normalised."""
    log_sum_alpha: Positive = 4.0
    """The power of the distance ``log_sum``."""
    orthogonal_map: OrthogonalMap = "retraction"
    """How an orthogonal projector is kept so."""
    lr_scale: Positive = 1.0
    """Learning rate of the projector relative to the student's."""
    student_tap: Name = "pooled"
    """The student's features that it reads."""
    teacher_tap: Name = "pooled"
    """The teacher's features that it reads."""
    layers: Annotated[tuple[Annotated[FeaturePair, BeforeValidator(pair)], ...], Field(min_length=1)] | None = None
    """``STUDENT:TEACHER`` in place of both taps, as many as you like: levels, with a projector each, whose losses are
    summed."""
    reads: Literal["features", "maps"] = "features"
    """Of both: features averaged over positions; or maps, at each position of their common grid, as VkD does for dense
    tasks. Statistics of a normalisation then go over samples and positions."""

    takes_layers: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if self.layers is not None and (self.student_tap, self.teacher_tap) != ("pooled", "pooled"):
            raise ValueError("layers has the pairs of all levels: drop student_tap and teacher_tap")
        return self

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layers: features averaged over positions, or maps."""
        return self.reads

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads."""
        return self.layers or (FeaturePair(student=self.student_tap, teacher=self.teacher_tap),)

    @property
    def projector_name(self) -> ProjectorName:
        """Its trained map between both sides."""
        return self.projector

    @property
    def can_vanish(self) -> bool:
        """Whether the loss is zero where both of its sides are."""
        return self.projector == "inverted" and self.normalize_student == "none"

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        unused = {
            "orthogonal_map": self.projector != "orthogonal",
            "log_sum_alpha": self.distance != "log_sum",
            "normalize_student": self.normalize_student == "none",
            "reads": self.reads == "features",
        }
        return super().idle | {name for name, is_unused in unused.items() if is_unused}

    def describe_projector(self) -> str:
        """Return its projector as model cards name it."""
        return f"{self.projector}, teacher features normalised by {self.normalize}, distance {self.distance}"

    def embedding_map(self) -> tuple[ProjectorName, OrthogonalMap] | None:
        """Return how it maps the student's pooled features into the teacher's space; None where it doesn't."""
        is_pooled = (self.student_tap, self.teacher_tap, self.reads, self.layers) == (
            "pooled",
            "pooled",
            "features",
            None,
        )
        return (self.projector, self.orthogonal_map) if is_pooled and self.projector != "inverted" else None

    def with_projector(self, name: ProjectorName, *, ratio: float | None) -> Self:
        """Return the options with another projector; the weight is for normalised features with any of them."""
        return self.model_copy(update={"projector": name, "lr_scale": projector_rate(name)})

    def with_pairs(self, pairs: Sequence[FeaturePair]) -> tuple[Self, ...]:
        """Return a projection for each pair; they share the weight."""
        return tuple(
            self.model_copy(
                update={
                    "weight": self.weight / len(pairs),
                    "student_tap": pair.student,
                    "teacher_tap": pair.teacher,
                    "layers": None,
                }
            )
            for pair in pairs
        ) or (self,)

    def renamed(self, rename: Callable[[tuple[FeaturePair, ...]], tuple[FeaturePair, ...]]) -> Self:
        """Return the options with other names for the layers that are given."""
        found = rename(self.pairs)
        if self.layers is not None:
            return self.model_copy(update={"layers": found})
        return self.model_copy(update={"student_tap": found[0].student, "teacher_tap": found[0].teacher})


class SpectralOptions(MethodSection):
    """Spectral regularisation of the student's features; needs no teacher."""

    method: Literal["spectral_regularization"] = "spectral_regularization"
    weight: Positive = 0.1
    rank: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of min(batch, width) that is not suppressed; of maps min(batch x positions, width)."""
    student_tap: Name = "pooled"
    """The student's features that it reads."""
    reads: Literal["features", "maps"] = "features"
    """Features averaged over positions; or of maps those of every position, each of which counts as a sample."""

    needs: ClassVar[Needs] = Needs(teacher=False)
    why_no_projector: ClassVar[str] = "reads the student's features alone"

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layer: features averaged over positions, or maps."""
        return self.reads

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        return super().idle | ({"reads"} if self.reads == "features" else set())

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The student's features that it reads; it has no teacher."""
        return (FeaturePair(student=self.student_tap),)
