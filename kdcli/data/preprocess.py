"""From an image to what a model wants: :func:`fit` for evaluation, :func:`prepare` for every batch."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from kdcli.facts import Preprocessing

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


_MAX_ASPECT = 16
"""A longer image is cropped to this ratio of its sides before it is resized: as a whole it could fill the memory."""


def fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize so that the image just covers ``image_size / crop_pct``, then centre-crop to ``image_size``.

    For square sizes this is the usual ``Resize(floor(size / crop_pct))`` of the short side and ``CenterCrop(size)``,
    pixel for pixel.

    Raises:
        ValueError: the interpolation has no PIL equivalent.
    """
    if preprocessing.interpolation not in _RESAMPLING:
        raise ValueError(f"interpolation is {preprocessing.interpolation!r}, not one of {', '.join(_RESAMPLING)}")
    image = _shortened(image)
    height, width = preprocessing.image_size
    cover_height = math.floor(height / preprocessing.crop_pct)
    cover_width = math.floor(width / preprocessing.crop_pct)
    if cover_height * image.width >= cover_width * image.height:
        size = (int(cover_height * image.width / image.height), cover_height)
    else:
        size = (cover_width, int(cover_width * image.height / image.width))
    if size != image.size:
        image = image.resize(size, _RESAMPLING[preprocessing.interpolation])
    return functional.center_crop(image, [height, width])


def _shortened(image: Image.Image) -> Image.Image:
    """Return the middle of an image whose sides are further apart than ``_MAX_ASPECT``, others as they are."""
    short, long = sorted(image.size)
    if long <= _MAX_ASPECT * short:
        return image
    width, height = (min(side, _MAX_ASPECT * short) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def prepare(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn a batch of canvases into a model's input, on the device that they are on.

    A canvas of another size than the model's is resized, antialiased and with the model's interpolation; values stay in
    [0, 255], as they do when PIL resizes. Then ``(x / 255 - mean) / std``, and the model's order of channels.

    Args:
        images: RGB ``(B, 3, H, W)``, uint8 or floating, in [0, 255]; left as they are.
        preprocessing: the model's; ``crop_pct`` plays no part.

    Returns:
        float32 ``(B, 3, h, w)``.
    """
    images = images.to(torch.float32)
    if tuple(images.shape[-2:]) != preprocessing.image_size:
        mode = InterpolationMode(preprocessing.interpolation)
        images = functional.resize(images, list(preprocessing.image_size), interpolation=mode, antialias=True)
        if mode is InterpolationMode.BICUBIC:  # it overshoots at edges
            images = images.clamp(0, 255)
    mean, std = _per_channel(preprocessing.mean, images.device), _per_channel(preprocessing.std, images.device)
    images = (images - mean).div_(std)
    return images.flip(1) if preprocessing.channels == "BGR" else images


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return ``values * 255`` as (3, 1, 1); filled on the device, as a copy to a GPU would wait for it."""
    with torch.inference_mode(False):  # the teacher asks in inference mode, the student needs an ordinary tensor
        return torch.cat([torch.full((1, 1, 1), value * 255, device=device) for value in values])
