"""``demo:motorcycle``: one photograph with measured depth, cut into windows; a check of depth on a real scene.

The left image of the stereo pair ``Motorcycle`` of Middlebury's 2014 data (Scharstein et al., *High-resolution stereo
datasets with subpixel-accurate ground truth*, GCPR 2014), at a quarter of its resolution, which lies inside
scikit-image. It is one scene: numbers on it say that a model fits it, and nothing about other scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.data.images.dense.materials import Split, package_folder
from kdcli.data.images.sources import ImageSource
from kdcli.data.source import Sample

FOCAL_LENGTH, BASELINE, OFFSET = 994.978, 0.193001, 31.086
"""Of the pair: pixels; metres; pixels between the two images' principal points (``doffs``)."""
WINDOW = 128
"""Pixels of a window, across and down."""
_STEP = 16
"""Pixels from one window to the next, across and down."""
_COLUMNS: Mapping[Split, tuple[int, int]] = {"train": (0, 433), "validation": (433, 577), "test": (577, 741)}
"""What the splits' windows lie within: parts of the photograph that share no pixel."""
_FILES = ("motorcycle_left.png", "motorcycle_disp.npz")


def find_pair() -> Path:
    """Return the folder of the photograph and its disparity.

    Raises:
        UserError: they are not installed.
    """
    package = package_folder("skimage")
    if package is None or not all((package / "data" / name).is_file() for name in _FILES):
        raise UserError(
            "demo:motorcycle is a photograph inside the package scikit-image, "
            + ("which is not installed." if package is None else f"and this version in {package} lacks it."),
            "Install it: pip install 'scikit-image>=0.26'.",
        )
    return package / "data"


def depth_of(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return metres, float32, of disparities in pixels: ``f b / (d + doffs)``; 0 where there is none (not finite)."""
    known = np.isfinite(disparity)
    depth = FOCAL_LENGTH * BASELINE / (np.where(known, disparity, 1).astype(np.float64) + OFFSET)
    return np.where(known, depth, 0).astype(np.float32)


@lru_cache(maxsize=1)
def _read_pair(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the photograph, uint8 (500, 741, 3), and its depth in metres, float32 (500, 741)."""
    try:
        image = np.asarray(Image.open(folder / _FILES[0]).convert("RGB"))
        with np.load(folder / _FILES[1]) as arrays:
            depth = depth_of(arrays["arr_0"])
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise UserError(f"demo:motorcycle can't be read in {folder}: {error}", "Install scikit-image anew.") from error
    return image, depth


class MotorcycleSource(ImageSource):
    """The windows of one split, row by row.

    Args:
        folder: where the files are.
        split: whose part of the photograph.
    """

    in_memory = True
    fill = 0.0

    def __init__(self, folder: Path, split: Split) -> None:
        self._folder, self._split = folder, split
        height = len(_read_pair(folder)[0])
        first, last = _COLUMNS[split]
        self._windows = tuple(
            (top, left)
            for top in range(0, height - WINDOW + 1, _STEP)
            for left in range(first, last - WINDOW + 1, _STEP)
        )
        self.labels = (0,) * len(self._windows)

    def load(self, index: int) -> Sample:
        """Cut out one window."""
        top, left = self._windows[index]
        image, depth = (part[top : top + WINDOW, left : left + WINDOW] for part in _read_pair(self._folder))
        return Sample(Image.fromarray(image), tv_tensors.Mask(torch.from_numpy(depth.copy())))

    def describe(self, index: int) -> str:
        """Return where the window lies."""
        top, left = self._windows[index]
        return f"{self._split}[{index}], {WINDOW}x{WINDOW} at row {top}, column {left}"
