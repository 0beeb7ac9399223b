"""Labels of texts: one class, several, or a number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.regression import SpearmanCorrCoef

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.data import AnyBatch
from kdcli.statistics.intervals import metric_of
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.sample_sums import Note, ignore_sums, shares


class TextClassification(ImageClassification):
    """The task ``text-classification`` with one class a text: its loss and metrics are those of images."""

    name = "text-classification"


class _ByValues(ABC):
    """What labels that are rows of values have in common: the loss is a mean of elements, NaN is no label."""

    name = "text-classification"
    monitor: str
    metrics: ClassVar[tuple[str, ...]]
    """The names of the metrics, in the order in which they are shown."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``; nothing is compared with a reference."""
        return cls(data.class_names)

    def supervised_loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Return the loss, averaged over the labelled texts and the classes.

        Args:
            logits: (B, C).
            targets: float (B, C), NaN in the rows without a label.
            label_smoothing: see the subclass.
        """
        labelled = ~targets.isnan()
        losses = self._losses(logits.float(), targets.nan_to_num(), label_smoothing)
        return (losses * labelled).sum() / labelled.sum().clamp(min=1)

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
        """Return the metrics and ``loss`` over labelled batches; those that are made of sums are noted.

        Raises:
            UserError: when there is nothing to evaluate on.
        """
        meters = {name: meter.to(device) for name, meter in self._meters().items()}
        none = torch.zeros(0, len(self.class_names), dtype=torch.float64)
        sums = {name: values.sum(dim=0) for name, values in self._sums(none, none).items()}
        totals = torch.zeros(2, dtype=torch.float64)  # of the loss, of the elements
        for batch in batches:
            if not len(batch):
                continue
            batch = batch.to(device)
            logits = predict(batch).float()
            losses = self._losses(logits, batch.targets, 0.0)
            totals += torch.stack([losses.double().sum().cpu(), torch.tensor(losses.numel())])
            for meter in meters.values():
                self._update(meter, logits, batch.targets)
            of_samples = self._sums(logits.cpu().double(), batch.targets.cpu().double())
            note(batch, of_samples)
            for name, values in of_samples.items():
                sums[name] += values.sum(dim=0)
        loss, count = add_up(totals).tolist()
        if count == 0:
            raise UserError("There are no texts to evaluate on.", "Check that split.")
        found = {name: float(metric_of(name, add_up(values).numpy())) for name, values in sums.items()}
        found |= {name: float(meter.compute()) for name, meter in meters.items()}
        return {name: found[name] for name in self.metrics} | {"loss": loss / count}

    @abstractmethod
    def _losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the loss of every element (B, C)."""

    @abstractmethod
    def _meters(self) -> dict[str, Metric]:
        """Return new metrics by name, for those that are not made of the sums."""

    @abstractmethod
    def _sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return what ``note`` is told of the samples, from float64 (B, C) of both."""

    @abstractmethod
    def _update(self, meter: Metric, logits: Tensor, targets: Tensor) -> None:
        """Add a batch to one of the metrics."""


class SeveralLabels(_ByValues):
    """The task ``text-classification`` with any number of classes a text: binary cross-entropy for each class.

    Label smoothing moves the targets towards a half.
    """

    monitor = "micro_f1"
    metrics = ("micro_f1", "macro_f1", "mean_average_precision")

    def _losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        smooth = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")

    def _meters(self) -> dict[str, Metric]:
        num_labels = len(self.class_names)
        return {
            "macro_f1": MultilabelF1Score(num_labels, average="macro"),
            "mean_average_precision": MultilabelAveragePrecision(num_labels, average="macro"),
        }

    def _update(self, meter: Metric, logits: Tensor, targets: Tensor) -> None:
        meter.update(logits.sigmoid(), targets.long())

    def _sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        guesses = (logits.float().sigmoid() > 0.5).double()  # as torchmetrics decides
        hits = (guesses * targets).sum(dim=1)
        return {"micro_f1": torch.stack([2 * hits, guesses.sum(dim=1) + targets.sum(dim=1)], dim=1)}


class TextRegression(_ByValues):
    """The task ``text-classification`` with a number a text: squared error in units of the training numbers' variance.

    Args:
        class_names: of the number.
        deviation: standard deviation of the training numbers.
        mean: their mean.
    """

    monitor = "pearson"
    metrics = ("pearson", "spearman", "mean_absolute_error")

    def __init__(self, class_names: Sequence[str], *, deviation: float, mean: float = 0.0) -> None:
        super().__init__(class_names)
        self.deviation, self.mean = deviation, mean

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``, whose labels are numbers."""
        assert data.label_scale is not None
        mean, deviation = data.label_scale
        return cls(data.class_names, deviation=deviation, mean=mean)

    def _losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return ((logits - targets) / self.deviation).square()

    def _meters(self) -> dict[str, Metric]:
        return {"spearman": SpearmanCorrCoef()}

    def _update(self, meter: Metric, logits: Tensor, targets: Tensor) -> None:
        meter.update(logits[:, 0], targets[:, 0])

    def _sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        # The correlation does not depend on the unit; in this one the squares lose no digits.
        x, y = ((values[:, 0] - self.mean) / self.deviation for values in (logits, targets))
        return {
            "pearson": torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=1),
            "mean_absolute_error": shares((logits - targets)[:, 0].abs()),
        }
