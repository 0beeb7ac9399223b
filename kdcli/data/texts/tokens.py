"""Texts as tokens, for language models: pieces that a model can take whole, and which of their tokens to predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcli.base.errors import UserError
from kdcli.data.source import Sample
from kdcli.data.texts.batch import TokenBatch
from kdcli.data.texts.sources import Pieces, TextSource
from kdcli.machine.seeding import stable_seed

_MASKED, _RANDOM = 0.8, 0.1
"""Of the tokens to predict: replaced by the mask token, by any token; the others stay (BERT, Devlin et al. 2019)."""


@dataclass(frozen=True)
class Masking:
    """Which tokens of a piece a masked language model has to predict, and what stands in their place.

    Attributes:
        probability: share of the tokens that are no special ones; at least one of a piece.
        mask_token: its number.
        special: numbers of the special tokens, which are never predicted.
        vocab_size: number of tokens.
        seed: the run's.
    """

    probability: float
    mask_token: int
    special: frozenset[int]
    vocab_size: int
    seed: int

    def draw(
        self, ids: NDArray[np.int64], index: int, epoch: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return what the model gets to see of ``ids`` and which of them it predicts.

        It is drawn by seed, epoch and index alone; for evaluation, without an epoch, by the index alone.
        """
        when = ("evaluation",) if epoch is None else (self.seed, epoch)
        draw = np.random.default_rng(stable_seed("mask", *when, index))
        ordinary = np.flatnonzero(~np.isin(ids, list(self.special)))
        count = max(round(self.probability * len(ordinary)), 1)
        chosen = np.sort(draw.choice(ordinary, size=min(count, len(ordinary)), replace=False))
        fate = draw.random(len(chosen))
        seen = ids.copy()
        seen[chosen[fate < _MASKED]] = self.mask_token
        exchanged = chosen[(fate >= _MASKED) & (fate < _MASKED + _RANDOM)]
        seen[exchanged] = draw.integers(self.vocab_size, size=len(exchanged))
        predicted = np.zeros(len(ids), dtype=bool)
        predicted[chosen] = True
        return seen, predicted


class TokenSource(Pieces):
    """The pieces of one split, in memory: each text by itself, cut where it is longer than the models take.

    Args:
        pieces: tokens, special ones included; each at least one that is predicted.
        pad_token: its number.
        masking: of a masked language model; None for one that predicts each next token.
        split: what it is of.
        ids: of the texts that these are pieces of; by default every piece is a text.
        numbers: of the pieces, which masks are drawn by; by default their places here.

    Raises:
        UserError: there are no pieces.
    """

    def __init__(
        self,
        pieces: Sequence[NDArray[np.int64]],
        *,
        pad_token: int,
        masking: Masking | None,
        split: str,
        ids: NDArray[np.int64] | None = None,
        numbers: NDArray[np.int64] | None = None,
    ) -> None:
        if not pieces:
            raise UserError(f"The {split} texts have no tokens to predict.", "Check the texts and the tokenizer.")
        self.pieces, self.split = pieces, split
        self.labels: Sequence[int] = (0,) * len(pieces)
        self._ids = np.arange(len(pieces)) if ids is None else ids
        self._numbers = np.arange(len(pieces)) if numbers is None else numbers
        self._pad_token, self._masking = pad_token, masking

    @property
    def ids(self) -> NDArray[np.int64]:
        """As given: pieces of one text have the text's."""
        return self._ids

    def load(self, index: int) -> Sample:
        """Return the tokens of one piece, int64 (L,), which are its target as well."""
        return Sample(self.pieces[index], self.pieces[index])

    def take(self, indices: Iterable[int], labels: Iterable[int] | None = None) -> TokenSource:
        """Return the pieces ``indices``, in that order and some repeatedly, with the masks that they have here."""
        assert labels is None, "the tokens themselves are the labels"
        chosen = np.asarray([int(index) for index in indices], dtype=np.int64)
        return TokenSource(
            [self.pieces[index] for index in chosen],
            pad_token=self._pad_token,
            masking=self._masking,
            split=self.split,
            ids=self.ids[chosen],
            numbers=self._numbers[chosen],
        )

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all pieces."""
        return sum(map(len, self.pieces))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """In tokens."""
        return np.fromiter(map(len, self.pieces), np.int64, len(self.pieces))

    def batch(self, indices: Sequence[int], epoch: int | None = None) -> TokenBatch:
        """Return the pieces ``indices`` as a batch; without ``epoch`` with the masks of evaluation."""
        pieces = [self.pieces[index] for index in indices]
        shape = (len(pieces), max(map(len, pieces)))
        ids, mask, predicted = np.full(shape, self._pad_token), np.zeros(shape, np.int64), np.zeros(shape, bool)
        targets = []
        for row, (index, piece) in enumerate(zip(indices, pieces, strict=True)):
            seen, asked = piece, np.arange(len(piece)) < len(piece) - 1
            if self._masking is not None:
                seen, asked = self._masking.draw(piece, int(self._numbers[index]), epoch)
            ids[row, : len(piece)], mask[row, : len(piece)], predicted[row, : len(piece)] = seen, 1, asked
            targets.append(piece[asked] if self._masking is not None else piece[1:])
        return TokenBatch(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            predicted=torch.from_numpy(predicted),
            targets=torch.from_numpy(np.concatenate(targets)),
            samples=self.samples(indices),
            view=self.views(indices, epoch),
        )


def cut_into_tokens(source: TextSource, tokenizer: Any, *, max_length: int, masking: Masking | None) -> TokenSource:
    """Return the tokens of every text, longer ones in as many pieces as it takes; no piece has two texts in it.

    Args:
        source: one split.
        tokenizer: both models' own; its special tokens stand around every piece.
        max_length: tokens of a piece, special ones included.
        masking: as :class:`TokenSource` takes it.

    Raises:
        UserError: nothing is left to predict, there is no room for it, or the tokenizer can't cut.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {type(tokenizer).__name__} can't cut long texts into pieces.",
            "Give the model's folder a tokenizer.json.",
        )
    if max_length <= (number := tokenizer.num_special_tokens_to_add()):
        raise UserError(
            f"max_length {max_length} leaves no room for a text beside {number} special tokens.", "Raise max_length."
        )
    found = tokenizer(
        list(source.texts), truncation=True, max_length=max_length, return_overflowing_tokens=True, verbose=False
    )
    special = set(tokenizer.all_special_ids)
    pieces, origins = [], []
    for ids, text in zip(found["input_ids"], found["overflow_to_sample_mapping"], strict=True):
        asked = ids[1:] if masking is None else [token for token in ids if token not in special]
        if asked:
            pieces.append(np.asarray(ids, dtype=np.int64))
            origins.append(int(text))
    return TokenSource(
        pieces, pad_token=tokenizer.pad_token_id, masking=masking, split=source.split, ids=source.ids[origins]
    )
