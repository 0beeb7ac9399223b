"""What every distillation method has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.base.facts import ModelFacts, num_tokens
from kdcli.base.reads import Reads
from kdcli.config.methods import LayerOptions, LogitOptions, MethodSection
from kdcli.losses import resized, rows_of
from kdcli.losses.vocabulary import VocabularyLogits
from kdcli.machine.team import Team
from kdcli.methods.projected import Projected, ProjectedPair
from kdcli.methods.share import Share, mean_of
from kdcli.models.outputs import ModelOutput
from kdcli.projectors.maps import build_projector
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
        train_ids: the id of every training sample, as batches name it, see :attr:`kdcli.data.source.Source.ids`; None
            where they are numbered.
        seed: the run's.
    """

    task: Task
    student: ModelFacts
    teacher: ModelFacts | None
    label_map: tuple[int, ...] | None
    train_labels: Sequence[int] = ()
    train_ids: Sequence[int] | None = None
    seed: int = 0


Scope = Literal["batch", "local"]


class Method(nn.Module, ABC):
    """One objective: what it needs of both models, and its loss.

    Attributes:
        scope: ``batch`` for a loss that looks at all samples of a batch together, as relations and statistics do: what
            it reads is gathered from all processes, and it returns a scalar. ``local`` for one that is a mean over
            rows, each by itself: it gets the process's own rows, and returns a :class:`Share`.
        weight: of its loss in the total.
        is_balanced: whether ``weight`` is the ratio of its gradient to that of the losses whose weights are factors.
        student_reads: what it reads of the student. Where any method reads the distillation token, all methods of the
            run get the class token's logits for the student's logits.
        teacher_reads: what it reads of the teacher.
        looks_ahead: whether :meth:`look` is to be called before the first step.
        is_aligned: whether it brings projected features to one another channel by channel, so that their difference
            means something; otherwise it compares what doesn't change when one side is rotated, or has its channels put
            in another order.
    """

    scope: Scope = "batch"
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

    def embedding_projector(self) -> nn.Module | None:
        """Return what maps the student's pooled features into the space of the teacher's; None where nothing does.

        What most methods compare is only alike up to a rotation, or of another layer.
        """
        return None

    def sides(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what each of :meth:`projections` is applied to: the student's and the teacher's features or maps.

        Args:
            student: its outputs.
            teacher: its outputs.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor
    ) -> Tensor | Share:
        """Return the unweighted loss: a scalar of the batch, or a :class:`Share` where ``scope`` is ``local``.

        Args:
            student: its outputs, with gradient: what ``student_reads`` names, at least.
            teacher: its outputs, without; None without a teacher.
            targets: as the task's supervised loss takes them.
            samples: int64 (B,), which training samples these are, by their ids.
        """

    def loss(self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor) -> Tensor:
        """Return the unweighted loss of these samples by themselves, a scalar; arguments are :meth:`forward`'s."""
        found = self(student, teacher, targets, samples)
        return found.mean if isinstance(found, Share) else found


