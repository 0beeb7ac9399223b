"""A class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, Batch
from kdcli.data.images.decode import Range
from kdcli.data.images.dense.open import open_dense
from kdcli.losses import dice, focal, rows_of
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.statistics.intervals import metric_of
from kdcli.tasks.answers import Answers, Choice
from kdcli.tasks.base import DEFAULT_LOSS, AnyData, Cut, ImageTask
from kdcli.tasks.dense.depth_metrics import doubled
from kdcli.tasks.dense.drawing import draw_errors, draw_over, error_legend, legend
from kdcli.tasks.dense.measured import check_measured
from kdcli.tasks.meters import Meter, SampleSums
from kdcli.tasks.reports import Layout, Panel, Report

_COMPARED = 64
"""Most rows and columns of an image at which two models' agreement is looked at."""
SCORES = ("mean_iou", "pixel_accuracy")


class SemanticSegmentation(ImageTask):
    """The task ``semantic-segmentation``.

    Logits (B, C, h, w) are of the model's own stride: for loss and metrics they are resized bilinearly to the targets,
    which have the size of the model's input. Pixels without a label count for nothing.

    Args:
        class_names: in label order.
    """

    name = "semantic-segmentation"
    monitor = "mean_iou"
    """Ties go to the lower ``loss``."""
    takes_class_weights = True

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images with a mask each."""
        row = cls.row()
        data = open_dense(config, row.target, seed=seed)
        return replace(data, facts=replace(data.facts, task=row.name))

    def supervised_loss(
        self, logits: Tensor, targets: Tensor, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Return the weighted sum of ``terms``, averaged over the labelled pixels of the batch.

        ``cross_entropy`` and ``focal`` (γ 2) are means over pixels. ``dice`` is of each image by itself, and its mean
        over images goes by their labelled pixels, so that several processes make of their shares what one makes of all.
        Of ``class_weights`` there is ``cross_entropy`` alone, a mean with the weights of the pixels.

        Args:
            logits: (B, C, h, w).
            targets: class indices int64 (B, H, W), ``UNLABELLED`` for none.
            label_smoothing: of the cross-entropy: share of the target spread evenly over all classes.
            terms: by default ``cross_entropy`` alone.
        """
        logits = resized(logits, targets)
        labelled = targets != UNLABELLED

        classes = None if self.class_weights is None else self.class_weights.to(logits.device)

        def cross_entropy() -> Tensor:
            return F.cross_entropy(
                logits,
                targets,
                weight=classes,
                ignore_index=UNLABELLED,
                label_smoothing=label_smoothing,
                reduction="sum",
            )

        totals: Mapping[str, Callable[[], Tensor]] = {
            "cross_entropy": cross_entropy,
            "dice": lambda: (dice(logits, targets, ignore=UNLABELLED) * labelled.sum(dim=(1, 2))).sum(),
            "focal": lambda: focal(rows_of(logits), targets.flatten(), ignore=UNLABELLED).sum(),
        }
        weights = terms or {self.row().losses[0]: 1.0}
        total = torch.stack([weight * totals[name]() for name, weight in weights.items()]).sum()
        return total / self.count_labels(targets).clamp(min=1)

    def count_labels(self, targets: Tensor) -> Tensor:
        """Return how many pixels are labelled, each by its weight."""
        if self.class_weights is None:
            return (targets != UNLABELLED).sum()
        return self.class_weights.to(targets.device)[targets[targets != UNLABELLED]].sum()

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say what is measured, and where."""
        height, width = student.facts.preprocessing.image_size  # type: ignore[union-attr]  # a model of images
        reason = (
            "The mean over the classes that occur, in masks or predictions: of each the right pixels, by those that are"
            " of it or taken for it. Pixels of all images count together, at the size of the model's input; those"
            " without a label count neither way."
        )
        return [Decision("mean IoU", f"at {height}x{width} pixels", reason)]

    def check_split(self, source: Any, split: str) -> None:
        """Refuse a split without a labelled pixel."""
        check_measured(source, lambda target: bool((target != UNLABELLED).any()), _no_pixels(split))

    def meter(self, team: Team) -> Meter:
        """Return the meter of ``mean_iou``, ``pixel_accuracy`` and ``loss``, the mean cross-entropy of a pixel."""
        return PixelMeter(len(self.class_names), team)

    @property
    def layout(self) -> Layout:
        """Overlap, accuracy and cross-entropy; the overlap of each class."""
        rows = (("mean IoU", "mean_iou"), ("pixel accuracy", "pixel_accuracy"), ("cross-entropy", "cross_entropy"))
        return Layout("pixel", rows, ("IoU", "iou"), ("confusion",))

    def report(self) -> Report:
        """Return a report on the classes of pixels."""
        return PixelReport(len(self.class_names))

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what tells the class of every pixel."""
        from kdcli.tasks.dense.answers import MaskAnswers

        return MaskAnswers(self, samples, choice, deep_range=deep_range)

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return of each image itself, its mask, and of each model its mask and where it is wrong."""
        assert isinstance(batch, Batch)
        images = batch.colours.permute(0, 2, 3, 1).numpy()
        return [
            self._panels(image, target, {role: logits[number] for role, logits in outputs.items()})
            for number, (image, target) in enumerate(zip(images, batch.targets, strict=True))
        ]

    def _panels(self, image: NDArray[np.uint8], target: Tensor, outputs: Mapping[str, Tensor]) -> list[Panel]:
        truth, names = target.numpy(), self.class_names
        row = [Panel("image", image), Panel("target", draw_over(image, truth, names), legend(names, truth))]
        for role, logits in outputs.items():
            guess = resized(logits[None], target[None])[0].argmax(dim=0).numpy()
            right = (guess == truth)[truth != UNLABELLED]
            share = f"{right.mean():.0%} right" if right.size else "no labels"
            row.append(Panel(role, draw_over(image, guess, names), legend(names, guess), role))
            row.append(Panel(f"{role}: {share}", draw_errors(guess, truth), error_legend()))
        return row


def _no_pixels(split: str = "") -> UserError:
    where = f" in the {split} split" if split else ""
    return UserError(f"There are no labelled pixels to evaluate on{where}.", "Check its masks and data.ignore_label.")


def resized(logits: Tensor, targets: Tensor) -> Tensor:
    """Return logits (B, C, h, w) in float32 at the size of targets (B, H, W), by bilinear interpolation."""
    logits = logits.float()
    size = targets.shape[-2:]
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)


def confusion_of(guess: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return how many labelled pixels of each class (row) were taken for each (column), float64 (C, C) on the CPU."""
    labelled = target != UNLABELLED
    pairs = (num_classes * target + guess)[labelled]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).cpu().double()


