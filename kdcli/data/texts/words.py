"""Texts as words with a label each, for classifiers of tokens; a word stands by the first of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data.source import Sample
from kdcli.data.texts.batch import WordBatch
from kdcli.data.texts.sources import TextSource


class WordSource(TextSource):
    """One split, in memory, of texts that are cut into words already.

    ``texts`` are the words joined by spaces; ``labels`` are 0 for a text with a labelled word, else ``UNLABELLED``.

    Args:
        words: of each text at least one, none of them blank.
        tags: the class index of every word, ``UNLABELLED`` for none.
        split: what :meth:`describe` calls it.
        ids: of the texts, or of those that these are pieces of; by default their numbers.
    """

    def __init__(
        self,
        words: Iterable[Sequence[str]],
        tags: Iterable[Sequence[int]],
        *,
        split: str,
        ids: NDArray[np.int64] | None = None,
    ) -> None:
        self.words = tuple(tuple(text) for text in words)
        self.tags = tuple(tuple(text) for text in tags)
        labels = (UNLABELLED if all(tag == UNLABELLED for tag in text) else 0 for text in self.tags)
        super().__init__((" ".join(text) for text in self.words), labels, split=split, ids=ids)

    @property
    def num_words(self) -> int:
        """Number of words of all texts."""
        return sum(map(len, self.words))

    def load(self, index: int) -> Sample:
        """Return the words of one text, and the class of each."""
        return Sample(list(self.words[index]), list(self.tags[index]))

    def take(self, indices: Iterable[int], labels: Iterable[int] | None = None) -> Self:
        """Return the texts ``indices``, in that order and some repeatedly; words keep their labels."""
        assert labels is None, "labels are of words"
        chosen = np.asarray([int(index) for index in indices], dtype=np.int64)
        words, tags = (self.words[index] for index in chosen), (self.tags[index] for index in chosen)
        return type(self)(words, tags, split=self.split, ids=self.ids[chosen])

    def batch(self, indices: Sequence[int], epoch: int | None = None) -> WordBatch:
        """Return the texts ``indices`` as a batch, the same in every epoch."""
        return WordBatch(
            words=[list(self.words[index]) for index in indices],
            targets=torch.tensor([tag for index in indices for tag in self.tags[index]], dtype=torch.int64),
            samples=self.samples(indices),
            view=self.views(indices, epoch),
        )


class Reader(NamedTuple):
    """A model's tokenizer, and the most tokens of a text that the model takes, special ones included."""

    tokenizer: Any
    max_length: int


def encode_words(tokenizer: Any, texts: Sequence[Sequence[str]], **options: Any) -> Any:
    """Return the tokens of words, the same as in running text with a space between two words.

    Byte-level tokenizers hold the space for part of the word after it, and get it.

    Args:
        tokenizer: a fast one.
        texts: the words of each.
        options: of the tokenizer's call.
    """
    running = tokenizer("a a", add_special_tokens=False)["input_ids"]
    apart = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    space = "" if apart == running else " "
    spaced = [[space * (number > 0) + word for number, word in enumerate(words)] for words in texts]
    return tokenizer(spaced, is_split_into_words=True, **options)


def first_tokens(encoded: Any, texts: Sequence[Sequence[str]]) -> Tensor:
    """Return where the first token of every word is in the flattened (B, L), int64 (number of words,).

    Args:
        encoded: what :func:`encode_words` returned, padded to one length L.
        texts: the words, each of which has a token.
    """
    length, rows = encoded["input_ids"].shape[1], []
    for number, words in enumerate(texts):
        firsts: dict[int, int] = {}
        for position, word in enumerate(encoded.word_ids(number)):
            if word is not None:
                firsts.setdefault(word, position)
        rows += [number * length + firsts[word] for word in range(len(words))]
    return torch.tensor(rows, dtype=torch.int64)


def cut_words(source: WordSource, readers: Sequence[Reader], *, class_names: Sequence[str]) -> WordSource:
    """Return the texts in pieces that every model can take whole, each with the same words for all of them.

    A text that is longer than one of them takes is cut between two words; not inside an entity where its labels tell
    of one (``I-``, ``E-`` and ``L-`` go on with it). A word that alone is too long keeps its first tokens. One that a
    tokenizer makes nothing of, such as a control character, is left out for all.

    Args:
        source: one split.
        readers: of teacher and student.
        class_names: of the labels.

    Raises:
        UserError: a tokenizer can't tell words apart, a model takes no words, or no words are left.
    """
    unique = sorted({word for words in source.words for word in words})
    costs = [_costs(reader, unique) for reader in readers]
    room = [reader.max_length - reader.tokenizer.num_special_tokens_to_add() for reader in readers]
    if min(room) < 1:
        raise UserError("The longest text has no room for a word beside the special tokens.", "Raise max_length.")
    inside = {label for label, name in enumerate(class_names) if name.startswith(("I-", "E-", "L-"))}
    pieces, tags, origins = [], [], []
    for number, (words, labels) in enumerate(zip(source.words, source.tags, strict=True)):
        kept = [place for place, word in enumerate(words) if all(min(cost[word]) for cost in costs)]
        start = 0
        while start < len(kept):
            most = kept[start : start + min(room) + 1]  # every word has a token: no more than these can fit
            end = _end_of_piece([words[place] for place in most], costs, room) + start
            whole = next((i for i in range(end, start, -1) if i == len(kept) or labels[kept[i]] not in inside), end)
            pieces.append([words[place] for place in kept[start:whole]])
            tags.append([labels[place] for place in kept[start:whole]])
            origins.append(number)
            start = whole
    if not pieces:
        raise UserError(f"The tokenizers make nothing of the {source.split} texts.", "Check the texts.")
    return WordSource(pieces, tags, split=source.split, ids=source.ids[origins])


class _Cost(NamedTuple):
    """Tokens of a word at the beginning of a text, and after another word."""

    first: int
    later: int


def _costs(reader: Reader, words: Sequence[str]) -> dict[str, _Cost]:
    if not reader.tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {type(reader.tokenizer).__name__} doesn't tell which token is of which word.",
            "Choose another model, or give this one's folder a tokenizer.json.",
        )
    alone = encode_words(reader.tokenizer, [[word] for word in words], add_special_tokens=False, verbose=False)
    after = encode_words(reader.tokenizer, [["a", word] for word in words], add_special_tokens=False, verbose=False)
    return {
        word: _Cost(alone.word_ids(number).count(0), after.word_ids(number).count(1))
        for number, word in enumerate(words)
    }


def _end_of_piece(words: Sequence[str], costs: Sequence[dict[str, _Cost]], room: Sequence[int]) -> int:
    """Return how many of ``words`` every model takes at once, at least one."""
    used = [cost[words[0]].first for cost in costs]
    for number, word in enumerate(words[1:], 1):
        used = [tokens + cost[word].later for tokens, cost in zip(used, costs, strict=True)]
        if any(tokens > most for tokens, most in zip(used, room, strict=True)):
            return number
    return len(words)
