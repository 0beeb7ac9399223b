"""Depth: from the values in its files to metres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data.images.dense.files import Encoded, read_raster, with_reading
from kdcli.data.images.dense.masks import check_size

NOT_MEASURED = 0.0
"""The depth of a pixel that has none."""


@dataclass(frozen=True)
class DepthReading:
    """How the values of depth files become metres.

    Attributes:
        scale: units in a metre.
        invalid: the value that means not measured.
        nearest: in metres; what is nearer counts as not measured.
        farthest: likewise.
    """

    scale: float
    invalid: float = 0.0
    nearest: float = 0.0
    farthest: float = math.inf

    def metres(self, found: Image.Image | NDArray[Any], name: str) -> NDArray[np.float32]:
        """Return depth, float32 (H, W), 0 where it was not measured.

        Values that are not finite, negative or ``invalid`` are not measured.

        Raises:
            UserError: it is a picture in colours, or a JPEG file of photographs' kind.
        """
        values = depth_values(found, name)
        measured = np.isfinite(values) & (values != self.invalid) & (values > 0)
        metres = np.divide(values, self.scale, out=np.zeros(values.shape), where=measured)
        metres[(metres < self.nearest) | (metres > self.farthest)] = NOT_MEASURED
        return metres.astype(np.float32)


def depth_values(found: Image.Image | NDArray[Any], name: str) -> NDArray[np.float64]:
    """Return the values of a depth file, float64 (H, W).

    Raises:
        UserError: it has colours.
    """
    if isinstance(found, np.ndarray):
        return found.astype(np.float64)
    if found.mode == "L" or found.mode.startswith(("I", "F")):
        return np.asarray(found).astype(np.float64)
    raise UserError(
        f"The depth {name} is an image of mode {found.mode}, a picture of depth at most.",
        "Depth is one number a pixel: PNG files of 16 bits, TIFF files of floats, or npy files.",
    )


def is_float(found: Image.Image | NDArray[Any]) -> bool:
    """Whether values are floats, so that they may be metres."""
    return found.dtype.kind == "f" if isinstance(found, np.ndarray) else found.mode.startswith("F")


class DepthTargets:
    """Depth of images; see :class:`kdcli.data.images.sources.Targets`.

    Args:
        files: encoded.
        reading: how values become metres.
    """

    fill: float = NOT_MEASURED
    in_memory = False

    def __init__(self, files: Encoded, reading: DepthReading) -> None:
        self._files, self._reading = files, reading
        self.labels: Sequence[int] = tuple(
            UNLABELLED if files.encoded(index) is None else 0 for index in range(len(files))
        )

    def load(self, index: int, size: tuple[int, int], name: str) -> tv_tensors.Mask:
        """Return metres for each pixel, float32 (H, W), 0 where it was not measured."""
        encoded = self._files.encoded(index)
        if encoded is None:
            return tv_tensors.Mask(torch.zeros((size[1], size[0])))
        called = self._files.describe(index)
        metres = read_raster(encoded, called, lambda found: self._reading.metres(found, called))
        check_size(metres, size, called, name)
        return tv_tensors.Mask(torch.from_numpy(metres))

    def content(self, index: int) -> bytes | None:
        """Return the encoded depth and how it is read."""
        return with_reading(self._reading, self._files.encoded(index))

    def size(self, index: int) -> int:
        """Return the size of the encoded depth."""
        return max(self._files.bytes_of(index), 0)
