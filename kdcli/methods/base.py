"""What every distillation method has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.base.facts import ModelFacts, num_tokens
from kdcli.base.reads import LOGITS, VOCABULARY, Reads
from kdcli.config.methods import LayerOptions, LogitOptions
from kdcli.losses.vocabulary import VocabularyLogits
from kdcli.machine.team import Team
from kdcli.methods.projected import Projected, ProjectedPair
from kdcli.models.outputs import ModelOutput
from kdcli.tasks import Task


@dataclass(frozen=True)
class Context:
    """What a method may need to build itself.

    Attributes:
        task: gives the supervised loss.
        student: the student's facts.
        teacher: the teacher's facts, or None.
        label_map: the teacher's class of each of the student's classes; empty where all are the same; or None.
        train_labels: the class of every training sample, ``UNLABELLED`` for none.
        train_samples: the training sample that each index of a batch stands for; None where they are the same.
        seed: the run's.
    """

    task: Task
    student: ModelFacts
    teacher: ModelFacts | None
    label_map: tuple[int, ...] | None
    train_labels: Sequence[int] = ()
    train_samples: Sequence[int] | None = None
    seed: int = 0


class Method(nn.Module, ABC):
    """One objective: what it needs of both models, and its loss.

    Attributes:
        weight: of its loss in the total.
        is_balanced: whether ``weight`` is the ratio of its gradient to that of the losses whose weights are factors.
        student_reads: what it reads of the student. Where any method reads the distillation token, all methods of the run
            get the class token's logits for the student's logits.
        teacher_reads: what it reads of the teacher.
        looks_ahead: whether :meth:`look` is to be called before the first step.
        is_aligned: whether it brings projected features to one another channel by channel, so that their difference
            means something; otherwise it compares what doesn't change when one side is rotated, or has its channels put
            in another order.
    """

    student_reads: Reads = Reads()
    teacher_reads: Reads = Reads()
    looks_ahead: bool = False
    is_aligned: bool = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.is_balanced = False

    def look(self, outputs: Iterable[tuple[ModelOutput, Tensor]], team: Team) -> None:
        """Take from the teacher what the whole training set tells, into buffers that are saved with the method.

        Args:
            outputs: what the methods read of the teacher, with the targets, for every labelled training image without
                augmentation; of several processes each gets its share.
            team: of the processes.
        """
        raise NotImplementedError

    def projections(self) -> Sequence[Projected]:
        """Return its projectors with what normalises their features; none by default."""
        return ()

    def sides(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what each of :meth:`projections` is applied to: the student's and the teacher's features or maps.

        Args:
            student: its outputs.
            teacher: its outputs.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the unweighted loss, a scalar.

        Args:
            student: its outputs, with gradient.
            teacher: its outputs, without; None without a teacher.
            targets: as the task's supervised loss takes them; beside logits over a vocabulary this process's own.
            indices: int64 (B,), which training samples these are, as the loader counts them.
        """


def head_of(model: ModelFacts) -> str:
    """Return the head that gives a model's classes, or its tokens."""
    return VOCABULARY if VOCABULARY in model.heads else LOGITS


class LogitMethod(Method):
    """A method on the logits of both models over common labels."""

    label_map: Tensor

    def __init__(self, options: LogitOptions, context: Context) -> None:
        super().__init__(options.weight)
        assert context.label_map is not None, "the plan lets it pass only with common labels"
        self.register_buffer("label_map", torch.tensor(context.label_map), persistent=False)
        self.student_reads = self.teacher_reads = Reads(heads=(head_of(context.student),))
        self.num_classes = context.student.num_classes
        self.num_tokens = num_tokens(context.student)

    def common_logits(self, teacher: ModelOutput | None) -> Tensor:
        """Return the teacher's logits in the student's label order, (B, num_classes).

        Of language models, the rows of either vocabulary that are no token's have none: ``-inf``.
        """
        assert teacher is not None
        assert teacher.logits is not None
        if self.num_tokens is not None:
            return F.pad(teacher.logits[:, : self.num_tokens], (0, self.num_classes - self.num_tokens), value=-math.inf)
        return teacher.logits.index_select(1, self.label_map) if len(self.label_map) else teacher.logits

    def common_vocabulary(self, teacher: ModelOutput | None) -> VocabularyLogits:
        """Return the teacher's logits of the tokens, without the rows of its vocabulary that are no token's."""
        assert teacher is not None
        assert teacher.vocabulary is not None
        assert self.num_tokens is not None
        return teacher.vocabulary.first(self.num_tokens)


