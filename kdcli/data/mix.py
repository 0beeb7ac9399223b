"""Mixup and cutmix of whole batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import one_hot
from torchvision.transforms import v2

from kdcli.config import AugmentConfig
from kdcli.data.batch import Batch
from kdcli.data.seeding import seeded
from kdcli.facts import UNLABELLED


class Mix:
    """Mixes the images of a batch with one another, and their targets alike.

    On the canvas, before any model's own preprocessing: every model sees the same mixture. What is drawn is a pure
    function of (seed, epoch, step), on any device. Mixup: Zhang et al., ICLR 2018; cutmix: Yun et al., ICCV 2019.

    Args:
        augment: ``mixup`` and ``cutmix`` are the alphas of their Beta distributions; with both, each batch gets one of
            them, with equal probability.
        num_classes: C.
        seed: the run's.
    """

    def __init__(self, augment: AugmentConfig, num_classes: int, seed: int) -> None:
        self._choices: list[Any] = []
        if augment.mixup > 0:
            self._choices.append(v2.MixUp(alpha=augment.mixup))
        if augment.cutmix > 0:
            self._choices.append(v2.CutMix(alpha=augment.cutmix))
        self._num_classes = num_classes
        self._seed = seed

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Return the batch mixed, with float32 images in [0, 255] and float32 targets ``(B, C + 1)``.

        An unlabelled image has all of its mass in the last column. With neither mixup nor cutmix the batch is returned
        as it is.
        """
        if not self._choices:
            return batch
        classes = torch.where(batch.targets == UNLABELLED, self._num_classes, batch.targets)
        targets = one_hot(classes, self._num_classes + 1).to(torch.float32)
        with seeded("mix", self._seed, epoch, step):
            choice = int(torch.randint(len(self._choices), ()))
            images, targets = self._choices[choice](batch.images.to(torch.float32), targets)
        return replace(batch, images=images, targets=targets)
