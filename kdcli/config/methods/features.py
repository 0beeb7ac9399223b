"""The options of projection and spectral regularisation."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from kdcli.base.names import DistanceName, NormalizeName, OrthogonalMap, ProjectorName
from kdcli.config.methods.base import FeaturePair, MethodSection, Needs, ReadsLayers, projector_rate
from kdcli.config.section import Name, Positive


class ProjectionOptions(MethodSection):
    """Feature distillation through a projector."""

    method: Literal["projection"] = "projection"
    projector: ProjectorName
    normalize: NormalizeName = "standardize"
    """Applied to the teacher's features."""
    normalize_student: NormalizeName = "none"
    """Applied to the student's side."""
    distance: DistanceName = "mse"
    log_sum_alpha: Positive = 4.0
    orthogonal_map: OrthogonalMap = "retraction"
    lr_scale: Positive = 1.0
    """Learning rate of the projector relative to the student's."""
    student_tap: Name = "pooled"
    teacher_tap: Name = "pooled"
    reads: Literal["features", "maps"] = "features"
    """Of both: features averaged over positions; or maps, at each position of their common grid, as VkD does for dense
    tasks. Statistics of a normalisation then go over samples and positions."""

    takes_layers: ClassVar[bool] = True

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layers: features averaged over positions, or maps."""
        return self.reads

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads."""
        return (FeaturePair(student=self.student_tap, teacher=self.teacher_tap),)

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
        is_pooled = (self.student_tap, self.teacher_tap, self.reads) == ("pooled", "pooled", "features")
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
                }
            )
            for pair in pairs
        ) or (self,)


class SpectralOptions(MethodSection):
    """Spectral regularisation of the student's features; needs no teacher."""

    method: Literal["spectral_regularization"] = "spectral_regularization"
    weight: Positive = 0.1
    rank: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of min(batch, width) that is not suppressed."""
    student_tap: Name = "pooled"

    needs: ClassVar[Needs] = Needs(teacher=False)
    why_no_projector: ClassVar[str] = "reads the student's features alone"

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layer: features averaged over positions."""
        return "features"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The student's features that it reads; it has no teacher."""
        return (FeaturePair(student=self.student_tap),)
