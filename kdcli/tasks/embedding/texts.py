"""The teacher's embedding space, without labels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Self

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.data import AnyBatch, TextBatch
from kdcli.tasks.sample_sums import Note, ignore_sums

NEIGHBOURS = 10
"""k of recall@k."""


class SentenceEmbedding:
    """The task ``sentence-embedding``: the student's embeddings are to stand to one another as the teacher's do.

    Args:
        reference: a batch to the teacher's embeddings (B, d).
    """

    name = "sentence-embedding"
    monitor = "spearman"
    class_names: tuple[str, ...] = ()
    noun = "text"

    def __init__(self, reference: Callable[[AnyBatch], Tensor]) -> None:
        self._reference = reference
        self._known: dict[Hashable, Tensor] = {}
        """The teacher's embeddings of evaluated samples: it stays as it is, so each is computed once."""

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``, whose embeddings are compared with ``reference``."""
        return cls(reference)

    def supervised_loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Raise: there are no labels, and the plan lets no method pass that asks for this."""
        raise NotImplementedError(f"{self.name} has no labels")

    @torch.inference_mode()
    def evaluate(
        self,
        predict: Callable[[AnyBatch], Tensor],
        batches: Iterable[AnyBatch],
        device: torch.device,
        *,
        add_up: Callable[[Tensor], Tensor] = lambda values: values,
        note: Note = ignore_sums,
    ) -> dict[str, float]:
        """Compare the cosines of all pairs of samples with the teacher's; nothing is a sum over samples, and noted.

        Returns:
            ``spearman``, the rank correlation of the cosines, 0 where all of a side are equal; ``recall_at_10``, the share of each sample's ten nearest
            neighbours by the teacher that are among its ten nearest by the student; ``loss``, the mean squared
            difference of the cosines.

        Raises:
            UserError: there are fewer than three samples.
        """
        indices, ours, theirs, num_skipped = [], [], [], 0
        for batch in batches:
            num_skipped += len(batch.skipped)
            if len(batch):
                keys = self._keys(batch)
                batch = batch.to(device)
                indices.append(batch.indices.cpu())
                ours.append(F.normalize(predict(batch).double(), dim=1).cpu())
                theirs.append(F.normalize(self._embed(keys, batch).double(), dim=1))
        size = int(add_up(torch.tensor(sum(map(len, indices)) + num_skipped, dtype=torch.float64)))
        spaces = [whole_space(parts, indices, size, add_up) for parts in (ours, theirs)]
        count = len(spaces[0])
        if count < 3:
            raise UserError(
                f"{count} {self.noun}s are too few to compare in pairs.", f"Give that split more {self.noun}s."
            )
        return compare_spaces(*spaces)

    def _keys(self, batch: AnyBatch) -> Sequence[Hashable]:
        """Return what tells the samples of a batch from all others, whatever split they are of."""
        assert isinstance(batch, TextBatch)
        return batch.texts

    def _embed(self, keys: Sequence[Hashable], batch: AnyBatch) -> Tensor:
        """Return the teacher's embeddings (B, d) on the CPU."""
        if any(key not in self._known for key in keys):
            self._known.update(zip(keys, self._reference(batch).float().cpu(), strict=True))
        return torch.stack([self._known[key] for key in keys])


def whole_space(parts: list[Tensor], indices: list[Tensor], size: int, add_up: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the features of all samples that can be read (N, d), float64, in order, from those that each process has.

    A process writes its own into their rows: what is added up is nothing but zeros and one process's numbers. One
    without any samples learns the width from the others.

    Args:
        parts: (B, d) each, of this process.
        indices: of the samples, (B,) each.
        size: of the split, with the samples that can't be read.
        add_up: sums a float64 tensor over all processes.

    Raises:
        UserError: a feature is not a finite number.
    """
    width = torch.tensor([float(parts[0].shape[1]), 1.0] if parts else [0.0, 0.0], dtype=torch.float64)
    total, having = add_up(width).tolist()
    space = torch.zeros(size, 1 + round(total / max(having, 1)), dtype=torch.float64)
    if parts:
        space[torch.cat(indices)] = F.pad(torch.cat(parts).double(), (1, 0), value=1.0)  # the first column: it is read
    space = add_up(space).cpu()
    if not space.isfinite().all():
        raise UserError(
            "A model's features are not finite numbers.", "Lower --lr, use --mixed-precision no, or check the weights."
        )
    return space[space[:, 0] > 0, 1:]


def compare_spaces(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Compare two embeddings of the same samples by the cosines of all pairs; see :meth:`SentenceEmbedding.evaluate`.

    Args:
        ours: (N, d_s), rows of length 1.
        theirs: (N, d_t), likewise.
    """
    count = len(ours)
    cosines = [space @ space.T for space in (ours, theirs)]
    rows, columns = torch.triu_indices(count, count, offset=1)
    student, teacher = (cosine[rows, columns] for cosine in cosines)
    neighbours = min(NEIGHBOURS, count - 1)
    nearest = [cosine.fill_diagonal_(-torch.inf).topk(neighbours).indices for cosine in cosines]
    hits = (nearest[0][:, :, None] == nearest[1][:, None, :]).sum()
    has_order = all(bool((side != side[0]).any()) for side in (student, teacher))
    return {
        "spearman": float(spearmanr(student.numpy(), teacher.numpy()).statistic) if has_order else 0.0,
        f"recall_at_{NEIGHBOURS}": float(hits) / (count * neighbours),
        "loss": float((student - teacher).square().mean()),
    }