class LogitMethod(Method):
    """A method on the logits of both models over common labels, by rows: samples, words, or positions of maps."""

    label_map: Tensor

    def __init__(self, options: LogitOptions, context: Context) -> None:
        super().__init__(options.weight)
        assert context.label_map is not None, "the plan lets it pass only with common labels"
        self.register_buffer("label_map", torch.tensor(context.label_map), persistent=False)
        self.student_reads = self.teacher_reads = context.task.reads(context.student)
        self.num_classes = context.student.num_classes
        self.num_tokens = num_tokens(context.student)

    def common_logits(self, student: ModelOutput, teacher: ModelOutput | None) -> tuple[Tensor, Tensor]:
        """Return the student's logits and the teacher's in the student's label order, both (N, num_classes).

        Of language models, the rows of either vocabulary that are no token's have none: ``-inf``. Of maps N counts the
        positions of the student's; the teacher's are resized to its grid.
        """
        ours, theirs = self._on_one_grid(student, teacher)
        return self._common(rows_of(ours), rows_of(theirs))

    def common_maps(self, student: ModelOutput, teacher: ModelOutput | None) -> tuple[Tensor, Tensor]:
        """Return the logits of positions, both (B, num_classes, H, W) of the student's grid, in its label order."""
        return self._common(*self._on_one_grid(student, teacher))

    def _on_one_grid(self, student: ModelOutput, teacher: ModelOutput | None) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        (head,) = self.student_reads.heads
        ours, theirs = student.heads[head], teacher.heads[self.teacher_reads.heads[0]]
        return ours, resized(theirs, ours.shape[2:]) if ours.ndim == 4 else theirs

    def _common(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        if self.num_tokens is not None:
            padding = self.num_classes - self.num_tokens
            return ours, F.pad(theirs[:, : self.num_tokens], (0, padding), value=-math.inf)
        return ours, theirs.index_select(1, self.label_map) if len(self.label_map) else theirs

    def common_vocabulary(self, teacher: ModelOutput | None) -> VocabularyLogits:
        """Return the teacher's logits of the tokens, without the rows of its vocabulary that are no token's."""
        assert teacher is not None
        assert teacher.vocabulary is not None
        assert self.num_tokens is not None
        return teacher.vocabulary.first(self.num_tokens)


class PairMethod(Method):
    """A method on pairs of layers: it reads their features or their maps, and its loss is summed over the pairs.

    Attributes:
        reads: ``features``, averaged over positions, or ``maps``.
        layers: (student's tap, teacher's tap) of every pair.
    """

    def __init__(self, options: MethodSection, context: Context) -> None:
        super().__init__(options.weight)
        assert context.teacher is not None, "the plan lets it pass only with a teacher"
        assert options.pairs, "the plan settles the layers"
        self.reads = options.reads_layers
        self.layers = [(pair.student, pair.teacher) for pair in options.pairs]
        self.student_reads, self.teacher_reads = (
            Reads(maps=tuple(dict.fromkeys(side))) if self.reads == "maps" else Reads(tuple(dict.fromkeys(side)))
            for side in zip(*self.layers, strict=True)
        )

    def widths(self, options: Any, context: Context) -> list[tuple[int, int]]:
        """Return the channels of what each projector is applied to, of :meth:`sides`."""
        assert context.teacher is not None
        ours, theirs = context.student.feature_dims, context.teacher.feature_dims
        return [(ours[student_tap], theirs[teacher_tap]) for student_tap, teacher_tap in self.layers]

    def sides(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the student's and the teacher's features, (B, d) or (B, C, H, W), of each pair of layers."""
        assert teacher is not None
        ours, theirs = (out.maps if self.reads == "maps" else out.features for out in (student, teacher))
        for student_tap, teacher_tap in self.layers:
            yield ours[student_tap], theirs[teacher_tap]

    def pairs(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is compared of each pair of layers: :meth:`sides`, projected where there is a projector."""
        sides = self.sides(student, teacher)
        projections = self.projections()
        if not projections:
            yield from sides
            return
        for projection, pair in zip(projections, sides, strict=True):
            yield projection.project(*pair)

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the loss of each pair of layers: a value for each of the rows or elements, or a scalar of the batch."""
        raise NotImplementedError

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor
    ) -> Tensor | Share:
        """Return the sum over the pairs of the means of :meth:`values`; labels are not read."""
        loss = torch.stack([mean_of(values) for values in self.values(student, teacher, samples)]).sum()
        if self.scope == "batch":
            return loss
        ours, _ = next(self.sides(student, teacher))
        return Share(loss, len(ours))


class LayerMethod(PairMethod):
    """A method on pairs of layers that may have projectors.

    With a projector what it compares of each pair is ``M(Z_s P), M(Z_t)`` (``linear``, ``mlp``, ``orthogonal``), or
    ``M(Z_s), M(Z_t) P`` (``inverted``: Learning to Project, BMVC 2024, which offers it as a replacement in other
    methods; where it goes in each of them is ours). ``M`` standardises each channel over the batch, of maps also over
    positions, which have their common grid first; the projector takes the channels of each position. The method's own
    regressors and embeddings give way to it.

    With an inverted projector the teacher's side is trained too, so losses have optima at which nothing is learnt,
    which standardisation takes away: squared errors would vanish with both sides at zero, and the student's side has
    variance one; relations by cosines with all samples in one direction, and there is none with mean zero; distances
    and angles don't change with the scale. The map may still come down to few directions, as it is meant to. Both sides
    are standardised with the other projectors as well, so that nothing but the place of the map differs.

    Attributes:
        pair_projections: one of every pair where there is a projector, else none.
    """

    def __init__(self, options: LayerOptions, context: Context) -> None:
        super().__init__(options, context)
        self.pair_projections = nn.ModuleList()
        if options.projector is not None:
            assert options.lr_scale is not None, "the plan settles the projector's rate"
            for student_dim, teacher_dim in self.widths(options, context):
                projector = build_projector(options.projector, student_dim, teacher_dim)
                self.pair_projections.append(ProjectedPair(projector, lr_scale=options.lr_scale))

    def projections(self) -> list[Projected]:
        """Return one of every pair where there is a projector."""
        return list(self.pair_projections)  # type: ignore[arg-type]  # a ModuleList forgets the class of its modules
