"""What is known of each task without torch: one row a task. All else is in its package of :mod:`kdcli.tasks`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr

Modality = Literal["image", "text"]
"""What a sample is."""

Target = Literal["label", "embedding", "words", "tokens", "pixels", "depth", "boxes", "image", "samples"]
"""What a student is trained on: the labels of its samples, the teacher's embeddings of them, a label for each word, the
text's own tokens, a label or a depth for each pixel, boxes around things, with a label each, another image,
or samples that it is to make more of."""

HeadKind = Literal["none", "sequence", "token", "masked", "causal", "dense", "depth", "boxes", "image"]
"""What a model has on top: nothing, a classifier of whole samples or of tokens, a language model's head, a head for
each position, of classes or of depth, a detector, or what makes an image."""


@dataclass(frozen=True)
class TaskFacts:
    """A task as configs, plans and model cards see it.

    Attributes:
        name: as in configs.
        modality: what a sample is.
        target: what the student is trained on.
        head: what the student has on top.
        pipeline_tag: the hub's name of the task.
        mixes: whether two samples can be mixed into one, with their targets: mixup and cutmix.
        losses: what its loss on the labels may be made of, by name; the first is the default. Empty where there is
            nothing to choose.
        smoothed_losses: those of ``losses`` that read ``label_smoothing``.
        demo: the name of data for it that need no download; empty where there are none.
    """

    name: str
    modality: Modality
    target: Target
    head: HeadKind
    pipeline_tag: str
    mixes: bool = False
    losses: tuple[str, ...] = ()
    smoothed_losses: tuple[str, ...] = ()
    demo: str = ""

    @property
    def words(self) -> str:
        """Its name in sentences: ``edge detection``."""
        return self.name.replace("-", " ").replace("_", " ")

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
    def is_dense(self) -> bool:
        """Whether its targets lie at places of the image, and move as its pixels do."""
        return self.target in ("pixels", "depth", "boxes", "image")

    @property
    def makes_images(self) -> bool:
        """Whether what its models predict are images."""
        return self.head == "image"

    @property
    def is_drawn(self) -> bool:
        """Whether a prediction is a picture, or something at places of one: how it comes about can be watched."""
        return self.is_dense or self.makes_images

    @property
    def is_language_model(self) -> bool:
        """Whether its labels are the text's own tokens; teacher and student then have one tokenizer."""
        return self.target == "tokens"


_ROWS = (
    TaskFacts(
        "image-classification", "image", "label", "sequence", "image-classification", mixes=True, demo="demo:digits"
    ),
    TaskFacts(
        "image-embedding", "image", "embedding", "none", "image-feature-extraction", mixes=True, demo="demo:digits"
    ),
    TaskFacts(
        "semantic-segmentation",
        "image",
        "pixels",
        "dense",
        "image-segmentation",
        losses=("cross_entropy", "dice", "focal"),
        smoothed_losses=("cross_entropy",),
        demo="demo:scenes",
    ),
    TaskFacts(
        "depth-estimation",
        "image",
        "depth",
        "depth",
        "depth-estimation",
        losses=("silog", "l1", "berhu", "scale_shift_invariant"),
        demo="demo:scenes",
    ),
    TaskFacts("object-detection", "image", "boxes", "boxes", "object-detection", demo="demo:scenes"),
    TaskFacts(
        "image-translation",
        "image",
        "image",
        "image",
        "image-to-image",
        losses=("l1", "l2", "perceptual"),
        demo="demo:scenes-edges",
    ),
    TaskFacts("image-generation", "image", "samples", "image", "unconditional-image-generation", demo="demo:digits"),
    TaskFacts("text-classification", "text", "label", "sequence", "text-classification"),
    TaskFacts("sentence-embedding", "text", "embedding", "none", "sentence-similarity", demo="demo:python_docs"),
    TaskFacts("token-classification", "text", "words", "token", "token-classification"),
    TaskFacts("masked-lm", "text", "tokens", "masked", "fill-mask", demo="demo:python_docs"),
    TaskFacts("causal-lm", "text", "tokens", "causal", "text-generation", demo="demo:python_docs"),
)

