"""A label for each word of a text: named entities, parts of speech."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, WordBatch, cut_words
from kdcli.data.images.decode import Range
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.tasks.answers import Answers, Choice
from kdcli.tasks.base import Cut, TextTask
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.classification.report import ClassReport, class_layout
from kdcli.tasks.meters import Meter, SampleSums, TeamMetrics
from kdcli.tasks.reports import Layout, Report
from kdcli.tasks.words.cut import readers_of, word_cutter

ENTITY_SCORES = ("entity_f1", "entity_precision", "entity_recall")
_ENTITY = re.compile(r"[BIESLU]-.+")
_SAME_PREFIX = {"L": "E", "U": "S"}
"""The last word and the only word of an entity, in BILOU and in IOBES."""


class TokenClassification(TextTask, ImageClassification):
    """The task ``token-classification``: the loss on a word is that on an image.

    Where the labels tell of entities (``B-PER``, ``I-PER``, ``O``; also as IOB1, IOBES and BILOU write them) the best
    student is chosen by the F1 of whole entities, else by accuracy.

    Args:
        class_names: in label order.
    """

    name = "token-classification"
    unit = "word"

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self.monitor = "entity_f1" if tell_entities(class_names) else "accuracy"

    def meter(self, team: Team) -> Meter:
        """Return the meter of the metrics of labelled words."""
        return WordMeter(self.class_names, team)

    @property
    def layout(self) -> Layout:
        """As of classes, and of entities where there are any."""
        also = ENTITY_SCORES if tell_entities(self.class_names) else ()
        return class_layout(self.unit, len(self.class_names), sample="text", also=also)

    def report(self) -> Report:
        """Return a report of words and entities."""
        return WordReport(self.class_names)

    def cut_together(self, source: Any, models: Sequence[Model], notes: list[str]) -> Any:
        """Return pieces that all models take, of words that no tokenizer makes nothing of."""
        pieces = cut_words(source, readers_of(models), class_names=self.class_names)
        if len(pieces) > len(source):
            notes.append(
                f"{len(source)} texts are cut between words into {len(pieces)} pieces that every model takes whole."
            )
        if lost := source.num_words - pieces.num_words:
            notes.append(f"{lost} words that a tokenizer makes nothing of are left out.")
        # A piece of a labelled text may have no label.
        return pieces.take(index for index, label in enumerate(pieces.labels) if label != UNLABELLED)

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what tells the entities of texts, or the class of every word."""
        from kdcli.tasks.words.answers import WordAnswers

        return WordAnswers(self, samples, choice, deep_range=deep_range)

    def cutter(self, config: RunConfig, teacher: Model | None, student: Model) -> Cut:
        """Return what makes pieces of texts, between words, short enough for both models."""
        return word_cutter(teacher, student, self.class_names)

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say what the words were cut into."""
        assert cut is not None
        texts, pieces = data.train, cut(data.train)
        reason = (
            "A word stands by its first token; texts are cut between words where they are longer than a model takes."
        )
        if lost := texts.num_words - pieces.num_words:
            reason += f" {lost} words that a tokenizer makes nothing of are left out."
        return [Decision("words", f"{pieces.num_words} for training, in {len(pieces)} pieces", reason)]


class WordReport(ClassReport):
    """The classes of words, and whole entities."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self._entities = torch.zeros(3, dtype=torch.float64)

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add logits (W, C)."""
        assert isinstance(batch, WordBatch)
        super().update(outputs, batch)
        self._entities += count_entities(outputs.float().cpu().argmax(dim=1), batch, self.class_names).sum(dim=0)

    def compute(self) -> dict[str, Any]:
        """Return the metrics of words, and of entities where the labels tell of any."""
        return super().compute() | (entity_scores(self._entities) if tell_entities(self.class_names) else {})


class WordMeter:
    """How well the labelled words are classified.

    ``accuracy``; ``macro_f1``, the mean of the F1 of every class that is there or predicted; ``loss``, the mean
    cross-entropy; and of entities ``entity_f1``, ``entity_precision`` and ``entity_recall`` as conlleval defines them:
    an entity is right when its kind and all its words are.

    Args:
        class_names: in label order.
        team: of the processes that share the samples.
    """

    def __init__(self, class_names: Sequence[str], team: Team) -> None:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        self._class_names, self._team = tuple(class_names), team
        self._has_entities = tell_entities(class_names)
        num_classes = len(class_names)
        metrics = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELLED),
            "macro_f1": MulticlassF1Score(num_classes, average="macro", ignore_index=UNLABELLED),
        }
        self._metrics = TeamMetrics(metrics, team)
        self._totals = torch.zeros(2, dtype=torch.float64)  # of the loss, of the words
        self._entities = torch.zeros(3, dtype=torch.float64)  # right, predicted, true

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add logits (W, C); return every text's sums over its words and entities."""
        assert isinstance(batch, WordBatch)
        logits = outputs.float()
        loss = F.cross_entropy(logits, batch.targets, ignore_index=UNLABELLED, reduction="sum")
        self._totals += torch.stack([loss.cpu().double(), (batch.targets != UNLABELLED).sum().cpu().double()])
        self._metrics.update(logits, batch.targets)
        guesses = logits.argmax(dim=1)
        sums = {"accuracy": _hits_of_texts(guesses, batch)}
        if self._has_entities:
            counts = count_entities(guesses, batch, self._class_names)
            self._entities += counts.sum(dim=0)
            right, predicted, true = counts.T
            sums["entity_f1"] = torch.stack([2 * right, predicted + true], dim=1)
            sums["entity_precision"] = torch.stack([right, predicted], dim=1)
            sums["entity_recall"] = torch.stack([right, true], dim=1)
        return sums

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: there are no labelled words.
        """
        loss_sum, count = self._team.sum(self._totals).tolist()
        if count == 0:
            raise UserError("There are no labelled words to evaluate on.", "Check that split.")
        metrics = self._metrics.compute() | {"loss": loss_sum / count}
        if self._has_entities:
            metrics |= entity_scores(self._team.sum(self._entities))
        return metrics


def tell_entities(class_names: Sequence[str]) -> bool:
    """Whether all labels but ``O`` are of entities, and one says where an entity begins or goes on."""
    others = [name for name in class_names if name != "O"]
    return all(_ENTITY.fullmatch(name) for name in others) and any(name[0] in "BI" for name in others)


def count_entities(guesses: Tensor, batch: WordBatch, class_names: Sequence[str]) -> Tensor:
    """Return how many entities of the labelled words of each text are right, predicted and true: float64 (B, 3).

    Args:
        guesses: int64 (W,), the predicted class of every word.
        batch: its words and their true classes.
        class_names: of the labels.
    """
    counts = torch.zeros(len(batch), 3, dtype=torch.float64)
    sizes = [len(words) for words in batch.words]
    for row, both in enumerate(zip(guesses.split(sizes), batch.targets.split(sizes), strict=True)):
        labelled = both[1] != UNLABELLED
        predicted, true = (
            find_entities([class_names[label] for label in labels[labelled].tolist()]) for labels in both
        )
        counts[row] = torch.tensor([len(predicted & true), len(predicted), len(true)])
    return counts


def _hits_of_texts(guesses: Tensor, batch: WordBatch) -> Tensor:
    """Return how many labelled words of each text are right, and how many there are: float64 (B, 2)."""
    labelled = batch.targets != UNLABELLED
    words = torch.stack([(guesses == batch.targets) & labelled, labelled], dim=1).cpu().double()
    return torch.stack([part.sum(dim=0) for part in words.split([len(words) for words in batch.words])])


def entity_scores(counts: Tensor) -> dict[str, float]:
    """Return ``entity_f1``, ``entity_precision`` and ``entity_recall`` of :func:`count_entities`'s three counts."""
    right, predicted, true = counts.tolist()
    return {
        "entity_f1": 2 * right / max(predicted + true, 1),
        "entity_precision": right / max(predicted, 1),
        "entity_recall": right / max(true, 1),
    }


def find_entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of a text as conlleval finds them (Tjong Kim Sang and De Meulder, CoNLL 2003).

    A word goes on with an entity when its label begins with ``I-`` or ``E-``, that of the word before with ``B-`` or
    ``I-``, and both are of one kind. Any other word whose label is not ``O`` begins an entity.

    Args:
        labels: one a word.

    Returns:
        (kind, first word, word after the last) of each.
    """
    found, start, before, kind = set(), 0, "O", ""
    for position, label in enumerate((*labels, "O")):
        letter, _, own_kind = label.partition("-")
        letter = _SAME_PREFIX.get(letter, letter)
        if not (letter in ("I", "E") and before in ("B", "I") and own_kind == kind):
            if before != "O":
                found.add((kind, start, position))
            start = position
        before, kind = letter, own_kind
    return found
