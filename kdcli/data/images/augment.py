"""Training augmentation: a pure function of (seed, epoch, sample index)."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from kdcli.base.errors import UserError
from kdcli.config.data import AugmentConfig
from kdcli.machine.seeding import seeded

ERASED = (124, 116, 104)
"""RGB of erased rectangles: ImageNet's mean, so about 0 after the usual normalisation."""


class Augmentation:
    """Augments one image as ``augment`` says.

    Random resized crop, padded crop, flip, policy and colour jitter run on the PIL image, whose kernels give the same bits on any
    number of threads; all of torchvision's transforms draw from torch's global generator and from no other.

    Args:
        augment: what to do; mixing is :class:`~kdcli.data.images.mix.Mix`'s part.
        canvas: (height, width) of the result.
        seed: the run's.

    Raises:
        UserError: a range whose lower end is above its upper end.
    """

    def __init__(self, augment: AugmentConfig, *, canvas: tuple[int, int], seed: int) -> None:
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(augment, key)
            if low > high:
                raise UserError(f"augment.{key} is [{low}, {high}].", "The lower end comes first.")
        self._transform = v2.Compose(_transforms(augment, canvas))
        self._seed = seed

    def __call__(self, image: Image.Image, *, epoch: int, index: int) -> Tensor:
        """Return uint8 ``(3, H, W)``; torch's generators are left as they were."""
        with seeded("augment", self._seed, epoch, index):
            return self._transform(image)


def _transforms(augment: AugmentConfig, canvas: tuple[int, int]) -> list[Any]:
    size, bicubic = list(canvas), InterpolationMode.BICUBIC
    transforms: list[Any] = []
    if augment.crop_scale == (1.0, 1.0):
        transforms.append(v2.Resize(size, interpolation=bicubic, antialias=True))
    else:
        transforms.append(
            v2.RandomResizedCrop(
                size, scale=augment.crop_scale, ratio=augment.crop_ratio, interpolation=bicubic, antialias=True
            )
        )
    if augment.pad > 0:
        transforms.append(v2.RandomCrop(size, padding=augment.pad))
    if augment.flip > 0:
        transforms.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.policy == "trivial":
        transforms.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    elif augment.policy == "rand":
        transforms.append(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))
    elif augment.policy == "three":
        transforms.append(v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), _Blur()]))
    if (strength := augment.color_jitter) > 0:
        transforms.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    transforms.append(v2.PILToTensor())
    if augment.erase > 0:
        transforms.append(v2.RandomErasing(augment.erase, value=ERASED, inplace=True))
    return transforms


class _Blur:
    """PIL's Gaussian blur with a radius between 0.1 and 2 pixels, as in 3-Augment: torchvision's would leave PIL."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))
