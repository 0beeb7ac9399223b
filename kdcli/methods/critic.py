"""BigGAN's discriminators for images of 32 and 64 pixels: a score, and the features that it is made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_WIDTHS = {32: (4, 4, 4, 4), 64: (1, 2, 4, 8, 16)}
"""Of images of this side: channels after each block, in multiples of ``channels``."""
_HALVED = {32: 2, 64: 4}
"""After so many of the first blocks the sides are halved."""
_GENERATORS = {32: 4, 64: 2}
"""Channels of the generator's last block for such images, in multiples of its own ``channels``."""


def normed(layer: nn.Module) -> nn.Module:
    """Return a layer whose weight is over its largest singular value (arXiv 1802.05957); it starts at N(0, 0.02)."""
    nn.init.normal_(layer.weight, 0.0, 0.02)  # type: ignore[arg-type]
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return spectral_norm(layer)


class DownBlock(nn.Module):
    """A residual block that may halve the sides."""

    def __init__(self, width: int, wanted: int, *, is_first: bool, halves: bool) -> None:
        super().__init__()
        self.is_first, self.halves = is_first, halves
        self.conv1 = normed(nn.Conv2d(width, wanted, 3, padding=1))
        self.conv2 = normed(nn.Conv2d(wanted, wanted, 3, padding=1))
        is_kept = width == wanted and not halves
        self.skip = nn.Identity() if is_kept else normed(nn.Conv2d(width, wanted, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, wanted, H, W), or half as high and wide."""
        inner = self.conv1(maps if self.is_first else F.relu(maps))
        inner = self.conv2(F.relu(inner))
        beside = maps
        if self.halves:
            inner = F.avg_pool2d(inner, 2)
        if self.is_first and self.halves:
            beside = self.skip(F.avg_pool2d(beside, 2))
        else:
            beside = self.skip(beside)
            beside = F.avg_pool2d(beside, 2) if self.halves else beside
        added: Tensor = inner + beside
        return added


class Critic(nn.Module):
    """BigGAN's discriminator (Brock et al., ICLR 2019) without attention; every weight is spectrally normalised.

    Args:
        side: of the images in pixels: 32 or 64.
        channels: of the narrowest multiple; 64 in the paper for CIFAR.
        num_classes: of a projection discriminator (arXiv 1802.05637); 0 for one that knows no classes.

    Attributes:
        width: channels of its features.
    """

    def __init__(self, side: int, channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [channels * multiple for multiple in _WIDTHS[side]]
        before = [3, *widths[:-1]]
        self.blocks = nn.ModuleList(
            DownBlock(width, wanted, is_first=number == 0, halves=number < _HALVED[side])
            for number, (width, wanted) in enumerate(zip(before, widths, strict=True))
        )
        self.width = widths[-1]
        self.score = normed(nn.Linear(self.width, 1))
        self.classes = normed(nn.Embedding(num_classes, self.width)) if num_classes else None

    def features(self, images: Tensor) -> Tensor:
        """Return (B, width), summed over positions, of images (B, 3, H, W) from -1 to 1."""
        maps = images
        for block in self.blocks:
            maps = block(maps)
        return F.relu(maps).sum(dim=(2, 3))

    def scores(self, features: Tensor, classes: Tensor | None) -> Tensor:
        """Return a score (B,) of features: the higher, the more it takes the image for real.

        Args:
            features: from :meth:`features`.
            classes: int64 (B,), of a discriminator that knows any.
        """
        found: Tensor = self.score(features).squeeze(1)
        if self.classes is not None and classes is not None:
            found = found + (self.classes(classes) * features).sum(dim=1)
        return found


def channels_like(side: int, width: int) -> int:
    """Return the channels of a discriminator that is as wide as a generator.

    Args:
        side: of the images.
        width: of the maps that the generator makes its images of.
    """
    return max(1, width // _GENERATORS[side])
