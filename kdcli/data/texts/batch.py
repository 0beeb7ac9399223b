"""Batches of texts, of pairs, of tokens and of words. Every text can be read: none is skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kdcli.data.batch import AnyBatch


class TextPair(NamedTuple):
    """Two texts that are one sample, such as a premise and a hypothesis."""

    first: str
    second: str


Text = str | TextPair
"""A sample of text; those of one split are all single texts, or all pairs."""


@dataclass(eq=False, kw_only=True)
class TextBatch(AnyBatch):
    """Texts with their targets; each model makes its own tokens of them.

    Attributes:
        texts: B of them, or of pairs.
        targets: int64 ``(B,)`` class indices, ``UNLABELLED`` for none; or float32 ``(B, C)``, zeros and ones of several
            labels, or a number, NaN for none.
    """

    texts: list[Text]

    def plain_texts(self) -> list[str]:
        """Return the texts, pairs joined by a space."""
        return [text if isinstance(text, str) else " ".join(text) for text in self.texts]


@dataclass(eq=False, kw_only=True)
class TokenBatch(AnyBatch):
    """Pieces of texts as tokens; ``samples`` are the texts.

    Attributes:
        input_ids: int64 ``(B, L)``, padded on the right.
        attention_mask: int64 ``(B, L)``, 1 for a token and 0 for padding.
        predicted: bool ``(B, L)``, the N positions whose outputs predict a token.
        targets: int64 ``(N,)``, those tokens, piece by piece.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicted: Tensor

    @property
    def has_rows(self) -> bool:
        """They have, one for each of the N tokens."""
        return True


@dataclass(eq=False, kw_only=True)
class WordBatch(AnyBatch):
    """Texts, or pieces of texts, as words; each model makes its own tokens of them.

    Attributes:
        words: of B texts, W in all.
        targets: int64 ``(W,)`` class indices, text by text, ``UNLABELLED`` for none.
    """

    words: list[list[str]]

    @property
    def has_rows(self) -> bool:
        """They have, one for each word."""
        return True
