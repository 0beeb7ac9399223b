"""Generators that turn an image into another one of the same size.

This file needs torch alone: it is written beside exported weights, so that they can be used without kdcli.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

_INIT_STD = 0.02
"""Of every convolution's weights at the start: N(0, 0.02), as in pix2pix and CycleGAN."""
NORMS = ("instance", "batch")


def norm_of(name: str, channels: int) -> nn.Module:
    """Return a normalisation: each image's own of every channel, without parameters, or that of the batch."""
    if name not in NORMS:
        raise ValueError(f"norm is instance or batch, got {name!r}")
    return nn.InstanceNorm2d(channels) if name == "instance" else nn.BatchNorm2d(channels)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draw convolutions from N(0, 0.02) and the scales of normalisations from N(1, 0.02); shifts are 0.

    Source: junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py, init_weights.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, _INIT_STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, _INIT_STD)
            nn.init.zeros_(part.bias)


class Separable(nn.Sequential):
    """A 3x3 convolution of each channel by itself, a normalisation, and a 1x1 convolution."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, groups=channels), norm_of(norm, channels), nn.Conv2d(channels, channels, 1)
        )


class Residual(nn.Module):
    """Two 3x3 convolutions with reflected borders, added to what they are given."""

    def __init__(self, channels: int, norm: str, dropout: float, *, separable: bool) -> None:
        super().__init__()

        def conv() -> nn.Module:
            return Separable(channels, norm) if separable else nn.Conv2d(channels, channels, 3)

        layers: list[nn.Module] = [nn.ReflectionPad2d(1), conv(), norm_of(norm, channels), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        self.body = nn.Sequential(*layers, nn.ReflectionPad2d(1), conv(), norm_of(norm, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, C, H, W) of the same shape."""
        added: Tensor = maps + self.body(maps)
        return added


class ResidualGenerator(nn.Module):
    """The generator of CycleGAN (Zhu et al., ICCV 2017), after Johnson et al. (ECCV 2016).

    A 7x7 convolution, two that halve the sides, residual blocks, two that double them, and a 7x7 convolution with tanh.
    With ``separable`` blocks it is the mobile generator of GAN Compression (Li et al., CVPR 2020).

    Args:
        channels: of the first layer; the blocks have four times as many.
        num_blocks: how many residual blocks.
        norm: ``instance`` or ``batch``.
        dropout: within the blocks.
        separable: whether the blocks' convolutions are.
    """

    multiple = 4
    levels: tuple[str, ...]

    def __init__(
        self, channels: int, num_blocks: int, norm: str = "instance", dropout: float = 0.0, *, separable: bool = False
    ) -> None:
        super().__init__()
        if channels < 1 or num_blocks < 1 or not 0 <= dropout < 1:
            raise ValueError("channels and num_blocks are at least 1, dropout is 0 or more and below 1")
        self.stem = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, channels, 7), norm_of(norm, channels), nn.ReLU())
        self.down = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), norm_of(norm, 2 * width), nn.ReLU())
                for width in (channels, 2 * channels)
            )
        )
        self.blocks = nn.Sequential(
            *(Residual(4 * channels, norm, dropout, separable=separable) for _ in range(num_blocks))
        )
        self.up = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1),
                    norm_of(norm, width // 2),
                    nn.ReLU(),
                )
                for width in (4 * channels, 2 * channels)
            )
        )
        self.last = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7), nn.Tanh())
        self.levels = ("stem", "down.0", "down.1", *(f"blocks.{number}" for number in range(num_blocks)))
        initialise(self)

    def trunk(self, images: Tensor) -> list[Tensor]:
        """Return what :meth:`maps` makes an image of: the last block's output, (B, 4 channels, H / 4, W / 4)."""
        return [self.blocks(self.down(self.stem(images)))]

    def maps(self, levels: list[Tensor]) -> Tensor:
        """Return the image (B, 3, H, W), from -1 to 1."""
        image: Tensor = self.last(self.up(levels[-1]))
        return image

    def forward(self, images: Tensor) -> Tensor:
        """Return an image (B, 3, H, W) from -1 to 1 of one, whose sides are multiples of 4."""
        return self.maps(self.trunk(images))


