"""From the name of a task to the task."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from kdcli.base.facts import DataFacts
from kdcli.base.tasks import load_task
from kdcli.data import AnyBatch
from kdcli.tasks.base import Task

_CLASSES = {
    "image-classification": "classification.one_label:ImageClassification",
    "image-embedding": "embedding.images:ImageEmbedding",
    "semantic-segmentation": "dense.segmentation:SemanticSegmentation",
    "depth-estimation": "dense.depth:DepthEstimation",
    "object-detection": "detection.task:ObjectDetection",
    "image-translation": "translation.task:ImageTranslation",
    "image-generation": "generation.task:ImageGeneration",
    "text-classification": "classification.values:TextClassification",
    "sentence-embedding": "embedding.texts:SentenceEmbedding",
    "token-classification": "words.task:TokenClassification",
    "masked-lm": "language.task:MaskedLM",
    "causal-lm": "language.task:CausalLM",
}
"""Where each task's class is; only that of the run is imported."""


def task_class(name: str) -> type[Task]:
    """Return the class of a task, of kdcli or of another package.

    Raises:
        UserError: there is no such task.
    """
    if name not in _CLASSES:
        found: type[Task] = load_task(name)
        return found
    module, _, attribute = _CLASSES[name].partition(":")
    own: type[Task] = getattr(import_module(f"kdcli.tasks.{module}"), attribute)
    return own


def build_task(data: DataFacts, *, reference: Callable[[AnyBatch], Tensor], extension: str | None = None) -> Task:
    """Return the task that ``data`` are for.

    Args:
        data: what is known about them.
        reference: a batch to the teacher's embeddings, for a task that compares with them.
        extension: another package's task in its place.
    """
    return task_class(extension or data.task).from_facts(data, reference=reference)
