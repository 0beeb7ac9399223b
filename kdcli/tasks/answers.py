"""What a finished model says of a user's own samples: the part of ``kdcli predict`` that depends on the task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.data import AnyBatch, Source, TextSource
from kdcli.data.images.decode import Range
from kdcli.data.own import OwnImages
from kdcli.models.base import Model

if TYPE_CHECKING:
    from kdcli.tasks.base import Task
    from kdcli.tasks.reports import Panel

TOP = 5
"""Classes that are told of a sample."""


@dataclass(frozen=True)
class Choice:
    """How much of an answer is told.

    Attributes:
        top: at most so many classes or boxes; None for the task's own number.
        score: boxes with at least this score; None for the task's own.
    """

    top: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Answer:
    """What one model says of one sample.

    Attributes:
        records: as json and csv files have them: each a mapping of plain values, all with the same keys.
        lines: the same for the terminal.
        raw: what pictures and files are made of; None where there are none.
    """

    records: list[dict[str, Any]]
    lines: list[str]
    raw: Any = None

    def __add__(self, other: Answer) -> Answer:
        """Return the answer on a sample of which this one and the other are of parts."""
        return Answer(self.records + other.records, self.lines + other.lines, self.raw)


@dataclass(frozen=True)
class Asked:
    """A model that is asked.

    Attributes:
        model: the model.
        class_names: of its answers, in their order; empty where it has none.
        facts: of the data that it was trained on, as far as they are known.
        into_teacher: maps pooled features (B, d) into the teacher's space; None where nothing does.
        temperature: by which logits are divided before probabilities are made of them.
    """

    model: Model
    class_names: tuple[str, ...]
    facts: DataFacts
    into_teacher: Callable[[Tensor], Tensor] | None = field(default=None)
    temperature: float = 1.0


class Answers(ABC):
    """From samples to answers.

    Args:
        task: what the models are for.
        samples: paths of images, or texts.
        choice: how much is told.
        deep_range: what is black and white in deep grayscale images; by default each image's own.

    Attributes:
        has_pictures: whether :meth:`panels` draws answers.
        has_vectors: whether the records have but one list of numbers.
        one_space: whether models that are asked together need the same classes.
        takes_top: whether ``choice.top`` says something.
        takes_score: whether ``choice.score`` does.
    """

    has_pictures: ClassVar[bool] = False
    has_vectors: ClassVar[bool] = False
    one_space: ClassVar[bool] = False
    takes_top: ClassVar[bool] = False
    takes_score: ClassVar[bool] = False

    def __init__(self, task: Task, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> None:
        self.task, self.samples, self.choice, self.deep_range = task, samples, choice, deep_range
        if choice.top is not None and not self.takes_top:
            raise UserError(f"--top says nothing for the task {task.name}.", "Leave it out.")
        if choice.score is not None and not self.takes_score:
            raise UserError(f"--score is for boxes, and the task {task.name} has none.", "Leave it out.")
        if choice.score is not None and not 0 <= choice.score <= 1:
            raise UserError(f"--score can't be {choice.score}.", "Give a number from 0 to 1.")

    def source(self, models: Sequence[Model]) -> Source:
        """Return the samples as all of ``models`` take them; a sample's id is its place in ``samples``."""
        if self.task.row().reads_images:
            return OwnImages(self.samples, deep_range=self.deep_range)
        return TextSource(self.samples, [UNLABELLED] * len(self.samples), split="text")

    def ask(self, asked: Asked, batch: AnyBatch) -> Any:
        """Return what a model predicts of a batch, as the task's ``predict``."""
        return self.task.predict(asked.model, batch, into_teacher=asked.into_teacher)

    @abstractmethod
    def of(self, asked: Asked, outputs: Any, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the answer on every sample of a batch.

        Args:
            asked: the model.
            outputs: what :meth:`ask` returned, on the CPU and in the order of ``asked.class_names``.
            batch: on the CPU.
        """

    def notes(self, asked: Asked) -> list[str]:
        """Return what there is to say about the answers of a model, a sentence each."""
        return []

    def panels(self, image: NDArray[np.uint8], answers: Mapping[str, Answer]) -> list[Panel]:
        """Return the pictures of one image: itself, and the answer of every model by its role.

        Args:
            image: uint8 (H, W, 3), upright.
            answers: by role.
        """
        raise NotImplementedError

    def files(self, answer: Answer) -> Mapping[str, NDArray[Any]]:
        """Return what is written of an answer beside its picture, by the end of the file's name.

        An array for ``.npy``, or for ``.png`` uint8 or uint16 (H, W).
        """
        return {}

    def file_notes(self) -> list[str]:
        """Return what is in the files, a sentence each."""
        return []


class ClassAnswers(Answers):
    """One class a sample: those with the highest probabilities."""

    takes_top = True

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the classes of every row of logits (B, C)."""
        probabilities = (outputs.double() / asked.temperature).softmax(dim=1)
        # the first of equals is the one that argmax finds, as in evaluation
        order = outputs.argsort(dim=1, descending=True, stable=True)[:, : self.choice.top or TOP]
        for row, best in zip(probabilities.tolist(), order.tolist(), strict=True):
            records = [{"label": asked.class_names[label], "probability": row[label]} for label in best]
            yield Answer(records, [f"{each['label']} {each['probability']:.1%}" for each in records])

    def notes(self, asked: Asked) -> list[str]:
        """Say where probabilities are calibrated."""
        if asked.temperature == 1:
            return []
        return [f"Probabilities of the student are calibrated: temperature {asked.temperature:.4g} (kdcli calibrate)."]


class LabelsAnswers(Answers):
    """Any number of labels a sample: a probability each, of which those above a half are predicted.

    All of these are told, and others up to the usual number.
    """

    takes_top = True

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the labels of every row of logits (B, C)."""
        order = outputs.argsort(dim=1, descending=True, stable=True)
        for row, ranked in zip(outputs.sigmoid().tolist(), order.tolist(), strict=True):
            best = ranked[: self.choice.top or max(TOP, sum(value > 0.5 for value in row))]
            records = [
                {"label": asked.class_names[label], "probability": row[label], "predicted": row[label] > 0.5}
                for label in best
            ]
            told = ("no", "yes")
            yield Answer(
                records, [f"{each['label']} {each['probability']:.1%} {told[each['predicted']]}" for each in records]
            )


class NumberAnswers(Answers):
    """A number a sample."""

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the numbers (B, 1)."""
        for value in outputs[:, 0].tolist():
            yield Answer([{"value": value}], [f"{value:.4g}"])


class VectorAnswers(Answers):
    """An embedding a sample, of length 1: embeddings are compared by their cosines."""

    has_vectors = True

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the embeddings (B, d)."""
        rows = outputs.double()
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        for row in rows.float().tolist():
            begin = ", ".join(f"{value:.3f}" for value in row[:4])
            yield Answer([{"embedding": row}], [f"{len(row)} numbers: {begin}, …"])
