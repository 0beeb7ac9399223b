"""From the name of a task to the task."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kdcli.base.facts import DataFacts
from kdcli.base.tasks import TASKS
from kdcli.data import AnyBatch
from kdcli.tasks.base import Task
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.classification.values import SeveralLabels, TextClassification, TextRegression
from kdcli.tasks.embedding.images import ImageEmbedding
from kdcli.tasks.embedding.texts import SentenceEmbedding
from kdcli.tasks.language.task import LanguageModeling
from kdcli.tasks.words.task import TokenClassification


def build_task(data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Task:
    """Return the task that ``data`` are for.

    Args:
        data: what is known about them.
        reference: a batch to the teacher's embeddings, for a task that compares with them.
    """
    return _kind_of(data).from_facts(data, reference=reference)


def _kind_of(data: DataFacts) -> type[Task]:
    match data.task:
        case "sentence-embedding":
            return SentenceEmbedding
        case "image-embedding":
            return ImageEmbedding
        case "image-classification":
            return ImageClassification
        case "token-classification":
            return TokenClassification
        case task if TASKS[task].is_language_model:
            return LanguageModeling
    match data.label_kind:
        case "classes":
            return SeveralLabels
        case "number":
            return TextRegression
    return TextClassification
