"""CRAFT: heat maps of characters and of the space between them, by VGG16 and a U-shaped decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.packaged.rows import Packaged
from kdcli.models.packaged.weights import read_pickled
from kdcli.models.weights import Tensors

_PLAN = (
    64,
    64,
    "pool",
    128,
    128,
    "end",
    "pool",
    256,
    256,
    "end",
    256,
    "pool",
    512,
    512,
    "end",
    512,
    "pool",
    512,
    512,
    "end",
)
"""VGG16's first twelve convolutions, and where the four slices of them end that are handed on."""


class CRAFT(nn.Module):
    """Character region awareness for text detection (Baek et al., CVPR 2019, figure 2), with the authors' names.

    The trunk is VGG16 with batch normalisation to its twelfth convolution, and two convolutions in place of its
    classifier. Layers keep VGG16's numbers. The authors' slices begin with a ReLU that writes over what the one before
    handed on; here each slice but the fourth, whose successor begins with a pooling, ends with it: the same numbers.

    Attributes:
        levels: the modules whose outputs :meth:`trunk` gives.
    """

    levels = tuple(f"slice{number}" for number in range(1, 6))

    def __init__(self) -> None:
        super().__init__()
        self.slice1, self.slice2, self.slice3, self.slice4 = _slices()
        wide = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.slice5 = nn.Sequential(nn.MaxPool2d(3, 1, 1), wide, nn.Conv2d(1024, 1024, 1))
        self.upconv1 = _Up(1024 + 512, 512, 256)
        self.upconv2 = _Up(512 + 256, 256, 128)
        self.upconv3 = _Up(256 + 128, 128, 64)
        self.upconv4 = _Up(128 + 64, 64, 32)
        layers: list[nn.Module] = []
        for width, wider, side in ((32, 32, 3), (32, 32, 3), (32, 16, 3), (16, 16, 1)):
            layers += [nn.Conv2d(width, wider, side, padding=side // 2), nn.ReLU()]
        self.conv_cls = nn.Sequential(*layers, nn.Conv2d(16, 2, 1))

    def trunk(self, images: Tensor) -> list[Tensor]:
        """Return maps of 128, 256, 512, 512 and 1024 channels at strides 2, 4, 8, 16 and 16."""
        levels = []
        for part in (self.slice1, self.slice2, self.slice3, self.slice4, self.slice5):
            images = part(images)
            levels.append(images)
        return levels

    def maps(self, levels: list[Tensor]) -> Tensor:
        """Return the scores (B, 2, H/2, W/2) of what :meth:`trunk` gave."""
        first, second, third, fourth, last = levels
        merged = self.upconv1(torch.cat([last, fourth], dim=1))
        for up, level in ((self.upconv2, third), (self.upconv3, second), (self.upconv4, first)):
            merged = F.interpolate(merged, level.shape[2:], mode="bilinear", align_corners=False)
            merged = up(torch.cat([merged, level], dim=1))
        scores: Tensor = self.conv_cls(merged)
        return scores

    def forward(self, images: Tensor) -> Tensor:
        """Return how far each position is a character's middle, and the middle between two of a word.

        Args:
            images: (B, 3, H, W), RGB, normalised as ImageNet's; sides of 16 pixels or more.

        Returns:
            Scores (B, 2, H/2, W/2), trained to be Gaussians between 0 and 1: region, affinity.
        """
        return self.maps(self.trunk(images))


def _slices() -> list[nn.Sequential]:
    """Return the four slices of VGG16, their layers by VGG16's numbers."""
    width, number, layers, slices = 3, 0, nn.Sequential(), []
    for step in _PLAN:
        if step == "end":
            slices.append(layers)
            layers = nn.Sequential()
            continue
        parts: tuple[nn.Module, ...] = (nn.MaxPool2d(2, 2),)
        if step != "pool":
            wider = int(step)
            parts = (nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU())
            width = wider
        for part in parts:
            layers.add_module(str(number), part)
            number += 1
    slices[-1] = slices[-1][:-1]  # without its ReLU, as CRAFT says
    return slices


class _Up(nn.Module):
    def __init__(self, width: int, middle: int, wider: int) -> None:
        super().__init__()
        first = (nn.Conv2d(width, middle, 1), nn.BatchNorm2d(middle), nn.ReLU())
        self.conv = nn.Sequential(*first, nn.Conv2d(middle, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        merged: Tensor = self.conv(features)
        return merged


def read(row: Packaged) -> Tensors:
    """Return CRAFT's weights by the names of :class:`CRAFT`: the file's, without ``module.`` and ``basenet.``.

    Raises:
        UserError: the file is not there or damaged.
    """
    return {name.removeprefix("module.").removeprefix("basenet."): value for name, value in read_pickled(row).items()}
