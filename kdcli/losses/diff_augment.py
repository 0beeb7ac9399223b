"""Differentiable augmentation of a discriminator's images: DiffAugment (NeurIPS 2020, arXiv 2006.10738)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from kdcli.base.names import DiffAugmentName

NUM_DRAWS = 7
"""Random numbers that one image takes, whatever the policy: brightness, saturation, contrast, two of the translation,
two of the cutout."""
_TRANSLATED = 1 / 8
_CUT = 1 / 2
"""Shares of the image's sides."""


def diff_augment(images: Tensor, policy: Sequence[DiffAugmentName], generator: torch.Generator) -> Tensor:
    """Return ``images`` augmented at random, each on its own; gradients flow back to them.

    It is meant for real and fake images alike, in the discriminator's step and in the generator's.

    Args:
        images: floats (B, C, H, W) in -1..1. Results may be beyond that.
        policy: what is done, in this order. ``color``: brightness plus U(-0.5, 0.5), then saturation times U(0, 2)
            around the mean over channels, then contrast times U(0.5, 1.5) around the image's mean. ``translation``:
            moved by up to 1/8 of each side, in whole pixels, black (0) where nothing is left. ``cutout``: a
            rectangle of half of each side is 0, centred anywhere in the image. Nothing: the images themselves.
        generator: gives :data:`NUM_DRAWS` numbers an image, whatever the policy, on its own device.

    Raises:
        ValueError: there is no such augmentation.
    """
    draws = torch.rand(len(images), NUM_DRAWS, generator=generator, device=generator.device)
    return diff_augment_by(images, policy, draws)


def diff_augment_by(images: Tensor, policy: Sequence[DiffAugmentName], draws: Tensor) -> Tensor:
    """Return ``images`` augmented as ``draws`` say, else as :func:`diff_augment`.

    Args:
        images: floats (B, C, H, W).
        policy: as there.
        draws: numbers (B, 7) in [0, 1), on any device: so what is done to an image can depend on which one it is.

    Raises:
        ValueError: the shapes don't fit, or there is no such augmentation.
    """
    if images.ndim != 4 or draws.shape != (len(images), NUM_DRAWS):
        raise ValueError(f"images {tuple(images.shape)} and draws {tuple(draws.shape)} don't fit.")
    # Whole pixels are counted in the precision of the draws, half precision would miss the last ones.
    draws = draws.to(images.device).float()
    for name in policy:
        if name not in _STEPS:
            raise ValueError(f"There is no augmentation {name!r}; there are {', '.join(_STEPS)}.")
        images = _STEPS[name](images, draws)
    return images


def _color(images: Tensor, draws: Tensor) -> Tensor:
    brightness, saturation, contrast = draws[:, :3].to(images.dtype)[..., None, None, None].unbind(dim=1)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _translate(images: Tensor, draws: Tensor) -> Tensor:
    rows, columns = (
        _moved(side, draw, images.shape[axis])
        for axis, side, draw in ((2, _reach(images.shape[2]), draws[:, 3]), (3, _reach(images.shape[3]), draws[:, 4]))
    )
    inside = _is_inside(rows, images.shape[2]).unsqueeze(2) & _is_inside(columns, images.shape[3]).unsqueeze(1)
    rows, columns = rows.clamp(0, images.shape[2] - 1), columns.clamp(0, images.shape[3] - 1)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.movedim(1, -1)[image, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)
    return torch.where(inside.unsqueeze(1), moved, 0)


def _reach(side: int) -> int:
    return int(side * _TRANSLATED + 0.5)


def _moved(reach: int, draw: Tensor, side: int) -> Tensor:
    """Return from which row each row comes, int64 (B, side); some are beyond the image."""
    shift = (draw * (2 * reach + 1)).long() - reach
    return torch.arange(side, device=draw.device) + shift.unsqueeze(1)


def _is_inside(places: Tensor, side: int) -> Tensor:
    return (places >= 0) & (places < side)


def _cut_out(images: Tensor, draws: Tensor) -> Tensor:
    rows, columns = (_is_cut(draws[:, 5 + axis], images.shape[2 + axis]) for axis in range(2))
    cut = rows.unsqueeze(2) & columns.unsqueeze(1)
    return torch.where(cut.unsqueeze(1), 0, images)


def _is_cut(draw: Tensor, side: int) -> Tensor:
    """Return which rows a rectangle covers, bool (B, side)."""
    size = int(side * _CUT + 0.5)
    first = (draw * (side + 1 - size % 2)).long().unsqueeze(1) - size // 2
    place = torch.arange(side, device=draw.device)
    return (place >= first) & (place < first + size)


_STEPS: MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"color": _color, "translation": _translate, "cutout": _cut_out}
)
