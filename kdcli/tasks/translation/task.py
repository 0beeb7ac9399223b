"""From an image to another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ExtractorFacts, ModelFacts
from kdcli.base.reads import IMAGE, Reads
from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, Batch, open_translation
from kdcli.data.images.decode import Range
from kdcli.machine.team import ALONE, Team
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.tasks.answers import Answers, Choice
from kdcli.tasks.base import DEFAULT_LOSS, AnyData, Cut, ImageTask
from kdcli.tasks.generative.extractor import Extractor, ImageDistances
from kdcli.tasks.meters import Meter
from kdcli.tasks.reports import Layout, Panel, Report

PERCEPTUAL = "perceptual"
_OF_KINDS: Mapping[str, Any] = {
    "optimizer": "adam",
    "lr": 2e-4,
    "betas": (0.5, 0.999),
    "weight_decay": 0.0,
    "schedule": "linear",
    "hold": 0.5,
    "warmup": 0.0,
    "min_lr_ratio": 0.0,
    "clip_grad": None,
}
"""CycleGAN's optimiser, of images without pairs where no optimiser is asked for."""
_FALLS = ("schedule", "hold", "warmup", "min_lr_ratio")
"""What of it belongs together."""


class ImageTranslation(ImageTask):
    """The task ``image-translation``: a picture of the same size.

    Images are (B, 3, H, W), from -1 to 1. What is compared has the size of the student's own image: targets are brought
    to it. Every loss is a mean over the pixels of an image, and then over the images whose target is known.

    Args:
        is_paired: whether every image has its own target.
        extractor: by whose features images without pairs are compared.
    """

    name = "image-translation"

    def __init__(self, *, is_paired: bool = True, extractor: ExtractorFacts | None = None) -> None:
        super().__init__(())
        self.is_paired = is_paired
        self.extractor = Extractor(extractor or DataConfig(name="none").extractor)

    @property
    def monitor(self) -> str:  # type: ignore[override]  # it names the extractor
        """SSIM of pairs, and else FID with its sign changed."""
        return "ssim" if self.is_paired else ImageDistances.monitor_of(self.extractor)

    @property
    def reports_last(self) -> bool:  # type: ignore[override]  # the best of many FIDs is lucky in part
        """Whether a run also reports its last student: of images without pairs."""
        return not self.is_paired

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images with their targets."""
        data = open_translation(config, cls.row().name, seed=seed)
        if data.facts.label_kind != "unpaired":
            return data
        return replace(data, facts=replace(data.facts, extractor=config.extractor))

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``."""
        return cls(is_paired=data.label_kind != "unpaired", extractor=data.extractor)

    @classmethod
    def with_usual(cls, config: RunConfig, data: DataFacts) -> RunConfig:
        """Return the config with CycleGAN's optimiser for images without pairs, where no other is asked for."""
        asked = config.optim.model_fields_set
        if data.label_kind != "unpaired" or "optimizer" in asked:
            return config
        left_out = {*asked, *(_FALLS if asked.intersection(_FALLS) else ())}
        own = {key: value for key, value in _OF_KINDS.items() if key not in left_out}
        return config.model_copy(update={"optim": config.optim.model_copy(update=own)})

    def reads(self, model: ModelFacts) -> Reads:
        """Return the head of the image."""
        return Reads(heads=(IMAGE,))

    def supervised_loss(
        self, logits: Tensor, targets: Tensor, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Return the sum of the losses that ``terms`` name, each of every image, averaged over those with a target.

        Args:
            logits: images (B, 3, h, w), from -1 to 1.
            targets: (B, 3, H, W); NaN of images without a target.
            label_smoothing: plays no part.
            terms: out of ``l1`` (the default), ``l2`` and ``perceptual``; see :func:`image_loss`.

        Returns:
            A scalar; zero, with a gradient, where no target is known.
        """
        known = is_known(targets)
        values = image_loss(logits, target_at(targets, logits), terms or {self.row().losses[0]: 1.0})
        return torch.where(known, values, 0.0).sum() / known.sum().clamp(min=1)

    def count_labels(self, targets: Tensor) -> Tensor:
        """Return how many images have a target."""
        return is_known(targets).sum()

    def meter(self, team: Team) -> Meter:
        """Return the meter of similarity to the targets, or of distances between two kinds of images."""
        from kdcli.tasks.translation.metrics import KindMeter, PairMeter

        if self.is_paired:
            return PairMeter(team)
        return KindMeter(ImageDistances(self.extractor, team), self.monitor)

    @property
    def layout(self) -> Layout:
        """The metrics: of pairs each averaged over images."""
        from kdcli.tasks.translation.metrics import SHOWN

        return Layout("image", SHOWN if self.is_paired else ImageDistances.shown_of(self.extractor))

    def report(self) -> Report:
        """Return a report of pairs, or of two kinds of images."""
        from kdcli.tasks.translation.metrics import KindReport, PairReport

        if self.is_paired:
            return PairReport()
        return KindReport(ImageDistances(self.extractor, ALONE), [key for _, key in self.layout.rows])

    def check_split(self, source: Any, split: str) -> None:
        """Refuse a split of pairs without a target."""
        if self.is_paired and not any(label == 0 for label in source.labels):
            raise UserError(f"No image of the {split} split has a target.", "Give pairs.")

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say what the metrics are of, and by what a loss on features compares.

        Raises:
            UserError: what it compares by is not installed.
        """
        size = "x".join(map(str, student.facts.preprocessing.image_size))  # type: ignore[union-attr]
        told = (
            "L1 of values in 0..1, PSNR in decibels and SSIM (Gaussian window of 11 pixels), averaged over images."
            if self.is_paired
            else f"FID, KID, precision and recall, by the features of {self.extractor.describe()}."
        )
        found = [Decision("metrics", f"of images at {size} pixels; {self.monitor} chooses", told)]
        if not self.is_paired:
            optim = config.optim
            found.append(
                Decision(
                    "generators' optimiser",
                    f"{optim.optimizer}, betas {optim.betas or 'its own'}, schedule {optim.schedule}",
                    "CycleGAN's where no optimiser is asked for: half of the steps at the full rate, then down to 0."
                    " Its authors have batches of 1.",
                )
            )
        if any(PERCEPTUAL in (getattr(options, "loss", None) or ()) for options in config.methods or ()):
            from kdcli.tasks.translation.perceptual import EXTRACTOR, LEVELS, extractor

            extractor("cpu")
            reason = f"The loss {PERCEPTUAL} compares the features of its first {len(LEVELS)} stages, of length 1 each."
            found.append(Decision("extractor", f"{EXTRACTOR} (VGG16 of HED, frozen)", reason))
        return found

    @classmethod
    def facts_of(cls, model: Model, config: DataConfig | None) -> DataFacts:
        """Return the facts of no data."""
        return replace(DataFacts.of_labels((), task=cls.row().name), label_kind="image")

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what translates images."""
        from kdcli.tasks.translation.answers import ImageAnswers

        return ImageAnswers(self, samples, choice, deep_range=deep_range)

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return of each image itself, its target, and of every model the image and the error."""
        assert isinstance(batch, Batch)
        from kdcli.tasks.translation.pictures import panels_of

        return panels_of(batch.images, batch.targets, outputs, is_paired=self.is_paired)


def is_known(targets: Tensor) -> Tensor:
    """Return which of the targets (B, 3, H, W) are known, bool (B,)."""
    return targets.flatten(1).isfinite().all(dim=1)


def target_at(targets: Tensor, images: Tensor) -> Tensor:
    """Return targets (B, 3, H, W) at the size of ``images``, black where they are not known."""
    found = losses.resize_image(targets, (images.shape[2], images.shape[3]))
    return torch.where(is_known(targets)[:, None, None, None], found, -1.0)


def image_loss(prediction: Tensor, target: Tensor, terms: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of losses of every image, (B,).

    Args:
        prediction: (B, 3, H, W), from -1 to 1.
        target: likewise.
        terms: out of the row's ``losses``.

    Raises:
        UserError: the package of the extractor is not installed.
    """
    total = 0 * prediction.float().flatten(1).mean(dim=1)
    for name, weight in terms.items():
        if name == PERCEPTUAL:
            from kdcli.tasks.translation.perceptual import perceptual

            value = perceptual(prediction, target)
        else:
            value = {"l1": losses.image_l1, "l2": losses.image_l2}[name](prediction, target)
        total = total + weight * value
    return total
