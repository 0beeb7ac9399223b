"""Texts to pieces of words that all models can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdcli.data import Reader, TextSource, WordSource, cut_words
from kdcli.models.base import Model
from kdcli.models.texts import TextModel


def readers_of(models: Sequence[Model]) -> list[Reader]:
    """Return how each model reads words."""
    return [Reader(model.tokenizer, model.preprocessing.max_length) for model in models if isinstance(model, TextModel)]


def word_cutter(
    teacher: Model | None, student: Model, class_names: Sequence[str]
) -> Callable[[TextSource], WordSource]:
    """Return what makes pieces of a source of words, short enough for both models."""
    readers = readers_of([model for model in (teacher, student) if model is not None])

    def cut(source: TextSource) -> WordSource:
        assert isinstance(source, WordSource)
        return cut_words(source, readers, class_names=class_names)

    return cut
