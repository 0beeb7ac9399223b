"""The tokens of texts: masked ones, or each next one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.data import AnyBatch, TokenBatch
from kdcli.losses.vocabulary import VocabularyLogits, chunked_argmax, chunked_cross_entropy
from kdcli.machine.gather import gather_rows
from kdcli.tasks.sample_sums import Note, ignore_sums


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

    @torch.inference_mode()
    def evaluate(
        self,
        predict: Callable[[AnyBatch], Tensor | VocabularyLogits],
        batches: Iterable[AnyBatch],
        device: torch.device,
        *,
        add_up: Callable[[Tensor], Tensor] = lambda values: values,
        note: Note = ignore_sums,
    ) -> dict[str, float]:
        """Return how well the tokens are predicted; every piece's sums are noted.

        Returns:
            ``log_likelihood``, the mean of a token's log-probability in nats; ``perplexity``, its negative's
            exponential; ``accuracy``, the share of tokens that are the likeliest; ``loss``, the mean cross-entropy.

        Raises:
            UserError: there is nothing to evaluate on.
        """
        totals = torch.zeros(3, dtype=torch.float64)  # of the loss, of the hits, of the tokens
        for batch in batches:
            batch = batch.to(device)
            logits, targets = predict(batch), batch.targets
            if isinstance(logits, VocabularyLogits):
                losses, guesses = chunked_cross_entropy(logits, targets), chunked_argmax(logits)
            else:
                losses, guesses = F.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(dim=1)
            assert isinstance(batch, TokenBatch)
            values = torch.stack(
                [losses.double(), (guesses == targets).double(), torch.ones_like(losses).double()], dim=1
            )
            sizes = batch.predicted.sum(dim=1).tolist()
            pieces = torch.stack([part.sum(dim=0) for part in values.cpu().split(sizes)])
            totals += pieces.sum(dim=0)
            loss, hits, count = pieces.T
            sums = {"log_likelihood": (-loss, count), "perplexity": (loss, count), "accuracy": (hits, count)}
            note(batch, {name: torch.stack(both, dim=1) for name, both in sums.items()})
        whole_loss, whole_hits, num_tokens = add_up(totals).tolist()
        if num_tokens == 0:
            raise UserError("There are no tokens to evaluate on.", "Check that split.")
        mean = whole_loss / num_tokens
        return {
            "log_likelihood": -mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "accuracy": whole_hits / num_tokens,
            "loss": mean,
        }
