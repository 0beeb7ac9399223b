"""What every distillation method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from kdcli.facts import ModelFacts
from kdcli.models.base import ModelOutput
from kdcli.tasks import Task


@dataclass(frozen=True)
class Context:
    """What a method may need to build itself.

    Attributes:
        task: gives the supervised loss.
        student: the student's facts.
        teacher: the teacher's facts, or None.
        label_map: the teacher's class of each of the student's classes, or None.
    """

    task: Task
    student: ModelFacts
    teacher: ModelFacts | None
    label_map: tuple[int, ...] | None


class Method(nn.Module, ABC):
    """One objective: what it needs of both models, and its loss.

    Attributes:
        weight: of its loss in the total.
        student_taps: names of the student's features that it reads.
        teacher_taps: names of the teacher's features that it reads.
        student_logits: whether it reads the student's logits.
        teacher_logits: whether it reads the teacher's logits.
        looks_ahead: whether :meth:`look` is to be called before the first step.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    student_logits: bool = False
    teacher_logits: bool = False
    looks_ahead: bool = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def look(self, outputs: Iterable[tuple[ModelOutput, Tensor]], add_up: Callable[[Tensor], Tensor]) -> None:
        """Take from the teacher what the whole training set tells, into buffers that are saved with the method.

        Args:
            outputs: what the methods read of the teacher, with the targets, for every labelled training image without
                augmentation; of several processes each gets its share.
            add_up: sums a float64 tensor over all processes.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor) -> Tensor:
        """Return the unweighted loss, a scalar.

        Args:
            student: its outputs, with gradient.
            teacher: its outputs, without; None without a teacher.
            targets: as the task's supervised loss takes them.
        """
