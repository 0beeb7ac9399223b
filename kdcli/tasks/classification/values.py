"""Labels of texts: one class, several, or a number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, LabelKind
from kdcli.config.data import DataConfig
from kdcli.data import AnyBatch, Batch
from kdcli.data.classes import listing
from kdcli.data.images.decode import Range
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.statistics.intervals import metric_of
from kdcli.tasks.answers import Answers, Choice, LabelsAnswers, NumberAnswers
from kdcli.tasks.base import DEFAULT_LOSS, ImageTask, Task
from kdcli.tasks.classification.labels_report import LabelsReport, labels_layout
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.classification.pairs import PairedTexts
from kdcli.tasks.meters import Meter, SampleSums, TeamMetrics, shares
from kdcli.tasks.reports import Layout, Panel, Report

if TYPE_CHECKING:
    from torchmetrics import Metric


class TextClassification(PairedTexts, ImageClassification):
    """The task ``text-classification`` with one class a text: its loss and metrics are those of images."""

    name = "text-classification"
    unit = "text"

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Task:
        """Return the task for labels of the kind that ``data`` have.

        Raises:
            UserError: another package's subclass is asked for labels that have a class of their own here.
        """
        kinds: dict[str, type[Task]] = {"classes": SeveralLabels, "number": TextRegression}
        if data.label_kind not in kinds:
            return cls(data.class_names)
        chosen = kinds[data.label_kind]
        if cls is not TextClassification:
            raise UserError(
                f"The task {cls.__name__} is for one class a text, and the labels of {data.name} are"
                f" {data.labels.needed}.",
                f"Name other data, or a task like {cls.row().name} whose class is a {chosen.__name__}.",
            )
        return chosen.from_facts(data, reference=reference)

    @classmethod
    def facts_of(cls, model: Model, config: DataConfig | None) -> DataFacts:
        """Return the facts of no data, with the kind of labels that the model's own config says."""
        facts = super().facts_of(model, config)
        kind: LabelKind = model.label_kind
        return replace(facts, label_kind=kind, label_scale=(0.0, 1.0) if kind == "number" else None)


