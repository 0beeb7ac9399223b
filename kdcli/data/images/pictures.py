"""Targets that are images: the one that a sample is to become, or any of the kind that it is to become one of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcli.machine.seeding import stable_seed

WITHHELD = float("nan")
"""What the pixels of a target are that is not known."""


@dataclass(frozen=True)
class Picture:
    """The image that a sample is to become, of the same size: it moves with it, by the same filters.

    Attributes:
        image: of PIL, mode RGB.
        is_known: False where it is withheld; then it only has a size.
    """

    image: Image.Image
    is_known: bool = True

    def withheld(self) -> Picture:
        """Return a picture of the same size that says nothing."""
        return Picture(Image.new("RGB", self.image.size), is_known=False)

    def moved(self, move: Callable[[Image.Image], Image.Image]) -> Tensor:
        """Return the target as :func:`as_target` gives it, moved; NaN where it is withheld."""
        target = as_target(move(self.image))
        return target if self.is_known else torch.full_like(target, WITHHELD)


class Partner:
    """Any image of the kind that a sample is to become one of: another one each epoch, a function of the seed.

    Args:
        number: how many there are.
        load: loads one by its number.
        own: that of evaluation; None where all have been shown already, beside earlier samples.
        seed: of the run.
    """

    def __init__(self, number: int, load: Callable[[int], Image.Image], own: int | None, seed: int) -> None:
        self._number, self._load, self._own, self._seed = number, load, own, seed

    def drawn(self, epoch: int, index: int) -> Image.Image:
        """Return the one beside sample ``index`` in this epoch.

        Raises:
            UnreadableImage: it can't be decoded.
        """
        return self._load(stable_seed("partner", self._seed, epoch, index) % self._number)

    def shown(self) -> Image.Image | None:
        """Return the one of evaluation, each beside one sample; None where there are more samples than these.

        Raises:
            UnreadableImage: it can't be decoded.
        """
        return None if self._own is None else self._load(self._own)


def as_target(image: Image.Image) -> Tensor:
    """Return an image of mode RGB as a target: float32 (3, H, W), from -1 (black) to 1 (white)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def as_pixels(images: Tensor) -> Tensor:
    """Return images of targets or outputs, (..., 3, H, W) from -1 to 1, as uint8; NaN is black."""
    return ((images.float() + 1) * 127.5).nan_to_num(0).round().clamp(0, 255).to(torch.uint8)


def is_picture(target: Any) -> bool:
    """Whether a target is an image of this module."""
    return isinstance(target, Picture | Partner)
