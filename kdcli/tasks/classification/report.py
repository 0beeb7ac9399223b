"""Measures of classifiers beside accuracy: calibration, per class, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.facts import UNLABELLED
from kdcli.base.tasks import Modality
from kdcli.data import AnyBatch
from kdcli.statistics.chance import Mixed, find_mixed
from kdcli.tasks.reports import Layout

CALIBRATION_BINS = 15


class ClassificationMeters:
    """Metrics over a whole split, from its batches.

    Args:
        num_classes: of the data.
    """

    def __init__(self, num_classes: int) -> None:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

        self.num_classes = num_classes
        self._top5 = MulticlassAccuracy(num_classes, average="micro", top_k=5) if num_classes > 5 else None
        self._calibration = MulticlassCalibrationError(num_classes, n_bins=CALIBRATION_BINS, norm="l1")
        self._loss = 0.0
        self._predictions: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: float logits (B, C) and int64 class indices (B,), both on the CPU."""
        if self._top5 is not None:
            self._top5.update(logits, targets)
        # torchmetrics would give a confidence of exactly 1 a bin of its own.
        below_one = 1 - torch.finfo(torch.float32).eps
        self._calibration.update(logits.float().softmax(dim=1).clamp(max=below_one), targets)
        self._loss += float(F.cross_entropy(logits.double(), targets, reduction="sum"))
        self._predictions.append(logits.argmax(dim=1))
        self._targets.append(targets)

    def find_mixed(self, class_names: Sequence[str]) -> Mixed | None:
        """Return which classes are predicted for one another, where that is beyond doubt."""
        return find_mixed(torch.cat(self._predictions).numpy(), torch.cat(self._targets).numpy(), class_names)

    def compute(self) -> dict[str, Any]:
        """Return the metrics as numbers and lists.

        Returns:
            ``top1``; ``top5``, None with five classes or fewer; ``expected_calibration_error``, 15 bins of equal width,
            l1; ``cross_entropy``, the mean in nats; ``per_class_accuracy`` (C,), None for a class without samples;
            likewise ``per_class_precision``, of what was taken for a class, and ``per_class_f1``; ``macro_f1``, the
            mean over classes that are there or were found; ``confusion`` (C, C), counts, rows are true classes.
        """
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

        predictions, targets = torch.cat(self._predictions), torch.cat(self._targets)
        top1 = MulticlassAccuracy(self.num_classes, average="micro")(predictions, targets)
        per_class = MulticlassAccuracy(self.num_classes, average="none")(predictions, targets)
        confusion = MulticlassConfusionMatrix(self.num_classes)(predictions, targets)
        counts, found, right = confusion.sum(dim=1), confusion.sum(dim=0), confusion.diagonal()
        precision = [hits / all_ if all_ else None for hits, all_ in zip(right.tolist(), found.tolist(), strict=True)]
        f1 = [
            2 * hits / both if both else None
            for hits, both in zip(right.tolist(), (counts + found).tolist(), strict=True)
        ]
        known = [value for value in f1 if value is not None]
        return {
            "top1": float(top1),
            "top5": None if self._top5 is None else float(self._top5.compute()),
            "expected_calibration_error": float(self._calibration.compute()),
            "cross_entropy": self._loss / len(targets),
            "per_class_accuracy": [
                float(accuracy) if count else None for accuracy, count in zip(per_class, counts, strict=True)
            ],
            "macro_f1": sum(known) / len(known),
            "per_class_precision": precision,
            "per_class_f1": f1,
            "confusion": confusion.tolist(),
        }


def class_layout(unit: str, num_classes: int, *, sample: Modality = "image", also: Sequence[str] = ()) -> Layout:
    """Return how :class:`ClassReport` is shown; ``also`` are keys of a subclass."""
    rows = [("top-1 accuracy", "top1"), *([("top-5 accuracy", "top5")] if num_classes > 5 else [])]
    rows += [(key.replace("_", " "), key) for key in also]
    rows += [("macro F1", "macro_f1")]
    rows += [("expected calibration error", "expected_calibration_error"), ("cross-entropy", "cross_entropy")]
    others = ("per_class_precision", "per_class_f1", "confusion", *(() if num_classes > 5 else ("top5",)))
    return Layout(unit, tuple(rows), ("Accuracy", "per_class_accuracy"), others, sample)


class ClassReport:
    """One class for each sample, or for each of its parts.

    Args:
        class_names: in label order.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._meters = ClassificationMeters(len(self.class_names))
        self._guesses: list[Tensor] = []
        self._found: dict[str, Any] = {}

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add logits (N, C) of a batch with N targets; those without a label count for nothing."""
        logits, targets = outputs.float().cpu(), batch.targets.cpu()
        labelled = targets != UNLABELLED
        self._meters.update(logits[labelled], targets[labelled])
        self._guesses.append(logits.argmax(dim=1).masked_fill(~labelled, -1))

    def compute(self) -> dict[str, Any]:
        """Return what :meth:`ClassificationMeters.compute` does."""
        self._found = self._meters.compute()
        return self._found

    def counts(self) -> list[int]:
        """Return how many have each class."""
        return [sum(row) for row in (self._found or self.compute())["confusion"]]

    def notes(self, name: str) -> list[str]:
        """Say where classes are certainly taken for one another."""
        mixed = self._meters.find_mixed(self.class_names)
        if mixed is None:
            return []
        return [f"{name} seems to have the classes in another order: {mixed.describe(self.class_names)}"]

    def agreement(self, other: ClassReport) -> float | None:
        """Return the share of equal predictions of the same samples."""
        return agreement(torch.cat(self._guesses), torch.cat(other._guesses))


def agreement(predictions: Tensor, others: Tensor) -> float:
    """Return the share of samples with equal predictions, int64 (N,) each; -1 is a sample without one."""
    both = (predictions >= 0) & (others >= 0)
    return float((predictions == others)[both].double().mean())
