"""More images like those of the data, out of random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ExtractorFacts, ModelFacts
from kdcli.base.reads import IMAGE, Reads
from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, Batch, open_for_more
from kdcli.machine.team import ALONE, Team
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.tasks.answers import Answers, Choice
from kdcli.tasks.base import DEFAULT_LOSS, AnyData, Cut, ImageTask
from kdcli.tasks.generative.extractor import Extractor, ImageDistances
from kdcli.tasks.meters import Meter, SampleSums
from kdcli.tasks.reports import Layout, Panel, Report

_USUAL: Mapping[str, Mapping[str, Any]] = {
    "augment": {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)},
    "optim": {
        "optimizer": "adam",
        "lr": 2e-4,
        "betas": (0.0, 0.999),
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "clip_grad": None,
    },
    "train": {"ema": 0.999},
}
"""Where nothing else is asked for: whole images, and BigGAN's optimiser for CIFAR."""


class ImageGeneration(ImageTask):
    """The task ``image-generation``: a student that turns random numbers, and a class where it knows any, into images.

    A sample's image is made of numbers that are its own: the same in every validation of a run. So as many images are
    made as a split has, and with its classes in their proportion, and the two sets are compared by the features of a
    frozen extractor.

    Args:
        class_names: of the data; empty where they have none.
        extractor: by whose features images are compared.
    """

    name = "image-generation"
    reports_last = True
    num_pictures = 64

    def __init__(self, class_names: Sequence[str] = (), extractor: ExtractorFacts | None = None) -> None:
        super().__init__(class_names)
        self.extractor = Extractor(extractor or DataConfig(name="none").extractor)

    @property
    def monitor(self) -> str:  # type: ignore[override]  # it names the extractor
        """FID with its sign changed."""
        return ImageDistances.monitor_of(self.extractor)

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images, with a class each where the data have classes."""
        data = open_for_more(config, seed=seed)
        facts = replace(data.facts, task=cls.row().name, label_kind="samples", extractor=config.extractor)
        return replace(data, facts=facts)

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``."""
        return cls(data.class_names, data.extractor)

    @classmethod
    def with_usual(cls, config: RunConfig, data: DataFacts) -> RunConfig:
        """Return the config with whole images and a GAN's optimiser, where it says nothing else."""
        changed = {}
        for name, values in _USUAL.items():
            section = getattr(config, name)
            own = {key: value for key, value in values.items() if key not in section.model_fields_set}
            if name == "optim" and not config.optim.optimizer.startswith("adam"):  # others may have no betas
                own.pop("betas", None)
            changed[name] = section.model_copy(update=own)
        return config.model_copy(update=changed)

    @classmethod
    def canvas_of(cls, models: Sequence[Model]) -> Sequence[Model]:
        """Return the student alone: real images come in its size, and the teacher sees what the discriminator saw."""
        return models[-1:]

    def reads(self, model: ModelFacts) -> Reads:
        """Return the head of the image."""
        return Reads(heads=(IMAGE,))

    def supervised_loss(
        self, logits: Any, targets: Any, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Refuse: nobody says what an image is to become.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.name} has no loss on labels.", "Use the method gan.")

    def meter(self, team: Team) -> Meter:
        """Return the meter of FID, KID, precision and recall."""
        return GenerationMeter(self.extractor, team)

    @property
    def layout(self) -> Layout:
        """The distances, with their extractor in their keys."""
        return Layout("image", ImageDistances.shown_of(self.extractor))

    def report(self) -> Report:
        """Return a report of FID, KID, precision and recall."""
        return GenerationReport(self.extractor, [key for _, key in self.layout.rows], len(self.class_names))

    def in_order(self, outputs: Any, columns: Sequence[int]) -> Any:
        """Return the images as they are: they have no columns of classes."""
        return outputs

    def cut_together(self, source: Any, models: Sequence[Model], notes: list[str]) -> Any:
        """Leave the samples, and note by what they are compared."""
        notes.append(
            f"By the features of {self.extractor.describe()}, of {len(source)} real images and as many made ones,"
            " always of the same random numbers. Numbers by other extractors, or of more or fewer images, can't be"
            " compared."
        )
        return source

    def check(self, teacher: Model | None, student: Model, data: Any) -> None:
        """Refuse a student that makes no images out of random numbers, and an extractor that can't be had."""
        if student.facts.task != self.row().name:
            raise UserError(
                f"{student.facts.name} makes no images out of random numbers.",
                "Name a generator: generator:biggan32 or generator:biggan64.",
            )
        self.extractor.describe()

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say whether classes are read, how images are compared, and what was taken because nothing was asked for."""
        facts: DataFacts = data.facts
        number, split = facts.num_validation, "validation"
        if student.facts.num_classes:
            reads, why = f"{student.facts.num_classes} classes", "Generator and discriminator are given the class."
        else:
            reads, why = "no classes", "The data have none."
            if facts.class_names:
                why = "Asked for: the data's labels are not read, but for drawing training images by class."
        return [
            Decision("conditional", reads, why),
            Decision(
                "extractor",
                self.extractor.describe(),
                f"FID, KID, precision and recall are of its features, of {number} real {split} images and as many made"
                " ones, always of the same random numbers. Numbers by other extractors, or of more or fewer images,"
                " can't be compared with them.",
            ),
            Decision(
                "best student",
                f"by FID ({self.monitor}, more is better)",
                "The best of many FIDs is lucky in part: result.json has the last one too.",
            ),
            Decision(
                "images",
                f"crop {config.augment.crop_scale[0]:g} to {config.augment.crop_scale[1]:g} of the area, flip"
                f" {config.augment.flip:g}",
                "What is done to real images is what the generator learns to make: by default whole images, which are"
                " squashed where they are not square. Metrics compare with whole images.",
            ),
            Decision(
                "generator's optimiser",
                f"{config.optim.optimizer}, betas {config.optim.betas or 'its own'}, schedule {config.optim.schedule},"
                f" weights averaged {config.train.ema or 'not'}",
                "As BigGAN's authors have it for CIFAR where nothing else is asked for; the average is what is kept.",
            ),
        ]

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return what every model makes of the random numbers of each sample, with the class where it knows any."""
        names = self.class_names
        labels = batch.targets.tolist() if names and isinstance(batch.targets, Tensor) else []
        titles = [names[label] for label in labels] or [""] * len(batch)
        drawn = {role: as_pixels(images).permute(0, 2, 3, 1).numpy() for role, images in outputs.items()}
        return [
            [Panel(titles[number], images[number], role=role) for role, images in drawn.items()]
            for number in range(len(batch))
        ]

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Any = None) -> Answers:
        """Refuse: it is asked for nothing but more images."""
        raise UserError(
            f"Models of the task {self.name} are given no images to say something about.",
            "'kdcli generate RUN --number 64' makes images.",
        )