def overlap_sums(confusion: Tensor) -> Tensor:
    """Return what ``mean_iou`` is made of, float64 (..., 3 C): right pixels, true ones and predicted ones by class."""
    return torch.cat([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(dim=-1), confusion.sum(dim=-2)], dim=-1)


def scores_of(confusion: Tensor) -> dict[str, float]:
    """Return ``mean_iou`` and ``pixel_accuracy`` of counts (C, C).

    Raises:
        UserError: there are none.
    """
    if not confusion.sum():
        raise _no_pixels()
    return {
        "mean_iou": float(metric_of("mean_iou", overlap_sums(confusion).numpy())),
        "pixel_accuracy": float(confusion.trace() / confusion.sum()),
    }


def _each(
    outputs: Tensor, targets: Tensor, num_classes: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # one image after the other: at full size their logits fill the memory
    """Yield of every image its guesses (H, W), its confusion (C, C) and its sum of cross-entropies."""
    for one, target in zip(outputs, targets, strict=True):
        logits = resized(one[None], target[None])
        guess = logits[0].argmax(dim=0)
        loss = F.cross_entropy(logits, target[None], ignore_index=UNLABELLED, reduction="none")
        yield guess, confusion_of(guess, target, num_classes), doubled(loss).sum().cpu()


class PixelMeter:
    """Metrics of the labelled pixels of all images together.

    ``mean_iou``: of every class the pixels that are both of it and taken for it, by those that are either; the mean
    over the classes that occur, as truth or as a guess. ``pixel_accuracy``: the share of right pixels. ``loss``: the
    mean cross-entropy of a pixel in nats, whatever the student is trained by.

    Args:
        num_classes: C.
        team: of the processes that share the images.
    """

    def __init__(self, num_classes: int, team: Team) -> None:
        self._num_classes, self._team = num_classes, team
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self._loss = torch.zeros(1, dtype=torch.float64)

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add logits (B, C, h, w); return what every image adds to both scores."""
        found = [(confusion, loss) for _, confusion, loss in _each(outputs, batch.targets, self._num_classes)]
        confusions = torch.stack([confusion for confusion, _ in found])
        self._confusion += confusions.sum(dim=0)
        self._loss += sum(loss for _, loss in found)
        right = confusions.diagonal(dim1=1, dim2=2).sum(dim=1)
        accuracy = torch.stack([right, confusions.sum(dim=(1, 2))], dim=1)
        return {"mean_iou": overlap_sums(confusions), "pixel_accuracy": accuracy}

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: no pixel has a label.
        """
        confusion, loss = self._team.sum(self._confusion).cpu(), self._team.sum(self._loss).cpu()
        return {**scores_of(confusion), "loss": float(loss / confusion.sum())}


class PixelReport:
    """The classes of pixels in detail.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self._loss = 0.0
        self._sizes: set[tuple[int, int]] = set()
        self._guesses: list[Tensor] = []  # of at most _COMPARED rows and columns: 8 KiB an image

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add logits (B, C, h, w)."""
        for guess, confusion, loss in _each(outputs, batch.targets, len(self._confusion)):
            self._confusion += confusion
            self._loss += float(loss)
            size = (guess.shape[0], guess.shape[1])
            self._sizes.add(size)
            kept = _at(guess.cpu(), (min(size[0], _COMPARED), min(size[1], _COMPARED)))
            self._guesses.append(kept.to(torch.int16))

    def compute(self) -> dict[str, Any]:
        """Return ``mean_iou``, ``pixel_accuracy``, ``cross_entropy``, ``iou`` (C,) and ``confusion`` (C, C).

        A class that neither occurs nor is predicted has None for its IoU.
        """
        right, true, guessed = overlap_sums(self._confusion).split(len(self._confusion))
        union = true + guessed - right
        iou = [float(part / whole) if whole else None for part, whole in zip(right, union, strict=True)]
        scores = scores_of(self._confusion)
        loss = self._loss / float(self._confusion.sum())
        return {**scores, "cross_entropy": loss, "iou": iou, "confusion": self._confusion.long().tolist()}

    def counts(self) -> list[int]:
        """Return how many pixels have each class."""
        return [int(count) for count in self._confusion.sum(dim=1)]

    def notes(self, name: str) -> list[str]:
        """Say at which size the pixels were counted: that of the model's input."""
        sizes = " and ".join(f"{height}x{width}" for height, width in sorted(self._sizes))
        return [f"{name} is measured on masks of {sizes} pixels."]

    def agreement(self, other: PixelReport) -> float | None:
        """Return the share of pixels that both take for the same; another size is brought to this one's.

        It is looked at on a grid of at most 64 x 64 pixels of each image.
        """
        same = count = 0
        for ours, theirs in zip(self._guesses, other._guesses, strict=True):
            same += int((ours == _at(theirs, (ours.shape[0], ours.shape[1]))).sum())
            count += ours.numel()
        return same / count


def _at(classes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return classes (H, W) at another (height, width): each is that of the pixel at its middle."""
    if classes.shape == size:
        return classes
    return F.interpolate(classes[None, None].float(), size, mode="nearest-exact")[0, 0].to(classes.dtype)
