"""What is known of each task without torch: one row a task. All else about a task is in its package of :mod:`kdcli.tasks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Modality = Literal["image", "text"]
"""What a sample is."""

Target = Literal["label", "embedding", "words", "tokens"]
"""What a student is trained on: the labels of its samples, the teacher's embeddings of them, a label for each word, or the
text's own tokens."""

HeadKind = Literal["none", "sequence", "token", "masked", "causal"]
"""What a model has on top: nothing, a classifier of whole samples or of tokens, or a language model's head."""


@dataclass(frozen=True)
class TaskFacts:
    """A task as configs, plans and model cards see it.

    Attributes:
        name: as in configs.
        modality: what a sample is.
        target: what the student is trained on.
        head: what the student has on top.
        pipeline_tag: the hub's name of the task.
        auto_class: the class of transformers that loads a student of text; empty where another library does.
    """

    name: str
    modality: Modality
    target: Target
    head: HeadKind
    pipeline_tag: str
    auto_class: str = ""

    @property
    def reads_images(self) -> bool:
        """Whether its samples are images."""
        return self.modality == "image"

    @property
    def is_label_free(self) -> bool:
        """Whether it reads no labels: the student reproduces the teacher's embedding space."""
        return self.target == "embedding"

    @property
    def is_over_tokens(self) -> bool:
        """Whether features, logits and labels are of tokens or words, and not of whole texts."""
        return self.target in ("words", "tokens")

    @property
    def is_language_model(self) -> bool:
        """Whether its labels are the text's own tokens; teacher and student then have one tokenizer."""
        return self.target == "tokens"


_ROWS = (
    TaskFacts("image-classification", "image", "label", "sequence", "image-classification"),
    TaskFacts("image-embedding", "image", "embedding", "none", "image-feature-extraction"),
    TaskFacts(
        "text-classification", "text", "label", "sequence", "text-classification", "AutoModelForSequenceClassification"
    ),
    TaskFacts("sentence-embedding", "text", "embedding", "none", "sentence-similarity"),
    TaskFacts(
        "token-classification", "text", "words", "token", "token-classification", "AutoModelForTokenClassification"
    ),
    TaskFacts("masked-lm", "text", "tokens", "masked", "fill-mask", "AutoModelForMaskedLM"),
    TaskFacts("causal-lm", "text", "tokens", "causal", "text-generation", "AutoModelForCausalLM"),
)
TASKS: Mapping[str, TaskFacts] = {row.name: row for row in _ROWS}
"""By name, in the order in which they are listed. Another package's task is like one of them."""
DEFAULT_TASK = "image-classification"


def task_of(modality: Modality, head: HeadKind) -> TaskFacts:
    """Return the task that a model with such a head is for by itself.

    Raises:
        KeyError: there is none.
    """
    return next(row for row in _ROWS if (row.modality, row.head) == (modality, head))
