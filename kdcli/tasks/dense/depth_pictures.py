"""Pictures of depth: the image, what was measured, what each model says, and how far off it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.tasks.dense.drawing import ERRORS, depth_range, depth_scale, draw_depth, draw_values
from kdcli.tasks.reports import Panel, Scale

_MOST_ERROR = 0.5
"""The error, relative to the depth, from which on colours do not change."""


def panels_of(images: Tensor, targets: Tensor, measured: Tensor, depths: Mapping[str, Tensor]) -> list[list[Panel]]:
    """Return the pictures of every sample, all on one scale of colours.

    The scale goes from the 2nd to the 98th percentile of what was measured in all of them, or of the models' depths
    where nothing was.

    Args:
        images: uint8 (B, 3, H, W).
        targets: metres (B, H, W).
        measured: bool (B, H, W).
        depths: metres (B, H, W) by the model's role.
    """
    known = np.where(measured.numpy(), targets.double().numpy(), 0)
    told = {role: depth.double().numpy() for role, depth in depths.items()}
    low, high = depth_range([known] if known.any() else list(told.values()))
    return [
        _row(image, known[number], {role: depth[number] for role, depth in told.items()}, low, high)
        for number, image in enumerate(images.permute(0, 2, 3, 1).numpy())
    ]


def _row(
    image: NDArray[np.uint8],
    target: NDArray[np.float64],
    depths: Mapping[str, NDArray[np.float64]],
    low: float,
    high: float,
) -> list[Panel]:
    scale, errors = depth_scale(low, high), Scale("error / depth", 0.0, _MOST_ERROR, ERRORS)
    is_known = target > 0
    row = [Panel("image", image), Panel(_told("depth", [target]), draw_depth(target, low, high), scale)]
    for role, depth in depths.items():
        row.append(Panel(_told(role, [depth]), draw_depth(depth, low, high), scale, role))
        error = np.abs(depth - target) / np.where(is_known, target, 1.0)
        title = f"mean {error[is_known].mean():.1%}" if is_known.any() else "not measured"
        colours = draw_values(error, 0.0, _MOST_ERROR, known=is_known)
        row.append(Panel(f"{role}'s error\n{title}", colours, errors))
    return row


def _told(name: str, depths: Sequence[NDArray[np.float64]]) -> str:
    """Return a title with the range of what is shown."""
    low, high = depth_range(depths)
    return f"{name}\n{low:.2g} to {high:.2g} m"
