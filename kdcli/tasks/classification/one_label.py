"""One label for an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.config.data import DataConfig
from kdcli.data import AnyBatch, Batch, open_data
from kdcli.data.images.decode import Range
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.tasks.answers import Answers, Choice, ClassAnswers
from kdcli.tasks.base import DEFAULT_LOSS, AnyData, ImageTask, Task
from kdcli.tasks.classification.report import ClassReport, class_layout
from kdcli.tasks.meters import Meter, SampleSums, shares
from kdcli.tasks.reports import Layout, Panel, Report


class ImageClassification(ImageTask):
    """The task ``image-classification``.

    Args:
        class_names: in label order.
    """

    name = "image-classification"
    unit = "image"
    monitor = "accuracy"
    """The metric that the best student is chosen by; higher is better, ties go to the lower ``loss``."""
    takes_class_weights = True

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images with a class each, or with any number of labels."""
        data = open_data(config, seed=seed, takes_several=True)
        return replace(data, facts=replace(data.facts, task=cls.row().name))

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Task:
        """Return the task for labels of the kind that ``data`` have.

        Raises:
            UserError: another package's subclass is asked for labels that have a class of their own here.
        """
        if data.label_kind != "classes":
            return cls(data.class_names)
        if cls is not ImageClassification:
            raise UserError(
                f"The task {cls.__name__} is for one class an image, and {data.name} has"
                f" {data.labels.of_data.format(count=len(data.class_names))}.",
                f"Name other data, or the task {cls.row().name}.",
            )
        from kdcli.tasks.classification.values import ImageLabels

        return ImageLabels.from_facts(data, reference=reference)

    @classmethod
    def facts_of(cls, model: Model, config: DataConfig | None) -> DataFacts:
        """Return the facts of no data, with the kind of labels that the model's own config says."""
        facts = super().facts_of(model, config)
        return facts if facts.label_kind == "none" else replace(facts, label_kind=model.label_kind)

    def supervised_loss(
        self, logits: Tensor, targets: Tensor, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Return the cross-entropy, averaged over the labelled part of the batch.

        With ``class_weights`` each class's term has its weight, in smoothed and mixed targets too, and the mean goes by
        the weights of the labels as they are before smoothing, as that of :func:`torch.nn.functional.cross_entropy`
        with class indices.

        Args:
            logits: (B, C).
            targets: class indices int64 (B,), ``UNLABELLED`` for none; or, after mixing, float (B, C + 1) whose last
                column is the share of unlabelled images.
            label_smoothing: share of the target spread evenly over all classes.
            terms: none: there is one loss.

        Returns:
            A scalar; zero, with a gradient, when nothing in the batch has a label.
        """
        logits = logits.float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if not targets.is_floating_point():
            total = F.cross_entropy(
                logits,
                targets,
                weight=weights,
                ignore_index=UNLABELLED,
                label_smoothing=label_smoothing,
                reduction="sum",
            )
            return total / self.count_labels(targets).clamp(min=1)
        labelled = 1 - targets[:, -1:]
        smooth = (1 - label_smoothing) * targets[:, :-1] + label_smoothing * labelled / logits.shape[1]
        smooth = smooth if weights is None else smooth * weights
        total = -(smooth * F.log_softmax(logits, dim=1)).sum()
        # Fewer than one whole label in the batch must not blow the loss up.
        return total / self.count_labels(targets).clamp(min=1)

    def count_labels(self, targets: Tensor) -> Tensor:
        """Return how many images are labelled, of mixed ones the sum of the shares that are; each by its weight."""
        if self.class_weights is None:
            return (1 - targets[:, -1]).sum() if targets.is_floating_point() else (targets != UNLABELLED).sum()
        weights = self.class_weights.to(targets.device)
        if targets.is_floating_point():
            return (targets[:, :-1] * weights).sum()
        return weights[targets[targets != UNLABELLED]].sum()

    def meter(self, team: Team) -> Meter:
        """Return the meter of ``accuracy``, ``top5`` (with more than five classes) and ``loss``."""
        return ClassificationMeter(len(self.class_names), team)

    @property
    def layout(self) -> Layout:
        """Accuracies, calibration and cross-entropy."""
        return class_layout(self.unit, len(self.class_names), sample=self.row().modality)

    def report(self) -> Report:
        """Return a report of classes."""
        return ClassReport(self.class_names)

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what tells the likeliest classes."""
        return ClassAnswers(self, samples, choice, deep_range=deep_range)

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return of each image itself, with its class and what each model takes it for."""
        assert isinstance(batch, Batch)
        titles = [f"is {self.class_names[label]}" for label in batch.targets.tolist()]
        for role, logits in outputs.items():
            for row, label in enumerate(logits.argmax(dim=1).tolist()):
                titles[row] += f"\n{role}: {self.class_names[label]}"
        images = batch.colours.permute(0, 2, 3, 1).numpy()
        return [[Panel(title, image)] for title, image in zip(titles, images, strict=True)]


class ClassificationMeter:
    """``accuracy``, ``top5`` (with more than five classes) and ``loss``, the mean cross-entropy, of labelled samples.

    Args:
        num_classes: C.
        team: of the processes that share the samples.
    """

    def __init__(self, num_classes: int, team: Team) -> None:
        self._has_top5, self._team = num_classes > 5, team
        # Of the samples, of the loss, of the hits of every metric.
        self._totals = torch.zeros(4 if self._has_top5 else 3, dtype=torch.float64)

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add logits (B, C); return every sample's share in ``accuracy`` and ``top5``."""
        logits, targets = outputs.float(), batch.targets
        loss = F.cross_entropy(logits, targets, reduction="sum")
        hits = {"accuracy": logits.argmax(dim=1) == targets}
        if self._has_top5:
            hits["top5"] = (logits.topk(5, dim=1).indices == targets[:, None]).any(dim=1)
        found = [values.sum() for values in hits.values()]
        self._totals += torch.stack([torch.tensor(len(batch)), *(value.cpu().double() for value in (loss, *found))])
        return {name: shares(values) for name, values in hits.items()}

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: there are no samples.
        """
        count, loss, *hits = self._team.sum(self._totals).tolist()
        if count == 0:
            raise UserError("None of the evaluation images can be read.", "Check the files of that split.")
        means = {name: found / count for name, found in zip(("accuracy", "top5"), hits, strict=False)}
        return means | {"loss": loss / count}
