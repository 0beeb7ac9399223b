"""What every task has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from kdcli.data import AnyBatch
from kdcli.facts import LANGUAGE_MODELING, DataFacts
from kdcli.tasks.image_classification import ImageClassification
from kdcli.tasks.image_embedding import ImageEmbedding
from kdcli.tasks.language_modeling import LanguageModeling
from kdcli.tasks.sentence_embedding import SentenceEmbedding
from kdcli.tasks.text_classification import SeveralLabels, TextClassification, TextRegression


class Task(Protocol):
    """What a student is trained to do.

    Attributes:
        name: as in the config.
        monitor: the metric that the best student is chosen by; higher is better, ties go to the lower ``loss``.
        class_names: of the student's head, in order; empty where it has none.
    """

    name: str
    monitor: str
    class_names: tuple[str, ...]

    def supervised_loss(self, logits: Any, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Return the loss on the labels, a scalar averaged over what is labelled, from what ``predict`` returns."""

    def evaluate(
        self,
        predict: Callable[[AnyBatch], Any],
        batches: Iterable[AnyBatch],
        device: torch.device,
        *,
        add_up: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> dict[str, float]:
        """Return the metrics, ``monitor`` and ``loss`` among them, of ``predict`` over ``batches``.

        Args:
            predict: a batch to the outputs that the task looks at: logits, embeddings, logits over a vocabulary.
            batches: each sample once, over all processes.
            device: where to compute.
            add_up: sums a float64 tensor over all processes.

        Raises:
            UserError: when there is nothing to evaluate on.
        """


def build_task(data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Task:
    """Return the task that ``data`` are for.

    Args:
        data: what is known about them.
        reference: a batch to the teacher's embeddings, for a task that compares with them.
    """
    if data.task == "sentence-embedding":
        return SentenceEmbedding(reference)
    if data.task in LANGUAGE_MODELING:
        return LanguageModeling(data.task)
    if data.task == "image-embedding":
        return ImageEmbedding(reference)
    if data.task == "image-classification":
        return ImageClassification(data.class_names)
    match data.label_kind:
        case "classes":
            return SeveralLabels(data.class_names)
        case "number":
            assert data.label_scale is not None
            return TextRegression(data.class_names, deviation=data.label_scale[1])
    return TextClassification(data.class_names)
