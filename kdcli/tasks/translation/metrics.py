"""How alike images and their targets are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.data import AnyBatch
from kdcli.data.batch import EVALUATION
from kdcli.data.images.pictures import as_pixels
from kdcli.machine.team import Team
from kdcli.tasks.generative.extractor import ImageDistances
from kdcli.tasks.meters import SampleSums
from kdcli.tasks.translation.task import is_known, target_at

METRICS = ("ssim", "psnr", "l1")
SHOWN = (("SSIM", "ssim"), ("PSNR", "psnr"), ("L1", "l1"), ("loss", "loss"))
_ALIKE = 8
"""Two models agree on a pixel where no channel of 0..255 differs by more than this."""
_COMPARED = 32
"""Most rows and columns of an image at which two models' agreement is looked at."""


def measure_pairs(outputs: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return every metric and ``loss`` of each image, float64 (B,), 0 of those without a target; and which have one.

    Args:
        outputs: images (B, 3, h, w), from -1 to 1.
        targets: (B, 3, H, W); brought to the images' size.
    """
    outputs = outputs.float()
    known, target = is_known(targets), target_at(targets, outputs)
    difference = losses.image_l1(outputs, target)
    found = {
        "ssim": losses.ssim(outputs, target),
        "psnr": losses.psnr(outputs, target),
        "l1": difference / 2,
        "loss": difference,
    }
    zeros = torch.zeros_like(difference)
    return {name: torch.where(known, values, zeros).cpu().double() for name, values in found.items()}, known.cpu()


class PairMeter:
    """:data:`METRICS` of each image, averaged over those with a target.

    Args:
        team: of the processes that share the samples.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        self._sums = torch.zeros(len(METRICS) + 2, dtype=torch.float64)  # loss and number of images last

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add images (B, 3, h, w); return what every one adds to each metric."""
        values, known = measure_pairs(outputs, batch.targets)
        counts = known.double()
        self._sums += torch.stack([*(values[name].sum() for name in (*METRICS, "loss")), counts.sum()])
        return {name: torch.stack([values[name], counts], dim=1) for name in METRICS}

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: no image has a target.
        """
        *sums, count = self._team.sum(self._sums).tolist()
        if not count:
            raise _nothing()
        return {name: value / count for name, value in zip((*METRICS, "loss"), sums, strict=True)}


class PairReport:
    """The same metrics of a finished model, and some of its pixels for a comparison with another one's."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._found: list[Tensor] = []

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add images (B, 3, h, w)."""
        values, known = measure_pairs(outputs, batch.targets)
        self._values.append(torch.stack([values[name] for name in (*METRICS, "loss")], dim=1))
        self._counts.append(known)
        self._found.append(some_pixels(outputs))

    def compute(self) -> dict[str, Any]:
        """Return every metric, averaged over the images with a target.

        Raises:
            UserError: there is none.
        """
        count = torch.cat(self._counts).sum()
        if not count:
            raise _nothing()
        means = torch.cat(self._values).sum(dim=0) / count
        return dict(zip((*METRICS, "loss"), means.tolist(), strict=True))

    def counts(self) -> list[int]:
        """Return how many images were measured."""
        return [int(torch.cat(self._counts).sum())]

    def notes(self, name: str) -> list[str]:
        """Say nothing."""
        return []

    def agreement(self, other: Any) -> float | None:
        """Return the share of pixels, on a grid of at most 32 x 32 of an image, whose colours are nearly the same."""
        return agreement_of(self._found, other._found)


class KindMeter:
    """FID, KID, precision and recall of what is made of images A, against images B, by the features of an extractor.

    Args:
        distances: collects the features of all processes.
        monitor: the metric that is the FID with another sign.
    """

    def __init__(self, distances: ImageDistances, monitor: str) -> None:
        self._distances, self._monitor = distances, monitor

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add images (B, 3, h, w), and those of the other kind beside them; none is counted twice."""
        add_kinds(self._distances, outputs, batch)
        return {}

    def compute(self) -> dict[str, float]:
        """Return the metrics; ``loss`` is the FID.

        Raises:
            UserError: there are fewer than two images of a kind.
        """
        found = self._distances.compute()
        return {**found, "loss": -found[self._monitor]}


class KindReport:
    """The same metrics of a finished model, and some of its pixels for a comparison with another one's.

    Args:
        distances: collects the features of this process.
        keys: which metrics.
    """

    def __init__(self, distances: ImageDistances, keys: Sequence[str]) -> None:
        self._distances, self._keys = distances, keys
        self._found: list[Tensor] = []
        self._count = 0

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add images (B, 3, h, w), and those of the other kind beside them."""
        self._count += add_kinds(self._distances, outputs, batch)
        self._found.append(some_pixels(outputs))

    def compute(self) -> dict[str, Any]:
        """Return every metric; NaN of those that take more images.

        Raises:
            UserError: there are fewer than two images of a kind.
        """
        found = self._distances.compute()
        return {key: found.get(key, math.nan) for key in self._keys}

    def counts(self) -> list[int]:
        """Return how many images were made."""
        return [self._count]

    def notes(self, name: str) -> list[str]:
        """Say nothing."""
        return []

    def agreement(self, other: Any) -> float | None:
        """Return the share of pixels, on a grid of at most 32 x 32 of an image, whose colours are nearly the same."""
        return agreement_of(self._found, other._found)


def add_kinds(distances: ImageDistances, outputs: Tensor, batch: AnyBatch) -> int:
    """Add a batch to both sides of the distances, each image once; return how many were made.

    Where there are more images of the other kind, those that are translated are repeated, and the repetitions are left
    out; where there are fewer, the targets beside the last ones are not known.
    """
    is_first, known = batch.view == EVALUATION, is_known(batch.targets)
    if is_first.any():
        distances.add_generated(outputs[is_first], batch.samples[is_first])
    if known.any():
        # In the order of the other kind's images: each is beside one sample, or one of its repetitions.
        order = batch.samples + (EVALUATION - batch.view) * 2**32
        distances.add_real(target_at(batch.targets, outputs)[known], order[known])
    return int(is_first.sum())


def some_pixels(outputs: Tensor) -> Tensor:
    """Return the colours of some pixels of each image, uint8 (n, 3) of all of a batch."""
    rows, columns = (max(1, -(-side // _COMPARED)) for side in outputs.shape[2:])
    return as_pixels(outputs[:, :, ::rows, ::columns]).permute(0, 2, 3, 1).flatten(0, 2).cpu()


def agreement_of(ours: list[Tensor], theirs: list[Tensor]) -> float | None:
    """Return the share of pixels that differ by at most 8 of 255 in every channel; None of images of other sizes."""
    first, second = torch.cat(ours).int(), torch.cat(theirs).int()
    if first.shape != second.shape:
        return None
    return float(((first - second).abs() <= _ALIKE).all(dim=1).double().mean())


def _nothing() -> UserError:
    return UserError("No image has a target to be compared with.", "Give pairs.")
