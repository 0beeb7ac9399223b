"""Depth: from the values in its files to metres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import counted
from kdcli.config.data import DataConfig
from kdcli.data.images.decode import UnreadableImage
from kdcli.data.images.dense.files import Encoded, Found, read_raster, with_reading
from kdcli.data.images.dense.masks import check_size

_LOOKED_AT = 16
"""So many depth files are looked at, evenly spread."""
NOT_MEASURED = 0.0
"""The depth of a pixel that has none."""


@dataclass(frozen=True)
class DepthReading:
    """How the values of depth files become metres.

    Attributes:
        scale: units in a metre.
        byte_scale: likewise of images of 8 bits; None where those are as all others.
        invalid: the value that means not measured.
        nearest: in metres; what is nearer counts as not measured.
        farthest: likewise.
    """

    scale: float
    invalid: float = 0.0
    nearest: float = 0.0
    farthest: float = math.inf
    byte_scale: float | None = None

    def metres(self, found: Image.Image | NDArray[Any], name: str) -> NDArray[np.float32]:
        """Return depth, float32 (H, W), 0 where it was not measured.

        Values that are not finite, negative or ``invalid`` are not measured.

        Raises:
            UserError: it is a picture in colours, or a JPEG file of photographs' kind.
        """
        values = depth_values(found, name)
        is_invalid = np.isclose(values, self.invalid, rtol=1e-6, atol=0)  # as rounded to float32
        measured = np.isfinite(values) & ~is_invalid & (values > 0)
        scale = self.scale
        if self.byte_scale is not None and isinstance(found, Image.Image) and found.mode == "L":
            scale = self.byte_scale
        metres = np.divide(values, scale, out=np.zeros(values.shape), where=measured)
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


def depth_reading(found: Found, config: DataConfig, files: Encoded) -> tuple[DepthReading, list[str]]:
    """Return how depth is read, and notes: on its scale, and on what some files then hold.

    Raises:
        UserError: files of whole numbers, whose scale is not known.
    """
    labelled = [index for index in range(len(files)) if files.encoded(index) is not None]
    chosen = dict.fromkeys(labelled[number * len(labelled) // _LOOKED_AT] for number in range(_LOOKED_AT))
    floats, whole = list[int](), list[int]()
    for index in chosen:
        encoded, name = files.encoded(index), files.describe(index)
        assert encoded is not None
        try:
            (floats if read_raster(encoded, name, is_float) else whole).append(index)
        except UnreadableImage:
            continue
    scale, why = config.depth_scale, "as data.depth_scale says"
    if scale is None and found.depth_scale is not None:
        scale, why = found.depth_scale, f"as of {found.form}"
    if scale is None and whole:
        raise UserError(
            f"The depth files hold whole numbers, such as {files.describe(whole[0])}, and their unit is not known.",
            "data.depth_scale is how many of it are in a metre: 1000 for millimetres, as in NYUv2; 256 as in KITTI.",
        )
    if scale is None:
        scale, why = 1.0, "as they are floats"
    unit = "metres" if scale == 1 else f"{scale:g} to a metre"
    note = (
        f"Depth: values are {unit}, {why}; {config.invalid_depth:g} means not measured, and so does what is not from"
        f" {config.min_depth:g} to {config.max_depth:g} metres."
    )
    byte_scale = found.byte_scale if config.depth_scale is None else None
    if byte_scale is not None:
        note += f" In files of 8 bits {byte_scale:g} are a metre."
    reading = DepthReading(scale, config.invalid_depth, config.min_depth, config.max_depth, byte_scale)
    return reading, [note, *_look_at_depth(reading, files, [*floats, *whole])]


def _look_at_depth(reading: DepthReading, files: Encoded, indices: Sequence[int]) -> list[str]:
    """Return a note on what some files hold, so that a wrong scale is seen."""
    every = replace(reading, nearest=0.0, farthest=math.inf)
    number, size, beyond, parts = 0, 0, 0, []
    for index in indices:
        encoded, name = files.encoded(index), files.describe(index)
        assert encoded is not None
        try:
            metres = read_raster(encoded, name, lambda image, name=name: every.metres(image, name))
        except UnreadableImage:
            continue
        measured = metres[metres > 0]
        number, size = number + 1, size + metres.size
        beyond += int(((measured < reading.nearest) | (measured > reading.farthest)).sum())
        parts.append(measured)
    values = np.concatenate(parts) if parts else np.zeros(0)
    if number and len(values) == beyond:
        told = f"They are from {values.min():.3g} to {values.max():.3g} metres. " if len(values) else ""
        raise UserError(
            f"No depth counts in {counted(number, 'depth file')} looked at. {told}".rstrip(),
            "Check data.depth_scale, data.invalid_depth, data.min_depth and data.max_depth.",
        )
    if not number:
        return []
    low, middle, high = np.quantile(values, (0.01, 0.5, 0.99))
    lost = f" {beyond / size:.1%} are beyond data.min_depth or data.max_depth and left out." if beyond else ""
    return [
        f"Of the pixels of {counted(number, 'depth file')} looked at, {len(values) / size:.0%} are measured, mostly"
        f" from {low:.3g} to {high:.3g} metres, half of them below {middle:.3g}.{lost}"
    ]
