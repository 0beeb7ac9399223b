"""The teacher's embedding space of images, without labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, Batch, ImageData, open_unlabelled
from kdcli.data.images.unlabelled import labelled_sample
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.tasks.base import AnyData, Cut
from kdcli.tasks.embedding.texts import SentenceEmbedding
from kdcli.tasks.features.frozen import NEIGHBOURS, STRENGTHS


class ImageEmbedding(SentenceEmbedding):
    """The task ``image-embedding``: its metrics are those of texts."""

    name = "image-embedding"
    noun = "image"

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images without labels, with those that features are measured on."""
        return open_unlabelled(config, evaluation, seed=seed)

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say how the student's features are measured."""
        return [_describe_measurement(config, data.labelled)]

    def _keys(self, batch: AnyBatch) -> Sequence[Hashable]:
        assert isinstance(batch, Batch)
        return keys_of(batch.images)


def keys_of(images: Tensor) -> list[tuple[torch.Size, int]]:
    """Return what tells each image from all others: the same on any device, and the images stay where they are.

    A sum of the values with random factors, modulo 2**64: two images of a shape have the same with a chance below
    2**-56.

    Args:
        images: uint8 ``(B, 3, H, W)``.
    """
    flat = images.flatten(1)
    factors = _factors(flat.shape[1], flat.device)
    sums = torch.stack([(image * factors).sum() for image in flat])  # one by one: eight times as large as the image
    return [(images.shape[1:], key) for key in sums.tolist()]


@lru_cache(maxsize=2)
def _factors(count: int, device: torch.device) -> Tensor:
    """Return random numbers, int64 ``(count,)``, the same on any device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator).to(device)


def _describe_measurement(config: RunConfig, labelled: ImageData | None) -> Decision:
    """Return the decision on how the student's features are measured."""
    if labelled is None or not config.test:
        reason = (
            "The test split is left alone (test: false)."
            if labelled is not None
            else "Asked for by --eval-data none."
            if config.eval_data is not None
            else "There are no labels to measure features by; --eval-data names labelled images."
        )
        return Decision("evaluation", "against the teacher alone", reason)
    split, source = labelled.held_out
    train, held_out = labelled_sample(labelled.train), labelled_sample(source)
    return Decision(
        "evaluation",
        f"{NEIGHBOURS}-NN and linear probe on {labelled.facts.name}: {len(labelled.facts.class_names)} classes,"
        f" {len(train)} training and {len(held_out)} {split} images",
        "At the end alone, of the student's frozen features, beside those of the teacher and of the student as"
        " initialised."
        f" The probe's penalty is the best of C = {', '.join(f'{c:g}' for c in STRENGTHS)} by cross-validation on the"
        " training images. --eval-data names other labelled images, or none.",
    )