_TEACHERS_ROWS = (
    TaskFacts("edge-detection", "image", "pixels", "dense", "image-to-image"),
    TaskFacts("text-detection", "image", "pixels", "dense", "image-to-image"),
)
"""What only teachers are for: no student is trained to do it."""


class _Tasks(Mapping[str, TaskFacts]):
    """The rows by name, in the order in which they are listed.

    Found, but not listed, are another package's own tasks and those that only teachers are for.
    """

    _rows: Mapping[str, TaskFacts] = {row.name: row for row in _ROWS}
    _teachers: Mapping[str, TaskFacts] = {row.name: row for row in _TEACHERS_ROWS}

    def __getitem__(self, name: str) -> TaskFacts:
        if name in self._rows:
            return self._rows[name]
        if name in self._teachers:
            return self._teachers[name]
        if extensions.find("tasks", name, own=self._rows) is None:
            raise KeyError(name)
        facts = own_facts(load_task(name))
        if facts is None:
            raise KeyError(name)
        return facts

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


TASKS = _Tasks()
"""What is known of each task. Another package's task has facts of its own, or is like one of these."""
TEACHERS_TASKS = tuple(row.name for row in _TEACHERS_ROWS)
"""The names of those that only teachers are for."""
DEFAULT_TASK = "image-classification"


def task_of(modality: Modality, head: HeadKind) -> TaskFacts:
    """Return the task that a model with such a head is for by itself.

    Raises:
        KeyError: there is none.
    """
    return next(row for row in _ROWS if (row.modality, row.head) == (modality, head))


def load_task(name: str) -> Any:
    """Return another package's task, a class like :class:`kdcli.tasks.Task`.

    Either its attribute ``like`` is the task of kdcli whose data and models it has, or its attribute ``facts`` is a row
    of its own.

    Raises:
        UserError: there is no such extension, or it is no task.
    """
    if name in TEACHERS_TASKS:
        raise UserError(
            f"The task {name} is one that only teachers are for: no student is trained to do it.",
            f"Choose one of {', '.join(TASKS)}; a teacher of {TASKS[name].words} can help with it.",
        )
    entry = extensions.find("tasks", name, own=TASKS)
    if entry is None:
        nearest = did_you_mean(name, [*TASKS, *extensions.names("tasks")])
        raise UserError(
            f"There is no task {short_repr(name)} of another package. {nearest}".rstrip(),
            "Install the package that it comes from; 'kdcli extensions' lists what is installed.",
        )
    task = entry.load()
    facts = own_facts(task)
    is_own = facts is not None and facts.name == name
    if not isinstance(task, type) or not (is_own or getattr(task, "like", None) in TASKS):
        raise entry.unfit(
            f"a class whose attribute 'like' is one of {', '.join(TASKS)}, or whose attribute 'facts' is a"
            f" kdcli.base.tasks.TaskFacts named {name}"
        )
    return task


def find_task(name: str) -> tuple[str, str | None]:
    """Return the task that says what data and models are, and another package's in its place; None for kdcli's own.

    Raises:
        UserError: there is no such task.
    """
    if name in TASKS:
        return name, None
    task = load_task(name)
    return kind_of(task), name


def kind_of(task: Any) -> str:
    """Return the name of the row of ``TASKS`` that a task's class goes by, whatever its own name is.

    It is that of the row of its own, of the task that it is ``like``, or of kdcli's task itself.
    """
    facts = own_facts(task)
    if facts is not None:
        return facts.name
    name: str = getattr(task, "like", task.name)
    return name


def own_facts(task: Any) -> TaskFacts | None:
    """Return the row that another package's task has of its own; None for one that is like a task of kdcli's."""
    facts = getattr(task, "facts", None)
    return facts if isinstance(facts, TaskFacts) else None
