"""``demo:scenes-edges``: crops of photographs, and their edges by Sobel's filter, made by index without downloads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.data.images.dense.materials import Materials, Split, digest_of, read_photos
from kdcli.data.images.pictures import Picture
from kdcli.data.images.sources import ImageSource
from kdcli.data.source import Sample

SIZE = 96
"""Pixels of a crop, across and down."""
COUNTS: Mapping[Split, int] = {"train": 1000, "validation": 100, "test": 200}
"""How many crops of each split."""
VERSION = 1
"""Goes up when what is made looks different."""
_SMALLEST = 64
"""Pixels of a photograph that a crop shows at least, of its shorter side."""
_FULL = 240.0
"""The sum of Sobel's two filters that is white: a step of a sixth of the whole range."""
_SEED = {"train": 0, "validation": 1, "test": 2}
_FIRST = 20_261_201


def sobel_edges(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return how strong the edges of an image are, uint8 (H, W), white on black.

    It is the length of Sobel's gradient of the brightness, whose borders are repeated.

    Args:
        image: uint8 (H, W, 3).
    """
    grey = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    rows = np.pad(grey, 1, mode="edge")
    down = rows[2:] - rows[:-2]
    across = rows[:, 2:] - rows[:, :-2]
    vertical = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    horizontal = across[:-2] + 2 * across[1:-1] + across[2:]
    strength = np.hypot(vertical, horizontal) * (255 / _FULL)
    return np.rint(np.minimum(strength, 255)).astype(np.uint8)


class EdgeSource(ImageSource):
    """Crops of one split's photographs with their edges, or the other way round.

    Args:
        materials: which photographs.
        split: whose.
        count: how many crops.
        is_reversed: whether the edges are given, and the photograph is the target.
    """

    in_memory = True
    fill = 0.0

    def __init__(self, materials: Materials, split: Split, count: int, *, is_reversed: bool) -> None:
        self.materials, self.split, self._is_reversed = materials, split, is_reversed
        self.labels = (0,) * count

    def load(self, index: int) -> Sample:
        """Make one pair."""
        photo = self._crop(index)
        edges = Image.fromarray(sobel_edges(np.asarray(photo))).convert("RGB")
        given, target = (edges, photo) if self._is_reversed else (photo, edges)
        return Sample(given, Picture(target))

    def _crop(self, index: int) -> Image.Image:
        """Return a square of a photograph, drawn by the index alone, mirrored or not."""
        photos = read_photos(self.materials, self.split)
        seed = np.random.SeedSequence((_FIRST, VERSION, _SEED[self.split], index))
        numbers = (np.random.PCG64(seed).random_raw(5) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        photo = photos[int(numbers[0] * len(photos))].image
        shorter = min(photo.size)
        smallest = min(_SMALLEST, shorter)
        side = smallest + numbers[1] * (shorter - smallest)
        left, top = (photo.width - side) * numbers[2], (photo.height - side) * numbers[3]
        crop = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if numbers[4] < 0.5 else crop

    def recipe(self, index: int) -> bytes:
        """Return what tells a pair from all others, without making it."""
        made_of = (VERSION, digest_of(self.materials, self.split), SIZE, self.split, index, self._is_reversed)
        return hashlib.sha256(repr(made_of).encode()).digest()

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self.split}[{index}]"
