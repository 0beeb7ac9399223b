"""From an image to what a model wants: :func:`fit` for evaluation, :func:`prepare` for every batch."""

from __future__ import annotations

from functools import lru_cache

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from kdcli.base.facts import Preprocessing
from kdcli.data.images.decode import image_of, values_of
from kdcli.data.images.geometry import Crop, Geometry, Pad, Resize
from kdcli.data.images.photo import Photo, Pixels

_MAX_ASPECT = 16
"""A longer image is cropped to this ratio of its sides before it is resized: as a whole it could fill the memory."""

_HAS_LANCZOS = tuple(int(part) for part in torchvision.__version__.split(".")[:2]) >= (0, 27)
_TORCHVISION = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS if _HAS_LANCZOS else InterpolationMode.BICUBIC,
}
"""What transformers resizes tensors by; bicubic stood for Lanczos before it was there."""
_SMOOTH = {"lanczos": "bicubic", "box": "bilinear", "hamming": "bilinear"}
"""What a canvas is resized by in training, on any device, where torch has no such filter."""


def fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize to ``preprocessing.resize`` as its geometry says, then cut ``image_size`` out of the middle.

    Pixel for pixel what the model's library does: timm's evaluation transform where the kernels are Pillow's,
    transformers' image processor where they are torchvision's. Only an image whose sides are further apart than 16:1
    and that is to be cropped may differ by a rounding.
    """
    return fit_as(fit_geometry(image, preprocessing), image, preprocessing)


def fit_as(geometry: Geometry, image: Pixels, preprocessing: Preprocessing) -> Image.Image:
    """Move an image as :func:`fit_geometry` said, by the kernels of the model's library.

    A photo is decoded at a part of its size, where that is enough; it is then resized by Pillow's kernels.
    """
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    if isinstance(image, Photo):
        image, geometry = image.begin(geometry, resampling)
    fill = [round(255 * value) for value in preprocessing.mean] if preprocessing.geometry == "border" else 0
    if preprocessing.kernels == "torchvision":
        mode = _TORCHVISION[preprocessing.interpolation]

        def resize(pixels: Tensor, height: int, width: int) -> Tensor:
            return functional.resize(pixels, [height, width], interpolation=mode, antialias=True)

        pixels = torch.from_numpy(values_of(image).copy()).permute(2, 0, 1).contiguous()
        pixels = geometry.of_image(pixels, resize=resize, fill=fill)
        return image_of(pixels.permute(1, 2, 0).contiguous().numpy())

    return geometry.of_image(
        image, resize=lambda pil, height, width: pil.resize((width, height), resampling), fill=fill
    )


def fit_geometry(image: Pixels, preprocessing: Preprocessing) -> Geometry:
    """Return how :func:`fit` moves the pixels of an image."""
    return geometry_at(image.height, image.width, preprocessing)


def geometry_at(height: int, width: int, preprocessing: Preprocessing) -> Geometry:
    """Return how :func:`fit` moves the pixels of an image of this size: crops, resizes and borders alone."""
    moves: list[Crop | Resize | Pad] = []
    if preprocessing.geometry == "crop":
        longest = _MAX_ASPECT * min(width, height)
        if max(width, height) > longest:
            tall, wide = min(height, longest), min(width, longest)
            moves.append(Crop((height - tall) // 2, (width - wide) // 2, tall, wide))
            height, width = tall, wide
    resized = _resized(height, width, preprocessing)
    if resized != (height, width):
        moves.append(Resize(*resized))
    height, width = resized
    tall, wide = preprocessing.image_size
    if tall > height or wide > width:  # a border: black, or the mean colour's
        down, right = max(0, tall - height), max(0, wide - width)
        moves.append(Pad(right // 2, down // 2, (right + 1) // 2, (down + 1) // 2))
        height, width = height + down, width + right
    if (tall, wide) != (height, width):
        above, before = (height - tall) / 2, (width - wide) / 2
        if preprocessing.kernels == "pillow":
            above, before = round(above), round(before)
        moves.append(Crop(int(above), int(before), tall, wide))
    return Geometry(tuple(moves))


def _resized(own_height: int, own_width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the (height, width) that an image is resized to, rounded as the libraries do."""
    height, width = preprocessing.resize
    if preprocessing.geometry == "squash":
        return height, width
    if preprocessing.geometry == "crop" and height == width:
        if own_width <= own_height:
            return int(width * own_height / own_width), width
        return height, int(height * own_width / own_height)
    ratios = (own_height / height, own_width / width)
    ratio = max(ratios) if preprocessing.geometry == "border" else min(ratios)
    return max(1, round(own_height / ratio)), max(1, round(own_width / ratio))


def prepare(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn a batch of canvases into a model's input, on the device that they are on.

    A canvas of another size than the model's is resized, antialiased and with the model's interpolation; values stay in
    [0, 255], as they do when PIL resizes. Then ``(x / 255 - mean) / std``, and the model's order of channels.

    Args:
        images: RGB ``(B, 3, H, W)``, or of the model's number of channels, uint8 or floating, in [0, 255]; left as
            they are.
        preprocessing: the model's; ``resize`` and ``geometry`` play no part.

    Returns:
        float32 ``(B, 3, h, w)``, or likewise.
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
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return ``values * 255`` as (channels, 1, 1); filled on the device, as a copy to a GPU would wait for it."""
    with torch.inference_mode(False):  # the teacher asks in inference mode, the student needs an ordinary tensor
        return torch.cat([torch.full((1, 1, 1), value * 255, device=device) for value in values])
