"""Measures of models whose samples have any number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.tasks import Modality
from kdcli.data import AnyBatch
from kdcli.tasks.reports import Layout

THRESHOLD = 0.5
"""A label whose probability is above it is predicted."""


def labels_layout(modality: Modality) -> Layout:
    """Return how :class:`LabelsReport` is shown."""
    rows = (
        ("micro F1", "micro_f1"),
        ("macro F1", "macro_f1"),
        ("mean average precision", "mean_average_precision"),
        ("exact match", "exact_match"),
        ("binary cross-entropy", "binary_cross_entropy"),
    )
    others = ("per_class_precision", "per_class_recall", "per_class_average_precision")
    return Layout(modality, rows, ("F1", "per_class_f1"), others, modality)


class LabelsReport:
    """Any number of labels for each sample.

    Args:
        class_names: in label order.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add logits (N, C) of a batch with targets (N, C) of zeros and ones; rows of NaN count for nothing."""
        targets = batch.targets.cpu()
        known = ~targets.isnan().any(dim=1)
        self._logits.append(outputs.float().cpu()[known])
        self._targets.append(targets[known])

    def compute(self) -> dict[str, Any]:
        """Return numbers and, for each class, lists; None where a class is neither there nor found.

        ``micro_f1`` is over all decisions together, ``macro_f1`` and ``mean_average_precision`` are means over the
        classes that have a value, ``exact_match`` is the share of samples whose labels are all right and
        ``binary_cross_entropy`` the mean over samples and classes, in nats. Decisions are at a probability of a half.
        """
        from sklearn.metrics import average_precision_score

        logits, targets = torch.cat(self._logits), torch.cat(self._targets)
        guesses = logits.sigmoid() > THRESHOLD
        truth = targets > THRESHOLD
        hits, found, true = ((guesses & truth).sum(dim=0), guesses.sum(dim=0), truth.sum(dim=0))
        f1 = _ratios(2 * hits, found + true)
        precision = [
            float(average_precision_score(own.numpy(), score.numpy())) if own.any() else None
            for own, score in zip(truth.T, logits.double().T, strict=True)
        ]
        return {
            "micro_f1": float(2 * hits.sum() / (found + true).sum().clamp(min=1)),
            "macro_f1": _mean(f1),
            "mean_average_precision": _mean(precision),
            "exact_match": float((guesses == truth).all(dim=1).double().mean()),
            "binary_cross_entropy": float(F.binary_cross_entropy_with_logits(logits.double(), targets.double())),
            "per_class_f1": f1,
            "per_class_precision": _ratios(hits, found),
            "per_class_recall": _ratios(hits, true),
            "per_class_average_precision": precision,
        }

    def counts(self) -> list[int]:
        """Return how many samples have each label."""
        return [int(count) for count in torch.cat(self._targets).sum(dim=0)]

    def notes(self, name: str) -> list[str]:
        """Say nothing."""
        return []

    def agreement(self, other: LabelsReport) -> float | None:
        """Return the share of equal decisions of the same samples and labels."""
        ours, theirs = (torch.cat(report._logits) > 0 for report in (self, other))
        return float((ours == theirs).double().mean())


def _ratios(hits: Tensor, of: Tensor) -> list[float | None]:
    return [float(hit / count) if count else None for hit, count in zip(hits, of, strict=True)]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