class UNet(nn.Module):
    """The U-Net of pix2pix (Isola et al., CVPR 2017): each level halves the sides, and has a way around what is below.

    Args:
        channels: of the first level; twice as many with each, up to eight times as many.
        depth: how many levels: sides are multiples of 2^depth. pix2pix has 8 for images of 256 pixels.
        norm: ``instance`` or ``batch``; none at the first and at the last level.
        dropout: of up to three levels above the last, as pix2pix has 0.5; in training alone.
    """

    levels: tuple[str, ...]

    def __init__(self, channels: int, depth: int, norm: str = "instance", dropout: float = 0.0) -> None:
        super().__init__()
        if channels < 1 or not 2 <= depth <= 12 or not 0 <= dropout < 1:
            raise ValueError("channels is at least 1, depth from 2 to 12, dropout is 0 or more and below 1")
        self.multiple = 2**depth
        widths = [channels * min(2**level, 8) for level in range(depth)]
        downs, ups = [], []
        for level, width in enumerate(widths):
            is_first, is_last = level == 0, level == depth - 1
            layers: list[nn.Module] = [] if is_first else [nn.LeakyReLU(0.2)]
            layers.append(nn.Conv2d(3 if is_first else widths[level - 1], width, 4, 2, 1))
            layers += [] if is_first or is_last else [norm_of(norm, width)]
            downs.append(nn.Sequential(*layers))
            back = 3 if is_first else widths[level - 1]
            layers = [nn.ReLU(), nn.ConvTranspose2d(width if is_last else 2 * width, back, 4, 2, 1)]
            layers += [nn.Tanh()] if is_first else [norm_of(norm, back)]
            layers += [nn.Dropout(dropout)] if dropout and depth - 5 < level < depth - 1 and level > 0 else []
            ups.append(nn.Sequential(*layers))
        self.down = nn.ModuleList(downs)
        self.up = nn.ModuleList(ups)
        self.levels = tuple(f"down.{level}" for level in range(depth))
        initialise(self)

    def trunk(self, images: Tensor) -> list[Tensor]:
        """Return the output of each level, the last (B, C, H / 2^depth, W / 2^depth)."""
        found = []
        for down in self.down:
            images = down(images)
            found.append(images)
        return found

    def maps(self, levels: list[Tensor]) -> Tensor:
        """Return the image (B, 3, H, W), from -1 to 1."""
        maps = levels[-1]
        for level in reversed(range(len(levels))):
            maps = self.up[level](maps if level == len(levels) - 1 else torch.cat([levels[level], maps], dim=1))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Return an image (B, 3, H, W) from -1 to 1 of one, whose sides are multiples of 2^depth."""
        return self.maps(self.trunk(images))


def resnet9(channels: int = 64, num_blocks: int = 9, norm: str = "instance", dropout: float = 0.0) -> ResidualGenerator:
    """Return CycleGAN's generator for images of 256 pixels."""
    return ResidualGenerator(channels, num_blocks, norm, dropout)


def resnet6(channels: int = 64, num_blocks: int = 6, norm: str = "instance", dropout: float = 0.0) -> ResidualGenerator:
    """Return CycleGAN's generator for images of 128 pixels."""
    return ResidualGenerator(channels, num_blocks, norm, dropout)


def unet(channels: int = 64, depth: int = 5, norm: str = "instance", dropout: float = 0.0) -> UNet:
    """Return pix2pix's generator."""
    return UNet(channels, depth, norm, dropout)


def mobile(channels: int = 32, num_blocks: int = 6, norm: str = "instance", dropout: float = 0.0) -> ResidualGenerator:
    """Return a compact generator with separable convolutions in its blocks."""
    return ResidualGenerator(channels, num_blocks, norm, dropout, separable=True)


TRANSLATORS = {"resnet9": resnet9, "resnet6": resnet6, "unet": unet, "mobile": mobile}
"""By name: what makes a network, every argument with a default."""


def load(folder: str | Path) -> nn.Module:
    """Return the network of a folder with ``config.json`` and ``model.safetensors``, in evaluation mode.

    It takes images (B, 3, H, W) as the config's ``preprocessing`` says, and returns images from -1 to 1.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    module = TRANSLATORS[config["network"]](**config["arguments"])
    module.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return module.eval()