class _ByValues(Task):
    """What labels that are rows of values have in common: the loss is a mean of elements, NaN is no label."""

    metrics: ClassVar[tuple[str, ...]]
    """The names of the metrics, in the order in which they are shown."""
    answers_class: ClassVar[type[Answers]]
    """What tells a finished model's answers."""

    def supervised_loss(
        self, logits: Tensor, targets: Tensor, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Return the loss, averaged over the labelled samples and the classes.

        Args:
            logits: (B, C).
            targets: float (B, C), NaN in the rows without a label.
            label_smoothing: see the subclass.
            terms: none: there is one loss.
        """
        labelled = ~targets.isnan()
        losses = self.losses(logits.float(), targets.nan_to_num(), label_smoothing)
        return (losses * labelled).sum() / labelled.sum().clamp(min=1)

    def count_labels(self, targets: Tensor) -> Tensor:
        """Return how many values are labels."""
        return (~targets.isnan()).sum()

    def meter(self, team: Team) -> Meter:
        """Return the meter of the task's ``metrics`` and of ``loss``."""
        return _ValuesMeter(self, team)

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what tells of every sample its labels, or its number."""
        return self.answers_class(self, samples, choice, deep_range=deep_range)

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the loss of every element (B, C)."""

    @abstractmethod
    def unsummed(self) -> dict[str, Metric]:
        """Return new metrics by name, for those that are not made of the sums."""

    @abstractmethod
    def guesses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`unsummed` metrics take, from (B, C) of both."""

    @abstractmethod
    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return what each sample adds to the sums of metrics, from float64 (B, C) of both."""


class _ValuesMeter:
    """The metrics of labels that are rows of values.

    Args:
        task: what they are.
        team: of the processes that share the samples.
    """

    def __init__(self, task: _ByValues, team: Team) -> None:
        self._task, self._team = task, team
        self._metrics = TeamMetrics(task.unsummed(), team)
        none = torch.zeros(0, len(task.class_names), dtype=torch.float64)
        self._sums = {name: values.sum(dim=0) for name, values in task.sums(none, none).items()}
        self._totals = torch.zeros(2, dtype=torch.float64)  # of the loss, of the elements

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add outputs (B, C)."""
        logits, targets = outputs.float(), batch.targets
        losses = self._task.losses(logits, targets, 0.0)
        self._totals += torch.stack([losses.cpu().double().sum(), torch.tensor(losses.numel())])
        self._metrics.update(*self._task.guesses(logits, targets))
        of_samples = self._task.sums(logits.cpu().double(), targets.cpu().double())
        for name, values in of_samples.items():
            self._sums[name] += values.sum(dim=0)
        return of_samples

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: there are no samples.
        """
        loss, count = self._team.sum(self._totals).tolist()
        if count == 0:
            noun = self._task.row().modality
            raise UserError(f"There are no {noun}s to evaluate on, or none can be read.", "Check that split.")
        found = {
            name: float(metric_of(name, self._team.sum(values).cpu().numpy())) for name, values in self._sums.items()
        }
        found |= self._metrics.compute()
        return {name: found[name] for name in self._task.metrics} | {"loss": loss / count}


class _Several(_ByValues):
    """Any number of classes a sample: binary cross-entropy for each class.

    Label smoothing moves the targets towards a half.
    """

    labels_are_independent = True
    monitor = "micro_f1"
    metrics = ("micro_f1", "macro_f1", "mean_average_precision")
    answers_class = LabelsAnswers

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the binary cross-entropy of every element (B, C)."""
        smooth = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")

    def unsummed(self) -> dict[str, Metric]:
        """Return the means over classes."""
        from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

        num_labels = len(self.class_names)
        return {
            "macro_f1": MultilabelF1Score(num_labels, average="macro"),
            "mean_average_precision": MultilabelAveragePrecision(num_labels, average="macro"),
        }

    def guesses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities of the classes, and which are true, int64."""
        return logits.sigmoid(), targets.long()

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sums of ``micro_f1``."""
        guesses = (logits.float().sigmoid() > 0.5).double()  # as torchmetrics decides
        hits = (guesses * targets).sum(dim=1)
        return {"micro_f1": torch.stack([2 * hits, guesses.sum(dim=1) + targets.sum(dim=1)], dim=1)}

    @property
    def layout(self) -> Layout:
        """F1 at a threshold of a half, average precision and binary cross-entropy."""
        return labels_layout(self.row().modality)

    def report(self) -> Report:
        """Return a report of labels."""
        return LabelsReport(self.class_names)


class SeveralLabels(_Several, PairedTexts):
    """The task ``text-classification`` with any number of classes a text."""

    name = "text-classification"


class ImageLabels(_Several, ImageTask):
    """The task ``image-classification`` with any number of classes an image."""

    name = "image-classification"

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return of each image itself, with its labels and those that each model finds."""
        assert isinstance(batch, Batch)
        titles = [f"is {self._names(row > 0.5)}" for row in batch.targets]
        for role, logits in outputs.items():
            for place, row in enumerate(logits.float().sigmoid() > 0.5):
                titles[place] += f"\n{role}: {self._names(row)}"
        images = batch.colours.permute(0, 2, 3, 1).numpy()
        return [[Panel(title, image)] for title, image in zip(titles, images, strict=True)]

    def _names(self, chosen: Tensor) -> str:
        found = [name for name, is_there in zip(self.class_names, chosen.tolist(), strict=True) if is_there]
        return listing(found, limit=3) or "nothing"


class TextRegression(_ByValues, PairedTexts):
    """The task ``text-classification`` with a number a text: squared error in units of the training numbers' variance.

    Args:
        class_names: of the number.
        deviation: standard deviation of the training numbers.
        mean: their mean.
    """

    name = "text-classification"
    monitor = "pearson"
    metrics = ("pearson", "spearman", "mean_absolute_error")
    answers_class = NumberAnswers

    def __init__(self, class_names: Sequence[str], *, deviation: float, mean: float = 0.0) -> None:
        super().__init__(class_names)
        self.deviation, self.mean = deviation, mean

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``, whose labels are numbers."""
        assert data.label_scale is not None
        mean, deviation = data.label_scale
        return cls(data.class_names, deviation=deviation, mean=mean)

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the squared errors (B, 1) in units of the variance."""
        return ((logits - targets) / self.deviation).square()

    def unsummed(self) -> dict[str, Metric]:
        """Return the rank correlation."""
        from torchmetrics.regression import SpearmanCorrCoef

        return {"spearman": SpearmanCorrCoef()}

    def guesses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return both numbers (B,)."""
        return logits[:, 0], targets[:, 0]

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sums of ``pearson`` and ``mean_absolute_error``."""
        # The correlation does not depend on the unit; in this one the squares lose no digits.
        x, y = ((values[:, 0] - self.mean) / self.deviation for values in (logits, targets))
        return {
            "pearson": torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=1),
            "mean_absolute_error": shares((logits - targets)[:, 0].abs()),
        }
