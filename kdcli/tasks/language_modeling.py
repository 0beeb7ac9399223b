"""The tokens of texts: masked ones, or each next one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.data import AnyBatch
from kdcli.errors import UserError
from kdcli.facts import DataFacts
from kdcli.gather import gather_rows
from kdcli.losses.vocabulary import VocabularyLogits, chunked_argmax, chunked_cross_entropy


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
    ) -> dict[str, float]:
        """Return how well the tokens are predicted.

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
            sums = (losses.double().sum(), (guesses == targets).sum().double(), targets.new_tensor(len(targets)))
            totals += torch.stack([value.double() for value in sums]).cpu()
        loss, hits, count = add_up(totals).tolist()
        if count == 0:
            raise UserError("There are no tokens to evaluate on.", "Check that split.")
        mean = loss / count
        return {
            "log_likelihood": -mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "accuracy": hits / count,
            "loss": mean,
        }
