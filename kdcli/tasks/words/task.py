"""A label for each word of a text: named entities, parts of speech."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data import AnyBatch, WordBatch
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.sample_sums import Note, ignore_sums

_ENTITY = re.compile(r"[BIESLU]-.+")
_SAME_PREFIX = {"L": "E", "U": "S"}
"""The last word and the only word of an entity, in BILOU and in IOBES."""


class TokenClassification(ImageClassification):
    """The task ``token-classification``: the loss on a word is that on an image.

    Where the labels tell of entities (``B-PER``, ``I-PER``, ``O``; also as IOB1, IOBES and BILOU write them) the best
    student is chosen by the F1 of whole entities, else by accuracy.

    Args:
        class_names: in label order.
    """

    name = "token-classification"

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self._has_entities = tell_entities(class_names)
        self.monitor = "entity_f1" if self._has_entities else "accuracy"

    @torch.inference_mode()
    def evaluate(
        self,
        predict: Callable[[AnyBatch], Tensor],
        batches: Iterable[AnyBatch],
        device: torch.device,
        *,
        add_up: Callable[[Tensor], Tensor] = lambda values: values,
        note: Note = ignore_sums,
    ) -> dict[str, float]:
        """Return how well the labelled words are classified.

        Args:
            predict: a batch to logits (W, C).
            batches: each text once.
            device: where to compute.
            add_up: sums a float64 tensor over all processes; torchmetrics does so by itself for its own.
            note: told of every text's words and entities.

        Returns:
            ``accuracy``; ``macro_f1``, the mean of the F1 of every class that is there or predicted; ``loss``, the mean
            cross-entropy; and of entities ``entity_f1``, ``entity_precision`` and ``entity_recall`` as conlleval
            defines them: an entity is right when its kind and all its words are.

        Raises:
            UserError: when there is nothing to evaluate on.
        """
        num_classes = len(self.class_names)
        meters = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELLED).to(device),
            "macro_f1": MulticlassF1Score(num_classes, average="macro", ignore_index=UNLABELLED).to(device),
        }
        totals = torch.zeros(2, dtype=torch.float64)  # of the loss, of the words
        entities = torch.zeros(3, dtype=torch.float64)  # right, predicted, true
        for batch in batches:
            assert isinstance(batch, WordBatch)
            batch = batch.to(device)
            logits = predict(batch).float()
            loss = F.cross_entropy(logits, batch.targets, ignore_index=UNLABELLED, reduction="sum")
            totals += torch.stack([loss.double(), (batch.targets != UNLABELLED).sum().double()]).cpu()
            for meter in meters.values():
                meter.update(logits, batch.targets)
            guesses = logits.argmax(dim=1)
            sums = {"accuracy": _hits_of_texts(guesses, batch)}
            if self._has_entities:
                counts = count_entities(guesses, batch, self.class_names)
                entities += counts.sum(dim=0)
                right, predicted, true = counts.T
                sums["entity_f1"] = torch.stack([2 * right, predicted + true], dim=1)
                sums["entity_precision"] = torch.stack([right, predicted], dim=1)
                sums["entity_recall"] = torch.stack([right, true], dim=1)
            note(batch, sums)
        loss_sum, count = add_up(totals).tolist()
        if count == 0:
            raise UserError("There are no labelled words to evaluate on.", "Check that split.")
        metrics = {name: float(meter.compute()) for name, meter in meters.items()} | {"loss": loss_sum / count}
        if self._has_entities:
            metrics |= entity_scores(add_up(entities))
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
    words = torch.stack([(guesses == batch.targets) & labelled, labelled], dim=1).double().cpu()
    return torch.stack([part.sum(dim=0) for part in words.split([len(words) for words in batch.words])])


def entity_scores(counts: Tensor) -> dict[str, float]:
    """Return ``entity_f1``, ``entity_precision`` and ``entity_recall`` of what :func:`count_entities` counted, (3,) in all."""
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