class LayerMethod(Method):
    """A method on pairs of layers: it reads their features or their maps, as its options say.

    With a projector what it compares of each pair is ``M(Z_s P), M(Z_t)`` (``linear``, ``mlp``, ``orthogonal``), or
    ``M(Z_s), M(Z_t) P`` (``inverted``: Learning to Project, BMVC 2024, which offers it as a replacement in other methods;
    where it goes in each of them is ours). ``M`` standardises each channel over the batch, of maps also over positions,
    which have their common grid first; the projector takes the channels of each position. The method's own regressors
    and embeddings give way to it.

    With an inverted projector the teacher's side is trained too, so losses have optima at which nothing is learnt, which
    standardisation takes away: squared errors would vanish with both sides at zero, and the student's side has variance
    one; relations by cosines with all samples in one direction, and there is none with mean zero; distances and angles
    don't change with the scale. The map may still come down to few directions, as it is meant to. Both sides are
    standardised with the other projectors as well, so that nothing but the place of the map differs.

    Attributes:
        layers: (student's tap, teacher's tap) of every pair.
        pair_projections: one of every pair where there is a projector, else none.
    """

    def __init__(self, options: LayerOptions, context: Context) -> None:
        super().__init__(options.weight)
        assert options.layers is not None, "the plan settles the layers"
        assert context.teacher is not None, "the plan lets it pass only with a teacher"
        self.reads = options.reads
        self.layers = [(pair.student, pair.teacher) for pair in options.layers]
        self.student_reads, self.teacher_reads = (
            Reads(maps=tuple(dict.fromkeys(side))) if self.reads == "maps" else Reads(tuple(dict.fromkeys(side)))
            for side in zip(*self.layers, strict=True)
        )
        self.pair_projections = nn.ModuleList()
        if options.projector is not None:
            assert options.lr_scale is not None, "the plan settles the projector's rate"
            for student_dim, teacher_dim in self.widths(options, context):
                self.pair_projections.append(
                    ProjectedPair(options.projector, student_dim, teacher_dim, lr_scale=options.lr_scale)
                )

    def widths(self, options: LayerOptions, context: Context) -> list[tuple[int, int]]:
        """Return the channels of what each projector is applied to, of :meth:`sides`."""
        assert context.teacher is not None
        ours, theirs = context.student.feature_dims, context.teacher.feature_dims
        return [(ours[student_tap], theirs[teacher_tap]) for student_tap, teacher_tap in self.layers]

    def projections(self) -> list[Projected]:
        """Return one of every pair where there is a projector."""
        return list(self.pair_projections)  # type: ignore[arg-type]  # a ModuleList forgets the class of its modules

    def sides(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the student's and the teacher's features, (B, d) or (B, C, H, W), of each pair of layers."""
        assert teacher is not None
        ours, theirs = (out.maps if self.reads == "maps" else out.features for out in (student, teacher))
        for student_tap, teacher_tap in self.layers:
            yield ours[student_tap], theirs[teacher_tap]

    def pairs(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is compared of each pair of layers: :meth:`sides`, projected where there is a projector."""
        sides = self.sides(student, teacher)
        if not self.pair_projections:
            yield from sides
            return
        for projection, pair in zip(self.pair_projections, sides, strict=True):
            yield projection(*pair)
