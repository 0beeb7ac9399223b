"""Batches of texts, of pairs, of tokens and of words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor


class TextPair(NamedTuple):
    """Two texts that are one sample, such as a premise and a hypothesis."""

    first: str
    second: str


Text = str | TextPair
"""A sample of text; those of one split are all single texts, or all pairs."""


@dataclass(eq=False)
class TextBatch:
    """Texts with their targets; each model makes its own tokens of them.

    Attributes:
        texts: B of them, or of pairs.
        targets: int64 ``(B,)`` class indices, ``UNLABELLED`` for none; or float32 ``(B, C)``, zeros and ones of several
            labels, or a number, NaN for none.
        indices: int64 ``(B,)``, which samples of the source these are.
        skipped: always empty: every text can be read.
    """

    texts: list[Text]
    targets: Tensor
    indices: Tensor
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device | str) -> TextBatch:
        """Return the batch with its tensors on ``device``."""
        return replace(self, targets=self.targets.to(device), indices=self.indices.to(device))


@dataclass(eq=False)
class TokenBatch:
    """Pieces of texts as tokens.

    Attributes:
        input_ids: int64 ``(B, L)``, padded on the right.
        attention_mask: int64 ``(B, L)``, 1 for a token and 0 for padding.
        predicted: bool ``(B, L)``, the N positions whose outputs predict a token.
        targets: int64 ``(N,)``, those tokens, piece by piece.
        indices: int64 ``(B,)``, which pieces of the source these are.
        skipped: always empty: every text can be read.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicted: Tensor
    targets: Tensor
    indices: Tensor
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> TokenBatch:
        """Return the batch with its tensors on ``device``."""
        names = ("input_ids", "attention_mask", "predicted", "targets", "indices")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(eq=False)
class WordBatch:
    """Texts as words; each model makes its own tokens of them.

    Attributes:
        words: of B texts, W in all.
        targets: int64 ``(W,)`` class indices, text by text, ``UNLABELLED`` for none.
        indices: int64 ``(B,)``, which texts of the source these are.
        skipped: always empty: every text can be read.
    """

    words: list[list[str]]
    targets: Tensor
    indices: Tensor
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.words)

    def to(self, device: torch.device | str) -> WordBatch:
        """Return the batch with its tensors on ``device``."""
        return replace(self, targets=self.targets.to(device), indices=self.indices.to(device))


AnyTextBatch = TextBatch | TokenBatch | WordBatch
