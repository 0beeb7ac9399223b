"""Generators that turn random numbers, and a class where they have any, into images: BigGAN's for 32 and 64 pixels.

This file needs torch alone: it is written beside exported weights, so that they can be used without kdcli.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_FIRST = 4
"""Rows and columns that the random numbers are brought to."""
_WIDTHS = {32: (4, 4, 4, 4), 64: (16, 16, 8, 4, 2)}
"""Of images of this side: channels before the blocks and after each of them, in multiples of ``channels``."""


def normed(layer: nn.Module, *, spectral: bool) -> nn.Module:
    """Return the layer, its weights drawn from N(0, 0.02) as BigGAN's authors did for CIFAR, its biases 0.

    Args:
        layer: a convolution, a linear layer or an embedding.
        spectral: whether the weight is then over its largest singular value (arXiv 1802.05957).
    """
    nn.init.normal_(layer.weight, 0.0, 0.02)  # type: ignore[arg-type]
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return spectral_norm(layer) if spectral else layer


class ClassNorm(nn.Module):
    """Batch normalisation whose scale and shift are each class's own; without classes they are the same for all."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not num_classes)
        self.scale, self.shift = (
            normed(nn.Embedding(num_classes, channels), spectral=False) if num_classes else None for _ in range(2)
        )

    def forward(self, maps: Tensor, classes: Tensor | None) -> Tensor:
        """Return the maps (B, C, H, W) normalised."""
        maps = self.norm(maps)
        if self.scale is None or self.shift is None or classes is None:
            return maps
        return maps * (1 + self.scale(classes))[:, :, None, None] + self.shift(classes)[:, :, None, None]


class UpBlock(nn.Module):
    """A residual block that doubles the sides."""

    def __init__(self, width: int, wanted: int, num_classes: int, *, spectral: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = ClassNorm(width, num_classes), ClassNorm(wanted, num_classes)
        self.conv1 = normed(nn.Conv2d(width, wanted, 3, padding=1), spectral=spectral)
        self.conv2 = normed(nn.Conv2d(wanted, wanted, 3, padding=1), spectral=spectral)
        self.skip = normed(nn.Conv2d(width, wanted, 1), spectral=spectral)

    def forward(self, maps: Tensor, classes: Tensor | None) -> Tensor:
        """Return maps (B, wanted, 2 H, 2 W)."""
        inner = F.interpolate(F.relu(self.norm1(maps, classes)), scale_factor=2)
        inner = self.conv2(F.relu(self.norm2(self.conv1(inner), classes)))
        added: Tensor = inner + self.skip(F.interpolate(maps, scale_factor=2))
        return added


class BigGAN(nn.Module):
    """BigGAN's generator (Brock et al., ICLR 2019) without attention and without shared embeddings, as for CIFAR.

    The random numbers go to the first map alone; a class to the normalisations.

    Args:
        side: of the images in pixels: 32 or 64.
        channels: of the narrowest multiple; 64 in the paper.
        dim_z: how many random numbers an image is made of.
        num_classes: 0 for a generator that knows no classes.
        spectral: whether weights are over their largest singular value.
    """

    def __init__(self, side: int, channels: int, dim_z: int, num_classes: int, *, spectral: bool) -> None:
        super().__init__()
        if channels < 1 or dim_z < 1 or num_classes < 0:
            raise ValueError("channels and dim_z are at least 1, num_classes at least 0")
        self.side, self.dim_z, self.num_classes = side, dim_z, num_classes
        first, *widths = (channels * multiple for multiple in _WIDTHS[side])
        self.first = normed(nn.Linear(dim_z, first * _FIRST**2), spectral=spectral)
        before = [first, *widths[:-1]]
        self.blocks = nn.ModuleList(
            UpBlock(width, wanted, num_classes, spectral=spectral) for width, wanted in zip(before, widths, strict=True)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.last = normed(nn.Conv2d(widths[-1], 3, 3, padding=1), spectral=spectral)

    def trunk(self, z: Tensor, classes: Tensor | None) -> Tensor:
        """Return the last block's maps, (B, C, side, side)."""
        maps = self.first(z).unflatten(1, (-1, _FIRST, _FIRST))
        for block in self.blocks:
            maps = block(maps, classes)
        return maps

    def image(self, maps: Tensor) -> Tensor:
        """Return the image (B, 3, side, side), from -1 to 1, of the last maps."""
        return torch.tanh(self.last(F.relu(self.norm(maps))))

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return images (B, 3, side, side) from -1 to 1.

        Args:
            z: standard normal numbers (B, dim_z).
            classes: int64 (B,), of a generator that has any.
        """
        if (classes is None) == bool(self.num_classes):
            raise ValueError(f"the generator has {self.num_classes} classes, and classes are {classes}")
        return self.image(self.trunk(z, classes))


def biggan32(num_classes: int = 0, channels: int = 64, dim_z: int = 128, spectral: bool = True) -> BigGAN:
    """Return BigGAN's generator for 32x32 pixels, as for CIFAR."""
    return BigGAN(32, channels, dim_z, num_classes, spectral=spectral)


def biggan64(num_classes: int = 0, channels: int = 32, dim_z: int = 128, spectral: bool = True) -> BigGAN:
    """Return BigGAN's generator for 64x64 pixels."""
    return BigGAN(64, channels, dim_z, num_classes, spectral=spectral)


SAMPLERS: dict[str, Callable[..., BigGAN]] = {"biggan32": biggan32, "biggan64": biggan64}
"""By name: what makes a network, every argument with a default."""
SIDES = {"biggan32": 32, "biggan64": 64}
"""By name: the side of its images in pixels."""


def load(folder: str | Path) -> BigGAN:
    """Return the network of a folder with ``config.json`` and ``model.safetensors``, in evaluation mode.

    It takes standard normal numbers (B, dim_z) and, where it has classes, their numbers (B,); it returns images from -1
    to 1.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    module = SAMPLERS[config["network"]](config["num_classes"], **config["arguments"])
    module.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return module.eval()


def classes_of(folder: str | Path) -> Sequence[str]:
    """Return the names of a folder's classes, in the order of their numbers; nothing where it has none."""
    names = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["label_names"]
    return names or ()
