"""A projector between two features, with what normalises them: what ``projection`` is, and other methods may have."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kdcli.losses import common_grid
from kdcli.losses.normalize import enlarged, identity, standardize
from kdcli.projectors.maps import Projector


class Projected:
    """``M(Z_s P), N(Z_t)``, or ``M(Z_s), N(Z_t) P`` for a projector that acts on the teacher.

    Of maps the projector takes the channels of each position, as a 1x1 convolution does, on the common grid; statistics
    of the normalisations are over samples and positions.

    Attributes:
        projector: ``P``.
        normalize_student: ``M``, of the student's side.
        normalize_teacher: ``N``, of the teacher's features.
        lr_scale: learning rate of the projector relative to the student's.
    """

    projector: Projector
    normalize_student: Callable[[Tensor], Tensor]
    normalize_teacher: Callable[[Tensor], Tensor]
    lr_scale: float

    def project(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides of what is compared, with the same number of channels, student's first.

        Args:
            student: (B, d_s), or a map (B, C_s, H_s, W_s).
            teacher: (B, d_t), or a map (B, C_t, H_t, W_t).

        Returns:
            Two tensors (B, d), or two maps (B, C, H, W) on the smaller grid; ``d`` and ``C`` are the teacher's, or the
            student's for a projector that acts on the teacher.
        """
        is_map = student.ndim > 2
        student, teacher = channels_last(student, teacher)
        teacher = self.of_teacher(teacher)
        if self.projector.direction == "student_to_teacher":
            student = self.projector(student)
        else:
            teacher = self.projector(teacher)
        student = self.normalize_student(student)
        return (student.movedim(-1, 1), teacher.movedim(-1, 1)) if is_map else (student, teacher)

    def of_teacher(self, teacher: Tensor) -> Tensor:
        """Return the teacher's features (..., d) normalised, however small they are."""
        is_plain = self.normalize_teacher is identity
        return teacher if is_plain else self.normalize_teacher(enlarged(teacher))


class ProjectedPair(nn.Module, Projected):
    """A projector between the two sides of a pair of layers; by default both are standardised per channel."""

    def __init__(
        self,
        projector: Projector,
        *,
        lr_scale: float,
        normalize_student: Callable[[Tensor], Tensor] = standardize,
        normalize_teacher: Callable[[Tensor], Tensor] = standardize,
    ) -> None:
        super().__init__()
        self.projector = projector
        self.normalize_student, self.normalize_teacher = normalize_student, normalize_teacher
        self.lr_scale = lr_scale


def channels_last(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return features as they are, maps on the common grid with the channels last, (B, H, W, C)."""
    if student.ndim == 2:
        return student, teacher
    ours, theirs = common_grid(student, teacher)
    return ours.movedim(1, -1), theirs.movedim(1, -1)
