"""A difference between images by the features of a frozen network, whose weights are in a package."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.models.packaged.loading import with_weights
from kdcli.models.packaged.rows import ROWS

_ROW = ROWS["hed"]
LEVELS = 4
"""So many of VGG16's stages, the first ones: images of 16 pixels have features at all of them."""
EXTRACTOR = "package:hed"


@lru_cache(maxsize=2)
def extractor(device: str) -> nn.Module:
    """Return the frozen network: VGG16 as HED was trained from it.

    Raises:
        UserError: its package is not installed.
    """
    try:
        return with_weights(_ROW).eval().requires_grad_(False).to(device)
    except UserError as error:
        raise UserError(
            f"The loss 'perceptual' compares features of {EXTRACTOR}. {error.message}",
            f"{error.hint} Or leave perceptual out of the losses.",
        ) from error


def perceptual(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the difference of features of each image, ``(B,)``, at most 4 for each of the :data:`LEVELS`.

    As LPIPS without its learnt weights (Zhang et al., CVPR 2018, eq. 1): at every position features have length 1, the
    squared difference is summed over channels, averaged over positions, and summed over the levels.

    Args:
        prediction: images (B, 3, H, W), from -1 to 1.
        target: likewise.

    Raises:
        UserError: the network's package is not installed.
    """
    network = extractor(str(prediction.device))
    total = torch.zeros(len(prediction), device=prediction.device)
    with torch.autocast(prediction.device.type, enabled=False):
        sides = [_prepared(side) for side in (prediction, target)]
        for number in range(1, LEVELS + 1):
            sides = [network.get_submodule(f"block{number}")(side) for side in sides]
            ours, theirs = (nn.functional.normalize(side, dim=1) for side in sides)
            total = total + (ours - theirs).square().sum(dim=1).mean(dim=(1, 2))
    return total


def _prepared(images: Tensor) -> Tensor:
    """Return images as the network takes them: BGR of 0 to 255 minus the mean."""
    mean = images.new_tensor(_ROW.preprocessing.mean, dtype=torch.float32)[:, None, None] * 255
    return ((images.float() + 1) * 127.5 - mean).flip(1)
