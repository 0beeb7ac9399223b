"""What every task has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ModelFacts
from kdcli.base.reads import LOGITS, VOCABULARY, Reads
from kdcli.base.tasks import TASKS, TaskFacts, kind_of
from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, ImageData, TextData, open_data, open_texts
from kdcli.data.images.decode import Range
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.tasks.answers import Answers, Choice
from kdcli.tasks.meters import Meter
from kdcli.tasks.reports import Layout, Panel, Report

Cut = Callable[[Any], Any]
"""From a split's samples to those that both models can take."""
AnyData = ImageData | TextData
DEFAULT_LOSS: Mapping[str, float] = MappingProxyType({})
"""The ``terms`` of a task's default loss."""


class Task(ABC):
    """What a student is trained to do: whatever depends on it, from opening the data to what is said of a student.

    Args:
        class_names: of the student's head, in order; empty where it has none.

    Attributes:
        name: of its own; :meth:`row` says what its data and models are.
        facts: of another package's task, its row; None for one that is like a task of kdcli's.
        monitor: the metric that the best student is chosen by; higher is better; see :func:`rank_students`.
        num_pictures: how many validation samples a run draws.
        labels_are_independent: whether each class of a sample is true or not by itself, so that probabilities are
            sigmoids of single logits, and no softmax of all.
        takes_class_weights: whether its loss on the labels reads ``class_weights``.
        class_weights: how much a label of each class counts there, float32 (C,), none below 1; None for all alike. It
            is then a mean with these weights, and :meth:`count_labels` counts them.
        reports_last: whether a run also reports its last student's metrics, beside the best one's.
    """

    name: str
    reports_last: ClassVar[bool] = False
    facts: ClassVar[TaskFacts | None] = None
    monitor: str
    num_pictures: ClassVar[int] = 6
    takes_class_weights: ClassVar[bool] = False
    labels_are_independent: ClassVar[bool] = False
    class_weights: Tensor | None = None

    def __init__(self, class_names: Sequence[str] = ()) -> None:
        self.class_names = tuple(class_names)

    @classmethod
    def row(cls) -> TaskFacts:
        """Return what is known of it: its own ``facts``, or those of the task of kdcli's that it is or is like."""
        return TASKS[kind_of(cls)] if cls.facts is None else cls.facts

    @classmethod
    @abstractmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return the splits of the data that ``config`` names, with targets as the task reads them.

        Args:
            config: name, splits and labels.
            seed: of the run, cuts what is not cut by the data themselves.
            evaluation: of a task without labels, the data that its features are measured on; ``none`` for none, and
                None for those of ``config``.

        Raises:
            UserError: there are no such data, or they don't suit the task.
        """

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Task:
        """Return the task for ``data``; ``reference`` is of a batch to the teacher's embeddings."""
        return cls(data.class_names)

    @classmethod
    def with_usual(cls, config: RunConfig, data: DataFacts) -> RunConfig:
        """Return the config with what is usual for such data in place of general defaults, where it says nothing else.

        What it changes it tells in :meth:`decisions`.
        """
        return config

    @classmethod
    def canvas_of(cls, models: Sequence[Model]) -> Sequence[Model]:
        """Return those of the models that a sample is made ready for: of images, the largest of their inputs.

        Args:
            models: teacher, where there is one, and student.
        """
        return models

    @abstractmethod
    def supervised_loss(
        self, logits: Any, targets: Any, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Return the loss on the labels, a scalar averaged over what is labelled.

        Several processes each call it with samples of their own: it is their sum over ``max(count_labels(targets),
        1)``.

        Args:
            logits: the head that :meth:`reads` names, as the model gives it.
            targets: as the batch has them.
            label_smoothing: share of the target that is spread over all classes, where there are classes.
            terms: out of the row's ``losses``, with a weight each: the loss is their sum. Empty for the default.
        """

    def count_labels(self, targets: Any) -> Tensor | int:
        """Return how many labels :meth:`supervised_loss` is an average over, a scalar; by default one a sample."""
        return len(targets)

    @abstractmethod
    def meter(self, team: Team) -> Meter:
        """Return a new meter of the metrics, ``monitor`` and ``loss`` among them, over the samples of all ``team``."""

    def reads(self, model: ModelFacts) -> Reads:
        """Return the head that loss and metrics are about."""
        return Reads(heads=(VOCABULARY if VOCABULARY in model.heads else LOGITS,))

    def predict(self, model: Model, batch: AnyBatch, *, into_teacher: Callable[[Tensor], Tensor] | None = None) -> Any:
        """Return what the metrics are about: what the meter's ``update`` takes.

        Args:
            model: student or teacher, on the batch's device.
            batch: at least one sample.
            into_teacher: maps the student's pooled features (B, d) into the space of the teacher's; None where nothing
                does.
        """
        reads = self.reads(model.facts)
        return model(model.prepare(batch), reads).heads[reads.heads[0]]

    def evidence(self, model: Model, batch: AnyBatch, outputs: Any) -> Any:
        """Return what shows whether a model knows more than guesses would: by default what it predicts.

        Args:
            model: as :meth:`predict` takes it.
            batch: likewise.
            outputs: what :meth:`predict` returned of them, in the data's order of classes.
        """
        return outputs

    def in_order(self, outputs: Any, columns: Sequence[int]) -> Any:
        """Return what :meth:`predict` returned of a model, in the data's order of classes.

        Args:
            outputs: of the model.
            columns: the model's class of each of the data's; nothing where all are the same.
        """
        if not columns or not isinstance(outputs, Tensor):
            return outputs
        return outputs.index_select(1, torch.tensor(columns, device=outputs.device))

    @classmethod
    def open_classes(cls, config: DataConfig, *, seed: int) -> AnyData:
        """Return the data as :meth:`open`, where classes are all that can be meant by their labels."""
        return cls.open(config, seed=seed)

    @property
    def layout(self) -> Layout:
        """How a finished model's :meth:`report` is shown.

        Raises:
            UserError: there is none for this task.
        """
        raise UserError(f"The task {self.name} has no report.", "result.json of a run has its metrics.")

    def report(self) -> Report:
        """Return a new report on a finished model; only for a task with a :attr:`layout`."""
        raise NotImplementedError

    def cut_together(self, source: Any, models: Sequence[Model], notes: list[str]) -> Any:
        """Return a split's labelled samples as all of ``models`` can take them, so that they are compared on the same.

        Args:
            source: the split.
            models: that are measured.
            notes: gets a sentence on whatever is not as it was.
        """
        return source

    @property
    def has_pictures(self) -> bool:
        """Whether it draws samples: it has a :meth:`pictures` of its own."""
        return type(self).pictures is not Task.pictures

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return the pictures of every sample, side by side: input, target, and what each model makes of it.

        Args:
            batch: on the CPU, as the first model sees it.
            outputs: of each model, by its role, what :meth:`predict` returned, on the CPU and in the data's order of
                classes.

        Returns:
            For each sample as many pictures. Those with the ``role`` of the student are also kept after each
            validation, beside what stands before them, in ``samples_over_time.png``.
        """
        raise NotImplementedError

    @classmethod
    def facts_of(cls, model: Model, config: DataConfig | None) -> DataFacts:
        """Return the facts of no data at all, with a finished model's own classes; those without names are numbers.

        Args:
            model: whose answers are to be told.
            config: of the data that it was trained on; None where that is not known.
        """
        names = model.facts.label_names or tuple(map(str, range(model.facts.num_classes)))
        return DataFacts.of_labels(() if cls.row().is_label_free else names, task=cls.row().name)

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what asks finished models about a user's own samples.

        Args:
            samples: paths of images, or texts.
            choice: how much is told.
            deep_range: what is black and white in deep grayscale images; by default each image's own.

        Raises:
            UserError: there is nothing for this task.
        """
        raise UserError(
            f"kdcli predict can't ask models of the task {self.name}.",
            "Load the model by its own library; the card of a run shows how.",
        )

    def cutter(self, config: RunConfig, teacher: Model | None, student: Model) -> Cut | None:
        """Return what cuts a split's samples to what both models can take; None where they take them as they are."""
        return None

    def check(self, teacher: Model | None, student: Model, data: Any) -> None:
        """Refuse models that can't be brought together for this task.

        Raises:
            UserError: it says why.
        """
        return

    def check_split(self, source: Any, split: str) -> None:
        """Refuse a split on which nothing can be measured, as far as that is known without reading all of it.

        Args:
            source: the split.
            split: what it is called.

        Raises:
            UserError: nothing of it counts.
        """
        return

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Return what the plan says of the task's own choices; ``cut`` is what :meth:`cutter` returned."""
        return ()


class ImageTask(Task):
    """A task over labelled images."""

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images with a class each, for this task."""
        data = open_data(config, seed=seed)
        return replace(data, facts=replace(data.facts, task=cls.row().name))


class TextTask(Task):
    """A task over texts; how they are labelled follows from its :meth:`row`."""

    pictures = Task.pictures  # of texts there are none, whatever other task a subclass is like

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return texts, or pairs of them."""
        return open_texts(config, task=cls.row().name, seed=seed)

    @classmethod
    def open_classes(cls, config: DataConfig, *, seed: int) -> AnyData:
        """Return texts whose labels are classes where they could be numbers as well."""
        return open_texts(config, task=cls.row().name, seed=seed, unclear_are_classes=True)


def rank_students(metrics: Mapping[str, float], monitor: str) -> tuple[bool, bool, float, float]:
    """Return what orders students by their metrics: the greater is the better one, whatever the task.

    A loss that is not finite is worst. A monitored metric that is not finite, as the correlation of a constant
    prediction, ranks below every one that is. Ties go to the lower loss.

    Args:
        metrics: as a :class:`~kdcli.tasks.meters.Meter` computes them; without a ``loss`` it counts as 0.
        monitor: the metric that decides.
    """
    value, loss = metrics[monitor], metrics.get("loss", 0.0)
    has_loss, has_value = math.isfinite(loss), math.isfinite(value)
    return has_loss, has_value, value if has_value else 0.0, -loss if has_loss else 0.0
