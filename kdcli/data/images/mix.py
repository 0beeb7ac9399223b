"""Mixup and cutmix of whole batches."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import one_hot

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import AugmentConfig
from kdcli.data.batch import AnyBatch
from kdcli.data.images.batch import Batch
from kdcli.machine.seeding import seeded


class Mix:
    """Mixes the images of a batch in pairs, and their targets alike.

    On the canvas, before any model's own preprocessing: every model sees the same mixture. What is drawn is a pure
    function of (seed, epoch, step), on any device. The first image is paired with the second, the third with the fourth
    and so on; the last of an odd number stays as it is. So several processes, each with a slice of an even number of
    images, mix the same pairs as one process. Mixup: Zhang et al., ICLR 2018; cutmix: Yun et al., ICCV 2019.

    Args:
        augment: ``mixup`` and ``cutmix`` are the alphas of their Beta distributions; with both, each batch gets one of
            them, with equal probability.
        num_classes: C.
        seed: the run's.
    """

    def __init__(self, augment: AugmentConfig, num_classes: int, seed: int) -> None:
        kinds = ((_mixup, augment.mixup), (_cutmix, augment.cutmix))
        self._choices = [(mix, alpha) for mix, alpha in kinds if alpha > 0]
        self._num_classes = num_classes
        self._seed = seed

    def __call__(self, batch: AnyBatch, epoch: int, step: int) -> AnyBatch:
        """Return the batch mixed, with float32 images in [0, 255] and float32 targets ``(B, C + 1)``.

        An unlabelled image has all of its mass in the last column. With neither mixup nor cutmix the batch is returned
        as it is.

        Raises:
            UserError: the samples can't be mixed.
        """
        if not self._choices:
            return batch
        if not isinstance(batch, Batch) or not batch.can_mix:
            raise UserError(
                "augment.mixup and augment.cutmix mix images with a class each, and these have other targets.",
                "Leave both at 0.",
            )
        classes = torch.where(batch.targets == UNLABELLED, self._num_classes, batch.targets)
        targets = one_hot(classes, self._num_classes + 1).to(torch.float32)
        partner = (torch.arange(len(batch), device=targets.device) ^ 1).clamp(max=len(batch) - 1)
        images = batch.images.to(torch.float32)
        with seeded("mix", self._seed, epoch, step):
            mix, alpha = self._choices[int(torch.randint(len(self._choices), ()))]
            share = float(Beta(alpha, alpha).sample())
            images, share = mix(images, images[partner], share)
        return replace(batch, images=images, targets=share * targets + (1 - share) * targets[partner])


def _mixup(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Blend ``images`` by ``share`` with ``others``."""
    return share * images + (1 - share) * others, share


def _cutmix(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Put a box out of ``others`` into ``images``, at a random place; return the share of pixels that stay too."""
    height, width = images.shape[2:]
    y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    half = 0.5 * math.sqrt(1 - share)
    top, bottom = max(y - int(half * height), 0), min(y + int(half * height), height)
    left, right = max(x - int(half * width), 0), min(x + int(half * width), width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
