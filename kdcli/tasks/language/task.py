"""The tokens of texts: masked ones, or each next one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, TokenBatch
from kdcli.losses.vocabulary import VocabularyLogits, chunked_argmax, chunked_cross_entropy
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.tasks.base import DEFAULT_LOSS, Cut, TextTask
from kdcli.tasks.language.cut import check_tokenizers, token_cutter
from kdcli.tasks.meters import Meter, SampleSums


class LanguageModeling(TextTask):
    """What the tasks ``masked-lm`` and ``causal-lm`` have in common."""

    monitor = "log_likelihood"
    is_masked: ClassVar[bool]
    """Whether tokens are hidden and predicted; else it is each next one."""

    def supervised_loss(
        self,
        logits: Tensor | VocabularyLogits,
        targets: Tensor,
        *,
        label_smoothing: float,
        terms: Mapping[str, float] = DEFAULT_LOSS,
    ) -> Tensor:
        """Return the mean cross-entropy of the tokens, in nats.

        Args:
            logits: (N, V), or logits over a vocabulary.
            targets: int64 (N,), of the same positions.
            label_smoothing: share of the target spread evenly over all tokens.
            terms: none: there is one loss.
        """
        if isinstance(logits, VocabularyLogits):
            return chunked_cross_entropy(logits, targets, label_smoothing=label_smoothing).mean()
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)

    def meter(self, team: Team) -> Meter:
        """Return the meter of the metrics of predicted tokens."""
        return TokenMeter(team)

    def cutter(self, config: RunConfig, teacher: Model | None, student: Model) -> Cut:
        """Return what makes tokens of texts, by the tokenizer that both models share."""
        return token_cutter(config, teacher, student, is_masked=self.is_masked)

    def check(self, teacher: Model | None, student: Model, data: Any) -> None:
        """Refuse a teacher whose tokens are others than the student's."""
        check_tokenizers(teacher, student, data)

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say what the texts were cut into."""
        assert cut is not None
        pieces = cut(data.train)
        value = f"{len(pieces)} pieces for training, {pieces.num_tokens} tokens"
        reason = (
            "Each text by itself, cut where it is longer than both models take; special tokens stand around every"
            " piece."
        )
        if self.is_masked:
            value += f", {config.data.mask_probability:.0%} of them predicted"
            reason += " Masks are drawn anew in every epoch, and are always the same in evaluation."
        return [Decision("tokens", value, reason)]


class MaskedLM(LanguageModeling):
    """The task ``masked-lm``."""

    name = "masked-lm"
    is_masked = True


class CausalLM(LanguageModeling):
    """The task ``causal-lm``."""

    name = "causal-lm"
    is_masked = False


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
        hits = (guesses == targets).cpu().double()
        values = torch.stack([losses.cpu().double(), hits, torch.ones_like(hits)], dim=1)
        sizes = batch.predicted.sum(dim=1).tolist()
        pieces = torch.stack([part.sum(dim=0) for part in values.split(sizes)])
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
