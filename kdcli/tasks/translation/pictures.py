"""Pictures of translation: the image, what it was to become, what each model makes of it, and how far off that is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.images.pictures import as_pixels
from kdcli.tasks.dense.drawing import ERRORS, draw_values
from kdcli.tasks.reports import Panel, Scale
from kdcli.tasks.translation.metrics import measure_pairs

_MOST_ERROR = 0.5
"""The error, of values in 0..1, from which on colours do not change."""


def panels_of(images: Tensor, targets: Tensor, outputs: Mapping[str, Tensor], *, is_paired: bool) -> list[list[Panel]]:
    """Return the pictures of every sample.

    Args:
        images: uint8 (B, 3, H, W).
        targets: (B, 3, H, W), from -1 to 1, NaN where not known.
        outputs: images (B, 3, h, w) by the model's role.
        is_paired: whether the targets are the images' own, so that there is an error.
    """
    shown = [_rows(images), _rows(as_pixels(targets))]
    made = {role: _rows(as_pixels(image)) for role, image in outputs.items()}
    measured = {role: measure_pairs(image, targets) for role, image in outputs.items()}
    scale = Scale("error, of values in 0..1", 0.0, _MOST_ERROR, ERRORS)
    grid = []
    for number in range(len(images)):
        row = [
            Panel("input", shown[0][number]),
            Panel("target" if is_paired else "of the other kind", shown[1][number]),
        ]
        for role, picture in made.items():
            values, known = measured[role]
            has_error = is_paired and bool(known[number])
            title = f"\nSSIM {values['ssim'][number]:.3f}" if has_error else ""
            row.append(Panel(f"{role}{title}", picture[number], role=role))
            if is_paired:
                made_here = outputs[role][number].float()
                error = (made_here - _like(targets[number], made_here)).abs().mean(dim=0)
                drawn = draw_values((error / 2).nan_to_num(0).double().numpy(), 0.0, _MOST_ERROR)
                told = f"mean {values['l1'][number]:.3f}" if has_error else "not known"
                row.append(Panel(f"{role}'s error\n{told}", drawn, scale))
        grid.append(row)
    return grid


def _like(target: Tensor, image: Tensor) -> Tensor:
    from kdcli.losses import resize_image

    return resize_image(target[None], (image.shape[1], image.shape[2]))[0]


def _rows(images: Tensor) -> list[NDArray[np.uint8]]:
    return [image.numpy() for image in torch.as_tensor(images).permute(0, 2, 3, 1).contiguous()]