def as_pixels(images: Tensor) -> Tensor:
    """Return images from -1 to 1 as uint8; what is beyond is clamped, NaN is black."""
    return ((images.float() + 1) * 127.5).nan_to_num(0).round().clamp(0, 255).to(torch.uint8)


class GenerationMeter:
    """The metrics of :class:`~kdcli.tasks.generative.extractor.ImageDistances` of a split and as many made images.

    Args:
        extractor: by whose features.
        team: of the processes that share the samples.
    """

    def __init__(self, extractor: Extractor, team: Team) -> None:
        self._distances, self._monitor = ImageDistances(extractor, team), ImageDistances.monitor_of(extractor)

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add made images (B, 3, H, W) from -1 to 1, and the batch's own; no metric is a sum over samples."""
        assert isinstance(batch, Batch)
        self._distances.add_real(batch.images.float() / 127.5 - 1, batch.samples)
        self._distances.add_generated(outputs, batch.samples)
        return {}

    def compute(self) -> dict[str, float]:
        """Return the metrics, with the FID as ``loss`` too: what is not finite is never the best."""
        found = self._distances.compute()
        return found | {"loss": -found[self._monitor]}


class GenerationReport:
    """The same metrics of a finished generator.

    Args:
        extractor: by whose features.
        keys: which metrics.
        num_classes: of the data; 0 where they have none.
    """

    def __init__(self, extractor: Extractor, keys: Sequence[str], num_classes: int) -> None:
        self._meter, self._keys = GenerationMeter(extractor, ALONE), keys
        self._counts = torch.zeros(max(1, num_classes), dtype=torch.int64)

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add made images (B, 3, H, W) from -1 to 1, and the batch's own."""
        assert isinstance(batch.targets, Tensor)
        self._meter.update(outputs, batch)
        self._counts += batch.targets.cpu().bincount(minlength=len(self._counts))

    def compute(self) -> dict[str, Any]:
        """Return every metric; None of those that take more images, or are not finite.

        Raises:
            UserError: there are fewer than two images of a kind.
        """
        found = self._meter.compute()
        return {key: found[key] if math.isfinite(found.get(key, math.nan)) else None for key in self._keys}

    def counts(self) -> list[int]:
        """Return how many images were made of each class, or of all where there are none."""
        counts: list[int] = self._counts.tolist()
        return counts

    def notes(self, name: str) -> list[str]:
        """Say nothing."""
        return []

    def agreement(self, other: Any) -> float | None:
        """Return None: generators of the same random numbers have no images in common."""
        return None
