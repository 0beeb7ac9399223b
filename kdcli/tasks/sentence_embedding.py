"""The teacher's embedding space, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from kdcli.data import AnyBatch, TextBatch
from kdcli.errors import UserError

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

    def __init__(self, reference: Callable[[AnyBatch], Tensor]) -> None:
        self._reference = reference
        self._known: dict[str, Tensor] = {}
        """The teacher's embeddings of evaluated texts: it stays as it is, so each is computed once."""

    def supervised_loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Raise: there are no labels, and the plan lets no method pass that asks for this."""
        raise NotImplementedError("sentence-embedding has no labels")

    @torch.inference_mode()
    def evaluate(
        self,
        predict: Callable[[AnyBatch], Tensor],
        batches: Iterable[AnyBatch],
        device: torch.device,
        *,
        add_up: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> dict[str, float]:
        """Compare the cosines of all pairs of texts with the teacher's.

        Returns:
            ``spearman``, the rank correlation of the cosines; ``recall_at_10``, the share of each text's ten nearest
            neighbours by the teacher that are among its ten nearest by the student; ``loss``, the mean squared
            difference of the cosines.

        Raises:
            UserError: there are fewer than three texts.
        """
        indices, ours, theirs = [], [], []
        for batch in batches:
            if len(batch):
                batch = batch.to(device)
                indices.append(batch.indices.cpu())
                ours.append(F.normalize(predict(batch).double(), dim=1).cpu())
                theirs.append(F.normalize(self._embed(batch).double(), dim=1))
        count = int(add_up(torch.tensor(sum(map(len, indices)), dtype=torch.float64)))
        if count < 3:
            raise UserError(f"{count} texts are too few to compare in pairs.", "Give that split more texts.")
        return compare_spaces(*(_whole(parts, indices, count, add_up) for parts in (ours, theirs)))

    def _embed(self, batch: AnyBatch) -> Tensor:
        """Return the teacher's embeddings (B, d) on the CPU."""
        assert isinstance(batch, TextBatch)
        if any(text not in self._known for text in batch.texts):
            self._known.update(zip(batch.texts, self._reference(batch).float().cpu(), strict=True))
        return torch.stack([self._known[text] for text in batch.texts])


def _whole(parts: list[Tensor], indices: list[Tensor], count: int, add_up: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the embeddings of all texts (count, d), float64, from those that each process has.

    A process writes its own into their rows: what is added up is nothing but zeros and one process's numbers. One
    without any texts learns the width from the others.
    """
    width = torch.tensor([float(parts[0].shape[1]), 1.0] if parts else [0.0, 0.0], dtype=torch.float64)
    total, having = add_up(width).tolist()
    space = torch.zeros(count, round(total / having), dtype=torch.float64)
    if parts:
        space[torch.cat(indices)] = torch.cat(parts)
    return add_up(space).cpu()


def compare_spaces(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Compare two embeddings of the same texts by the cosines of all pairs; see :meth:`SentenceEmbedding.evaluate`.

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
    return {
        "spearman": float(spearmanr(student.numpy(), teacher.numpy()).statistic),
        f"recall_at_{NEIGHBOURS}": float(hits) / (count * neighbours),
        "loss": float((student - teacher).square().mean()),
    }
