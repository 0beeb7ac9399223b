"""Pictures of the classes of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.facts import UNLABELLED
from kdcli.tasks.dense.drawing import draw_errors, draw_over, error_legend, legend
from kdcli.tasks.reports import Panel


def panels_of(
    images: Tensor, targets: Tensor, guesses: Mapping[str, Sequence[Tensor]], class_names: Sequence[str]
) -> list[list[Panel]]:
    """Return the pictures of every sample: image, target, and of each model its classes and its errors.

    Args:
        images: uint8 (B, 3, H, W).
        targets: class indices int64 (B, H, W); pixels without a class are light grey.
        guesses: by the model's role, int64 (H, W) of every image.
        class_names: in label order.
    """

    def classes(title: str, image: NDArray[np.uint8], mask: NDArray[np.int64]) -> Panel:
        return Panel(title, draw_over(image, mask, class_names), legend(class_names, mask))

    rows = []
    for number, (image, target) in enumerate(zip(images.permute(0, 2, 3, 1).numpy(), targets.numpy(), strict=True)):
        known = target != UNLABELLED
        row = [Panel("image", image), classes("target", image, target)]
        for role, of_role in guesses.items():
            guess = of_role[number].numpy()
            share = f"{(guess == target)[known].mean():.0%} right" if known.any() else "no labels"
            row.append(classes(role, image, guess))
            row.append(Panel(f"{role}: errors\n{share}", draw_errors(guess, target), error_legend()))
        rows.append(row)
    return rows
