"""The teacher's embedding space, without labels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ModelFacts
from kdcli.base.reads import Reads
from kdcli.data import AnyBatch, TextBatch
from kdcli.data.images.decode import Range
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.tasks.answers import Answers, Choice, VectorAnswers
from kdcli.tasks.base import DEFAULT_LOSS, TextTask
from kdcli.tasks.meters import Meter, SampleSums

NEIGHBOURS = 10
"""k of recall@k."""


class SentenceEmbedding(TextTask):
    """The task ``sentence-embedding``: the student's embeddings are to stand to one another as the teacher's do.

    Args:
        reference: a batch to the teacher's embeddings (B, d).
    """

    name = "sentence-embedding"
    monitor = "spearman"
    noun = "text"

    def __init__(self, reference: Callable[[AnyBatch], Tensor]) -> None:
        super().__init__()
        self._reference = reference
        self._known: dict[Hashable, Tensor] = {}
        """The teacher's embeddings of evaluated samples: it stays as it is, so each is computed once."""

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``, whose embeddings are compared with ``reference``."""
        return cls(reference)

    def supervised_loss(
        self, logits: Tensor, targets: Tensor, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Raise: there are no labels, and the plan lets no method pass that asks for this."""
        raise NotImplementedError(f"{self.name} has no labels")

    def meter(self, team: Team) -> Meter:
        """Return the meter that compares the student's space with the teacher's."""
        return SpaceMeter(self, team)

    def reads(self, model: ModelFacts) -> Reads:
        """Return the pooled features."""
        return Reads(("pooled",))

    def predict(
        self, model: Model, batch: AnyBatch, *, into_teacher: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the embeddings (B, d), in the teacher's space where something maps them there."""
        embeddings = model(model.prepare(batch), self.reads(model.facts)).features["pooled"]
        return embeddings if into_teacher is None else into_teacher(embeddings)

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what tells the embeddings."""
        return VectorAnswers(self, samples, choice, deep_range=deep_range)

    def _keys(self, batch: AnyBatch) -> Sequence[Hashable]:
        """Return what tells the samples of a batch from all others, whatever split they are of."""
        assert isinstance(batch, TextBatch)
        return batch.texts

    def embed(self, batch: AnyBatch) -> Tensor:
        """Return the teacher's embeddings (B, d) on the CPU."""
        keys = self._keys(batch)
        if any(key not in self._known for key in keys):
            self._known.update(zip(keys, self._reference(batch).float().cpu(), strict=True))
        return torch.stack([self._known[key] for key in keys])


class SpaceMeter:
    """Compares the cosines of all pairs of samples with the teacher's; nothing is a sum over samples.

    ``spearman``, the rank correlation of the cosines, 0 where all of a side are equal; ``recall_at_10``, the share of
    each sample's ten nearest neighbours by the teacher that are among its ten nearest by the student; ``loss``, the
    mean squared difference of the cosines.

    Args:
        task: knows the teacher's embeddings.
        team: of the processes that share the samples.
    """

    def __init__(self, task: SentenceEmbedding, team: Team) -> None:
        self._task, self._team = task, team
        self._samples: list[Tensor] = []
        self._ours: list[Tensor] = []
        self._theirs: list[Tensor] = []

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add the student's embeddings (B, d)."""
        self._samples.append(batch.samples.cpu())
        self._ours.append(F.normalize(outputs.cpu().double(), dim=1))
        self._theirs.append(F.normalize(self._task.embed(batch).double(), dim=1))
        return {}

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: there are fewer than three samples, or an embedding is not finite.
        """
        spaces = [in_order(parts, self._samples, self._team) for parts in (self._ours, self._theirs)]
        if (count := len(spaces[0])) < 3:
            noun = self._task.noun
            raise UserError(f"{count} {noun}s are too few to compare in pairs.", f"Give that split more {noun}s.")
        return compare_spaces(*spaces)


def in_order(parts: list[Tensor], samples: list[Tensor], team: Team) -> Tensor:
    """Return the features of the samples of all processes (N, d), float64, in the order of the samples' ids.

    Args:
        parts: (B, d) each, of this process, on the CPU.
        samples: their ids, (B,) each.
        team: the processes; one may have no samples.

    Raises:
        UserError: a feature is not a finite number.
    """
    found = team.gather(list(zip(samples, parts, strict=True)))
    if not found:
        return torch.zeros(0, 1, dtype=torch.float64)
    order = torch.cat([ids for ids, _ in found]).argsort()
    space = torch.cat([features for _, features in found]).double()[order]
    if not space.isfinite().all():
        raise UserError(
            "A model's features are not finite numbers.", "Lower --lr, use --mixed-precision no, or check the weights."
        )
    return space


def compare_spaces(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Compare two embeddings of the same samples by the cosines of all pairs; see :class:`SpaceMeter`.

    Args:
        ours: (N, d_s), rows of length 1.
        theirs: (N, d_t), likewise.
    """
    from scipy.stats import spearmanr

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
