"""The entities that a finished classifier of words finds in a user's own texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from kdcli.base.facts import UNLABELLED
from kdcli.data import AnyBatch, Source, WordBatch, WordSource, cut_words
from kdcli.models.base import Model
from kdcli.tasks.answers import Answer, Answers, Asked
from kdcli.tasks.words.cut import readers_of
from kdcli.tasks.words.task import find_entities, tell_entities

_WORD = re.compile(r"\w+|[^\w\s]")
"""A word, or a mark by itself, as in corpora of named entities."""


class WordAnswers(Answers):
    """The entities of a text, with their places in it; or the class of each word where labels tell of no entities.

    A text that is longer than a model takes is cut between words, as in training; an entity that lies across a cut is
    told as two.
    """

    def source(self, models: Sequence[Model]) -> Source:
        """Return the texts in pieces that all models take."""
        spans = [[found.span() for found in _WORD.finditer(text)] for text in self.samples]
        words = [[text[start:end] for start, end in own] for text, own in zip(self.samples, spans, strict=True)]
        tags = [[UNLABELLED] * len(own) for own in words]
        self._spans, self._words = spans, words
        self._read: dict[int, dict[int, int]] = {}
        source = WordSource(words, tags, split="text")
        return cut_words(source, readers_of(models), class_names=self.task.class_names)

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield of every piece what is found in it, from the logits (W, C) of its words."""
        assert isinstance(batch, WordBatch)
        probabilities = outputs.double().softmax(dim=1)
        sizes = [len(words) for words in batch.words]
        for number, words, rows in zip(batch.samples.tolist(), batch.words, probabilities.split(sizes), strict=True):
            yield self._told(asked, number, words, rows)

    def _told(self, asked: Asked, number: int, words: Sequence[str], rows: Tensor) -> Answer:
        places = self._places(id(asked), number, words)
        scores, labels = (values.tolist() for values in rows.max(dim=1))
        names, text = [asked.class_names[label] for label in labels], self.samples[number]
        records: list[dict[str, Any]]
        if not tell_entities(asked.class_names):
            records = [
                {"word": text[start:end], "label": name, "probability": score, "start": start, "end": end}
                for (start, end), name, score in zip(places, names, scores, strict=True)
            ]
            return Answer(records, [f"{each['word']}: {each['label']} {each['probability']:.1%}" for each in records])
        records = []
        for kind, first, after in sorted(find_entities(names), key=lambda entity: entity[1:]):
            start, end = places[first][0], places[after - 1][1]
            score = sum(scores[first:after]) / (after - first)
            records.append({"entity": kind, "text": text[start:end], "probability": score, "start": start, "end": end})
        return Answer(records, [f"{each['entity']}: {each['text']} {each['probability']:.1%}" for each in records])

    def _places(self, reader: int, number: int, words: Sequence[str]) -> list[tuple[int, int]]:
        """Return where the words of a piece are in its text; pieces come in order, and some words are left out."""
        after = self._read.setdefault(reader, {})
        place, found = after.get(number, 0), []
        for word in words:
            place = self._words[number].index(word, place)
            found.append(self._spans[number][place])
            place += 1
        after[number] = place
        return found
