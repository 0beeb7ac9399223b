"""The tokens of texts: masked ones, or each next one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.data import AnyBatch, TokenBatch
from kdcli.losses.vocabulary import VocabularyLogits, chunked_argmax, chunked_cross_entropy
from kdcli.machine.gather import gather_rows
from kdcli.machine.team import Team
from kdcli.tasks.meters import Meter, SampleSums


class LanguageModeling:
    """The tasks ``masked-lm`` and ``causal-lm``.

    Args:
        name: which of them.
    """

    monitor = "log_likelihood"
    class_names: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``; nothing is compared with a reference."""
        return cls(data.task)

    def supervised_loss(self, logits: Tensor | VocabularyLogits, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Return the mean cross-entropy of the tokens, in nats.

        Args:
            logits: (N, V) of all processes, or this process's own over a vocabulary.
            targets: int64 (N,), of the same positions.
            label_smoothing: share of the target spread evenly over all tokens.
        """
        if isinstance(logits, VocabularyLogits):
            return gather_rows(chunked_cross_entropy(logits, targets, label_smoothing=label_smoothing)).mean()
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)

    def meter(self, team: Team) -> Meter:
        """Return the meter of the metrics of predicted tokens."""
        return TokenMeter(team)


class TokenMeter:
    """How well tokens are predicted.

    ``log_likelihood``, the mean of a token's log-probability in nats; ``perplexity``, its negative's exponential;
    ``accuracy``, the share of tokens that are the likeliest; ``loss``, the mean cross-entropy.

    Args:
        team: of the processes that share the samples.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        self._totals = torch.zeros(3, dtype=torch.float64)  # of the loss, of the hits, of the tokens

    def update(self, outputs: Tensor | VocabularyLogits, batch: AnyBatch) -> SampleSums:
        """Add logits (N, V) of the predicted tokens; return the sums of every piece."""
        assert isinstance(batch, TokenBatch)
        targets = batch.targets
        if isinstance(outputs, VocabularyLogits):
            losses, guesses = chunked_cross_entropy(outputs, targets), chunked_argmax(outputs)
        else:
            losses, guesses = F.cross_entropy(outputs.float(), targets, reduction="none"), outputs.argmax(dim=1)
        values = torch.stack([losses.double(), (guesses == targets).double(), torch.ones_like(losses).double()], dim=1)
        sizes = batch.predicted.sum(dim=1).tolist()
        pieces = torch.stack([part.sum(dim=0) for part in values.cpu().split(sizes)])
        self._totals += pieces.sum(dim=0)
        loss, hits, count = pieces.T
        sums = {"log_likelihood": (-loss, count), "perplexity": (loss, count), "accuracy": (hits, count)}
        return {name: torch.stack(both, dim=1) for name, both in sums.items()}

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: there are no tokens.
        """
        whole_loss, whole_hits, num_tokens = self._team.sum(self._totals).tolist()
        if num_tokens == 0:
            raise UserError("There are no tokens to evaluate on.", "Check that split.")
        mean = whole_loss / num_tokens
        return {
            "log_likelihood": -mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "accuracy": whole_hits / num_tokens,
            "loss": mean,
        }
