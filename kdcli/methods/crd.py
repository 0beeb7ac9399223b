"""Contrastive representation distillation (Tian et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.methods import CRDOptions
from kdcli.losses.common import has_float64, most_precise, unit
from kdcli.losses.normalize import full_precision
from kdcli.machine.seeding import stable_seed
from kdcli.methods.base import Context, LayerMethod
from kdcli.models.outputs import ModelOutput


class CRD(LayerMethod):
    """Each side's embeddings of the batch, against the other side's stored ones of the same and of other images.

    A projector takes the place of both linear embeddings: one side's projected features at length one are its
    embedding, as the other side's own are. Memories and negatives are then as wide as the teacher's features, or as the
    student's where it is inverted.

    Everything that a step depends on is in the state dict, the number of steps so far included: negatives are drawn by
    (seed, step). Outside training nothing is stored.

    Attributes:
        contrasts: one a pair of layers.
    """

    def __init__(self, options: CRDOptions, context: Context) -> None:
        super().__init__(options, context)
        assert context.teacher is not None
        self.contrasts = nn.ModuleList(
            Contrast(
                context.student.feature_dims[student_tap],
                context.teacher.feature_dims[teacher_tap],
                options=options,
                context=context,
                number=number,
            )
            for number, (student_tap, teacher_tap) in enumerate(self.layers)
        )

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the loss of each layer, a scalar; labels are those of the training set, by ``samples``."""
        for contrast, pair in zip(self.contrasts, self.pairs(student, teacher), strict=True):
            yield contrast(*pair, samples)


class Contrast(nn.Module):
    """Embeddings, their memory and the two contrastive losses of one pair of layers.

    Attributes:
        student_embedding, teacher_embedding: linear, followed by normalisation to length one; that alone after a
            projector.
        student_memory, teacher_memory: float32 (M, width), an embedding of every training sample.
        partitions: float64 (2,), float32 on a device without float64, the constants ``Z`` of the student's and of the
            teacher's anchors, from the first batch; zero before.
        steps: int64, training steps so far.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    partitions: Tensor
    steps: Tensor
    row_of: Tensor
    order: Tensor
    first: Tensor
    size: Tensor

    def __init__(
        self, student_dim: int, teacher_dim: int, *, options: CRDOptions, context: Context, number: int
    ) -> None:
        super().__init__()
        self.num_samples = len(context.train_labels)
        self.num_negatives = min(options.negatives, self.num_samples - 1)
        self.temperature, self.momentum = options.temperature, options.momentum
        self.key = (context.seed, number)
        if options.projector is None:
            width = options.width
            self.student_embedding: nn.Module = nn.Linear(student_dim, width)
            self.teacher_embedding: nn.Module = nn.Linear(teacher_dim, width)
        else:
            width = student_dim if options.projector == "inverted" else teacher_dim
            self.student_embedding, self.teacher_embedding = nn.Identity(), nn.Identity()
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_memory", unit(torch.randn(self.num_samples, width)))
        self.register_buffer("partitions", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        ids = torch.tensor(range(self.num_samples) if context.train_ids is None else context.train_ids)
        row_of = torch.zeros(int(ids.max()) + 1, dtype=torch.int64)
        row_of[ids] = torch.arange(self.num_samples)
        self.register_buffer("row_of", row_of, persistent=False)
        groups = _groups(context.train_labels, options.from_other_classes)
        order = torch.argsort(groups, stable=True)
        first = torch.searchsorted(groups[order], groups)
        size = torch.searchsorted(groups[order], groups, right=True) - first
        if self.num_negatives < 1 or int(size.max()) == self.num_samples:
            raise UserError(
                "crd has no negatives: all training images have one label.",
                "Set from_other_classes: false, or use another method.",
            )
        for name, value in (("order", order), ("first", first), ("size", size)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, samples: Tensor) -> Tensor:
        """Return the loss of features (B, d_s) and (B, d_t) of the batch, both as wide after a projector.

        In training its embeddings are stored.
        """
        rows = self.row_of[samples.clamp(max=len(self.row_of) - 1)]  # in evaluation there are others, without a row
        ours = unit(full_precision(self.student_embedding(student)))
        theirs = unit(full_precision(self.teacher_embedding(teacher)))
        negatives = self.draw(rows)
        sides = [(ours, self.teacher_memory), (theirs, self.student_memory)]
        # Copies, so that what is stored below doesn't change what the backward pass reads.
        contrasted = [(anchors, memory[rows], memory[negatives]) for anchors, memory in sides]
        if self.training and int(self.steps) == 0:
            self.partitions.copy_(torch.stack([self._partition(*tensors) for tensors in contrasted]))
        terms = [
            losses.crd(
                *tensors, num_samples=self.num_samples, temperature=self.temperature, partition=partition or 1.0
            ).mean()
            for tensors, partition in zip(contrasted, self.partitions.tolist(), strict=True)
        ]
        if self.training:
            self._store(rows, ours, theirs)
            self.steps += 1
        return terms[0] + terms[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Contrast:
        if not has_float64(fn(torch.zeros(())).device):
            self.partitions = self.partitions.float()
        super()._apply(fn, recurse)
        return self

    def draw(self, rows: Tensor) -> Tensor:
        """Return the negatives (B, N) of this step: rows of other groups, evenly drawn with repetition.

        The anchors are in ``rows`` (B,). What is drawn depends on seed, step and layer alone, not on device or process.
        """
        generator = torch.Generator().manual_seed(stable_seed("crd", *self.key, int(self.steps)))
        drawn = torch.rand(len(rows), self.num_negatives, dtype=torch.float64, generator=generator)
        first, size = self.first[rows, None], self.size[rows, None]
        # Number the rows by group and step over the anchor's own.
        place = rows.device if has_float64(rows.device) else drawn.device
        number = (drawn.to(place) * (self.num_samples - size.to(place))).long().to(rows.device)
        return self.order[number + size * (number >= first)]

    @torch.no_grad()
    def _partition(self, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return ``M`` times the mean of ``exp(a · x / τ)`` over all positives and negatives."""
        candidates = torch.cat([positives[:, None], negatives], dim=1)
        similarities = (candidates @ anchors[:, :, None]).squeeze(2) / self.temperature
        return most_precise(similarities).exp().mean() * self.num_samples

    @torch.no_grad()
    def _store(self, rows: Tensor, ours: Tensor, theirs: Tensor) -> None:
        # A sample that is in the batch twice is stored as it was the last time, on every device.
        same = rows[:, None] == rows
        last = (same * torch.arange(len(rows), device=rows.device)).amax(dim=1)
        for memory, embeddings in ((self.student_memory, ours), (self.teacher_memory, theirs)):
            updated = unit(self.momentum * memory[rows] + (1 - self.momentum) * embeddings)
            memory[rows] = updated[last]


def _groups(labels: object, by_class: bool) -> Tensor:
    """Return a number for each sample, the same for those that are never each other's negatives.

    A sample without a label is alone.
    """
    classes = torch.as_tensor(labels)
    alone = torch.arange(len(classes))
    if not by_class:
        return alone
    return torch.where(classes == UNLABELLED, int(classes.max()) + 1 + alone, classes)


build = CRD
