"""One label for an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.data import AnyBatch
from kdcli.tasks.sample_sums import Note, ignore_sums, shares


class ImageClassification:
    """The task ``image-classification``.

    Args:
        class_names: in label order.
    """

    name = "image-classification"
    monitor = "accuracy"
    """The metric that the best student is chosen by; higher is better, ties go to the lower ``loss``."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``; nothing is compared with a reference."""
        return cls(data.class_names)

    def supervised_loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Return the cross-entropy, averaged over the labelled part of the batch.

        Args:
            logits: (B, C).
            targets: class indices int64 (B,), ``UNLABELLED`` for none; or, after mixing, float (B, C + 1) whose last
                column is the share of unlabelled images.
            label_smoothing: share of the target spread evenly over all classes.

        Returns:
            A scalar; zero, with a gradient, when nothing in the batch has a label.
        """
        logits = logits.float()
        if not targets.is_floating_point():
            total = F.cross_entropy(
                logits, targets, ignore_index=UNLABELLED, label_smoothing=label_smoothing, reduction="sum"
            )
            return total / (targets != UNLABELLED).sum().clamp(min=1)
        labelled = 1 - targets[:, -1:]
        smooth = (1 - label_smoothing) * targets[:, :-1] + label_smoothing * labelled / logits.shape[1]
        total = -(smooth * F.log_softmax(logits, dim=1)).sum()
        # Fewer than one whole label in the batch must not blow the loss up.
        return total / labelled.sum().clamp(min=1)

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
        """Return ``accuracy``, ``top5`` (with more than five classes) and ``loss`` over labelled batches.

        Args:
            predict: a batch to logits (B, C).
            batches: each sample once.
            device: where to compute.
            add_up: sums a float64 tensor over all processes; torchmetrics does so by itself for its own.
            note: told of every sample's share in ``accuracy`` and ``top5``.

        Raises:
            UserError: when there is nothing to evaluate on.
        """
        num_classes = len(self.class_names)
        meters = {"accuracy": MulticlassAccuracy(num_classes, average="micro").to(device)}
        if num_classes > 5:
            meters["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5).to(device)
        totals = torch.zeros(2, dtype=torch.float64)  # of the loss, of the samples
        for batch in batches:
            if not len(batch):
                continue
            batch = batch.to(device)
            logits = predict(batch).float()
            totals += torch.stack(
                [F.cross_entropy(logits, batch.targets, reduction="sum").cpu(), torch.tensor(len(batch))]
            )
            for meter in meters.values():
                meter.update(logits, batch.targets)
            note(batch, {name: shares(hits) for name, hits in self._hits(logits, batch.targets).items()})
        loss, count = add_up(totals).tolist()
        if count == 0:
            raise UserError("None of the evaluation images can be read.", "Check the files of that split.")
        return {name: float(meter.compute()) for name, meter in meters.items()} | {"loss": loss / count}

    def _hits(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return for each sample (B,) whether its class is the likeliest, and among the five likeliest."""
        hits = {"accuracy": logits.argmax(dim=1) == targets}
        if len(self.class_names) > 5:
            hits["top5"] = (logits.topk(5, dim=1).indices == targets[:, None]).any(dim=1)
        return hits
