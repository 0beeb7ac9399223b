"""From an image to what a model wants: :func:`fit` for evaluation, :func:`prepare` for every batch."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from kdcli.base.facts import Preprocessing

Pixels = TypeVar("Pixels", Image.Image, Tensor)

_MAX_ASPECT = 16
"""A longer image is cropped to this ratio of its sides before it is resized: as a whole it could fill the memory."""

_HAS_LANCZOS = tuple(int(part) for part in torchvision.__version__.split(".")[:2]) >= (0, 27)
_TORCHVISION = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS if _HAS_LANCZOS else InterpolationMode.BICUBIC,
}
"""What transformers resizes tensors by; before Lanczos was there it took bicubic in its place, and the others never were."""
_SMOOTH = {"lanczos": "bicubic", "box": "bilinear", "hamming": "bilinear"}
"""What a canvas is resized by in training, on any device, where torch has no such filter."""


def fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize to ``preprocessing.resize`` as its geometry says, then cut ``image_size`` out of the middle.

    Pixel for pixel what the model's library does: timm's evaluation transform where the kernels are Pillow's, transformers'
    image processor where they are torchvision's. Only an image whose sides are further apart than 16:1 and that is to be
    cropped may differ by a rounding.
    """
    if preprocessing.geometry == "crop":
        image = _shortened(image)
    height, width = _resized(image, preprocessing)
    if preprocessing.kernels == "torchvision":
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        mode = _TORCHVISION[preprocessing.interpolation]
        pixels = functional.resize(pixels, [height, width], interpolation=mode, antialias=True)
        return Image.fromarray(_middle(pixels, preprocessing).permute(1, 2, 0).contiguous().numpy())
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling[preprocessing.interpolation.upper()])
    return _middle(image, preprocessing)


def _resized(image: Image.Image, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the (height, width) that an image is resized to, rounded as the libraries do."""
    height, width = preprocessing.resize
    if preprocessing.geometry == "squash":
        return height, width
    if preprocessing.geometry == "crop" and height == width:
        if image.width <= image.height:
            return int(width * image.height / image.width), width
        return height, int(height * image.width / image.height)
    ratios = (image.height / height, image.width / width)
    ratio = max(ratios) if preprocessing.geometry == "border" else min(ratios)
    return max(1, round(image.height / ratio)), max(1, round(image.width / ratio))


def _middle(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Cut ``image_size`` out of the middle; where it is larger, after a border: black, or the mean colour's."""
    height, width = functional.get_size(image)
    tall, wide = preprocessing.image_size
    if tall > height or wide > width:
        down, right = max(0, tall - height), max(0, wide - width)
        fill = [round(255 * value) for value in preprocessing.mean] if preprocessing.geometry == "border" else 0
        image = functional.pad(image, [right // 2, down // 2, (right + 1) // 2, (down + 1) // 2], fill=fill)
        height, width = height + down, width + right
    above, before = (height - tall) / 2, (width - wide) / 2
    if preprocessing.kernels == "pillow":
        above, before = round(above), round(before)
    return functional.crop(image, int(above), int(before), tall, wide)


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
        preprocessing: the model's; ``resize`` and ``geometry`` play no part.

    Returns:
        float32 ``(B, 3, h, w)``.
    """
    images = images.to(torch.float32)
    if tuple(images.shape[-2:]) != preprocessing.image_size:
        mode = InterpolationMode(_SMOOTH.get(preprocessing.interpolation, preprocessing.interpolation))
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
