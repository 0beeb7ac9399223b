"""Pictures of the classes of pixels."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.facts import UNLABELLED
from kdcli.tasks.reports import Panel

_UNLABELLED = (128, 128, 128)
_RIGHT, _WRONG = (235, 235, 235), (200, 40, 40)
_MOST_NAMED = 6
"""Classes in a title, those with most pixels first."""
_SHADE = 0.45
"""How much of the image shows through its classes."""
_GOLDEN = 0.61803398875


def colours(count: int) -> NDArray[np.uint8]:
    """Return a colour for each of so many classes, uint8 (count, 3): hues that lie apart, in three shades."""
    shades = ((0.85, 0.85), (0.55, 0.95), (0.95, 0.6))
    values = [colorsys.hsv_to_rgb(number * _GOLDEN % 1, *shades[number % 3]) for number in range(count)]
    return (255 * np.array(values, dtype=np.float64).reshape(-1, 3)).round().astype(np.uint8)


def panels_of(
    images: Tensor, targets: Tensor, guesses: Mapping[str, Sequence[Tensor]], class_names: Sequence[str]
) -> list[list[Panel]]:
    """Return the pictures of every sample: image, target, and of each model its classes and its errors.

    Args:
        images: uint8 (B, 3, H, W).
        targets: class indices int64 (B, H, W); pixels without a class are grey.
        guesses: by the model's role, int64 (H, W) of every image.
        class_names: in label order.
    """
    palette = colours(len(class_names))
    rows = []
    for number, target in enumerate(targets.numpy()):
        image = images[number].permute(1, 2, 0).numpy()
        known = target != UNLABELLED
        row = [Panel("image", image), Panel("target\n" + _named(target, class_names), _over(image, target, palette))]
        for role, of_role in guesses.items():
            guess = of_role[number].numpy()
            wrong = np.where((guess == target)[..., None], _RIGHT, _WRONG)
            errors = np.where(known[..., None], wrong, _UNLABELLED).astype(np.uint8)
            share = f"{(guess == target)[known].mean():.0%} right" if known.any() else "no labels"
            row.append(Panel(f"{role}\n{_named(guess, class_names)}", _over(image, guess, palette)))
            row.append(Panel(f"{role}: errors\n{share}", errors))
        rows.append(row)
    return rows


def _over(image: NDArray[np.uint8], mask: NDArray[np.int64], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the classes in their colours, with the image's brightness beneath."""
    coloured = np.where((mask == UNLABELLED)[..., None], np.array(_UNLABELLED), palette[np.maximum(mask, 0)])
    grey = image.mean(axis=2, keepdims=True)
    return ((1 - _SHADE) * coloured + _SHADE * grey).round().astype(np.uint8)


def _named(mask: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Return the names of the classes with most pixels, the largest first."""
    found, counts = np.unique(mask[mask != UNLABELLED], return_counts=True)
    names = [class_names[label] for label in found[np.argsort(-counts)]]
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
