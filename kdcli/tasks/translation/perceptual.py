"""A difference between images by the features of a frozen network, whose weights are in a package."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.models import TeacherConfig
from kdcli.data import prepare
from kdcli.models import load_teacher
from kdcli.models.base import Model

EXTRACTOR = "package:hed"
"""VGG16 as HED was trained from it."""
LEVELS = ("block1", "block2", "block3", "block4")
"""The first of its stages: images of 16 pixels have features at all of them."""


@lru_cache(maxsize=2)
def extractor(device: str) -> Model:
    """Return the frozen network.

    Raises:
        UserError: its package is not installed.
    """
    try:
        model = load_teacher(TeacherConfig(name=EXTRACTOR), seed=0)
    except UserError as error:
        raise UserError(
            f"The loss 'perceptual' compares features of {EXTRACTOR}. {error.message}",
            f"{error.hint} Or leave perceptual out of the losses.",
        ) from error
    model.open_taps(LEVELS)
    return model.to(device)


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
    model = extractor(str(prediction.device))
    height, width = prediction.shape[2:]
    wanted = model.facts.preprocessing.at((height, width))  # type: ignore[union-attr]
    with torch.autocast(prediction.device.type, enabled=False):
        ours, theirs = (
            model(prepare((side.float() + 1) * 127.5, wanted), Reads(maps=LEVELS)).maps for side in (prediction, target)
        )
        values = [
            (F.normalize(ours[level], dim=1) - F.normalize(theirs[level], dim=1)).square().sum(dim=1).mean(dim=(1, 2))
            for level in LEVELS
        ]
        return torch.stack(values).sum(dim=0)
