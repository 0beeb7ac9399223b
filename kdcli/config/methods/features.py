"""The options of the methods on pooled features: projection, spectral regularisation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdcli.base.names import DistanceName, NormalizeName, OrthogonalMap, ProjectorName
from kdcli.config.methods.base import FeaturePair, MethodSection
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

    reads: ClassVar[Literal["nothing", "features", "maps"]] = "features"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads."""
        return (FeaturePair(student=self.student_tap, teacher=self.teacher_tap),)


class SpectralOptions(MethodSection):
    """Spectral regularisation of the student's features; needs no teacher."""

    method: Literal["spectral_regularization"] = "spectral_regularization"
    weight: Positive = 0.1
    rank: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of min(batch, width) that is not suppressed."""
    student_tap: Name = "pooled"

    needs_teacher: ClassVar[bool] = False
    reads: ClassVar[Literal["nothing", "features", "maps"]] = "features"
    why_no_projector: ClassVar[str] = "reads the student's features alone"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The student's features that it reads; it has no teacher."""
        return (FeaturePair(student=self.student_tap),)
