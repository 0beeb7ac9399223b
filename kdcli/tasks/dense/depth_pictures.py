"""Pictures of depth: the image, what was measured, what each model says, and how far off it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.tasks.reports import Panel

_DEPTHS, _ERRORS = "viridis_r", "inferno"
"""matplotlib's colours: near is bright; a pixel without error is black."""
_UNKNOWN = 225
"""The grey of pixels that were not measured."""
_MOST_ERROR = 0.5
"""The error, relative to the depth, from which on colours do not change."""


def panels_of(images: Tensor, targets: Tensor, measured: Tensor, depths: Mapping[str, Tensor]) -> list[list[Panel]]:
    """Return the pictures of every sample, on one scale of colours, which is drawn beside them.

    The scale goes from the 2nd to the 98th percentile of what was measured, or of the first model's depth where nothing
    was.

    Args:
        images: uint8 (B, 3, H, W).
        targets: metres (B, H, W).
        measured: bool (B, H, W).
        depths: metres (B, H, W) by the model's role.
    """
    return [
        _row(
            images[number].permute(1, 2, 0).numpy(),
            targets[number].double().numpy(),
            measured[number].numpy(),
            {role: depth[number].double().numpy() for role, depth in depths.items()},
        )
        for number in range(len(images))
    ]


def _row(
    image: NDArray[np.uint8],
    target: NDArray[np.float64],
    measured: NDArray[np.bool_],
    depths: Mapping[str, NDArray[np.float64]],
) -> list[Panel]:
    shown = target[measured] if measured.any() else np.concatenate([depth.ravel() for depth in depths.values()])
    low, high = np.percentile(shown, (2, 98)) if len(shown) else (0.0, 1.0)
    high = max(high, low + 1e-6)

    def drawn(depth: NDArray[np.float64]) -> NDArray[np.uint8]:
        return _coloured((depth - low) / (high - low), _DEPTHS)

    row = [
        Panel("image", image),
        Panel(f"depth, {low:.2g} to {high:.2g} m", _with_scale(np.where(measured[..., None], drawn(target), _UNKNOWN))),
    ]
    for role, depth in depths.items():
        row.append(Panel(role, _with_scale(drawn(depth))))
        if measured.any():
            error = np.abs(depth - target) / np.where(measured, target, 1.0)
            colours = np.where(measured[..., None], _coloured(error / _MOST_ERROR, _ERRORS), _UNKNOWN)
            mean = float(error[measured].mean())
            title = f"{role}'s error, 0 to {_MOST_ERROR:.0%}\nmean {mean:.1%}"
        else:
            colours, title = np.full(image.shape, _UNKNOWN), f"{role}'s error\nnot measured"
        row.append(Panel(title, _with_scale(colours.astype(np.uint8), _ERRORS)))
    return row


def _coloured(share: NDArray[np.float64], name: str) -> NDArray[np.uint8]:
    from matplotlib import colormaps

    colours: NDArray[np.uint8] = colormaps[name](np.clip(share, 0, 1), bytes=True)[..., :3]
    return colours


def _with_scale(picture: NDArray[np.generic], name: str = _DEPTHS) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) with the scale of its colours at its right side, the least at the bottom."""
    height, width = picture.shape[:2]
    gap, bar = max(1, width // 40), max(2, width // 16)
    levels = np.linspace(1, 0, height)[:, None].repeat(bar, axis=1)
    parts = [picture.astype(np.uint8), np.full((height, gap, 3), 255, dtype=np.uint8), _coloured(levels, name)]
    return np.concatenate(parts, axis=1)
