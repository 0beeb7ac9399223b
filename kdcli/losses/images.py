"""Differences between images, ``(B, 3, H, W)`` with values from -1 to 1, each a value for every image.

So one process and several give the same, and an image that is not known can be left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.normalize import full_precision

MOST_PSNR = 100.0
"""Decibels of images that are all but equal, where the logarithm has no bound."""
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def image_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of each image, ``(B,)``, in units of the values: at most 2."""
    return (full_precision(prediction) - full_precision(target)).abs().flatten(1).mean(dim=1)


def image_l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of each image, ``(B,)``: at most 4."""
    return (full_precision(prediction) - full_precision(target)).square().flatten(1).mean(dim=1)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in decibels, ``(B,)``, at most :data:`MOST_PSNR`.

    ``10 log10(R² / MSE)`` with the range ``R`` of the values, which is 2.
    """
    return (10 * (4 / image_l2(prediction, target).clamp(min=1e-12)).log10()).clamp(max=MOST_PSNR)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each image, ``(B,)``, from -1 to 1 (Wang et al., IEEE TIP 2004, eq. 13).

    With a Gaussian window of 11x11 pixels and a deviation of 1.5, K1 = 0.01 and K2 = 0.03, of each channel, and the
    mean over the channels and all positions where the whole window lies within the image. Of images with a side below
    11 pixels the window is the largest odd one that fits.
    """
    prediction, target = full_precision(prediction), full_precision(target)
    side = min(_WINDOW, *prediction.shape[2:])
    side -= 1 - side % 2
    places = torch.arange(side, dtype=prediction.dtype, device=prediction.device) - side // 2
    window = (-places.square() / (2 * _SIGMA**2)).exp()
    window = window / window.sum()

    def blurred(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, window[None, None, :, None]), window[None, None, None, :])

    mean_p, mean_t = blurred(prediction), blurred(target)
    var_p = blurred(prediction.square()) - mean_p.square()
    var_t = blurred(target.square()) - mean_t.square()
    common = blurred(prediction * target) - mean_p * mean_t
    c1, c2 = (2 * _K1) ** 2, (2 * _K2) ** 2
    # Shifting values keeps variances, but not the means of luminance, which are of values from 0.
    mean_p, mean_t = mean_p + 1, mean_t + 1
    similarity = ((2 * mean_p * mean_t + c1) * (2 * common + c2)) / (
        (mean_p.square() + mean_t.square() + c1) * (var_p + var_t + c2)
    )
    return similarity.unflatten(0, prediction.shape[:2]).flatten(1).mean(dim=1)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (B, 3, H, W) at another size: smoothly, and antialiased where they become smaller."""
    if tuple(image.shape[2:]) == size:
        return image
    return F.interpolate(full_precision(image), size, mode="bilinear", antialias=True)
