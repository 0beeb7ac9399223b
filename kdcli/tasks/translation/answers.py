"""What a finished generator makes of a user's own image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdcli.data import AnyBatch
from kdcli.data.images.pictures import as_pixels
from kdcli.tasks.answers import Answer, Answers, Asked
from kdcli.tasks.dense.answers import axes_of
from kdcli.tasks.reports import Panel


class ImageAnswers(Answers):
    """An image of the same size as the one that was given: as far as the model saw it.

    Of a model whose input is a crop the rest of the image is black.
    """

    has_pictures = True

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the image that is made of each."""
        for one, size in zip(as_pixels(outputs), batch.targets.tolist(), strict=True):
            made = _back(one.permute(1, 2, 0).numpy(), size, axes_of(asked.model, tuple(size)))
            means = made.reshape(-1, 3).mean(axis=0)
            record = {"height": size[0], "width": size[1], **dict(zip(("red", "green", "blue"), map(float, means)))}
            told = ", ".join(f"{value:.0f}" for value in means)
            yield Answer([record], [f"{size[1]}x{size[0]} pixels, mean colour {told}"], made)

    def panels(self, image: NDArray[np.uint8], answers: Mapping[str, Answer]) -> list[Panel]:
        """Return the image, and what each model makes of it."""
        size = (image.shape[1], image.shape[0])
        shrunk = {
            role: np.asarray(Image.fromarray(answer.raw).resize(size, Image.Resampling.BICUBIC))
            for role, answer in answers.items()
        }
        return [Panel("image", image), *(Panel(role, picture) for role, picture in shrunk.items())]

    def files(self, answer: Answer) -> Mapping[str, NDArray[Any]]:
        """Return the image."""
        return {".png": answer.raw}

    def file_notes(self) -> list[str]:
        """Say what is in the files."""
        return ["NAME.png is the image that the model makes, at the size of the one that was given."]


def _back(made: NDArray[np.uint8], size: list[int], axes: Any) -> NDArray[np.uint8]:
    """Return what was made of a canvas at the image's own size (height, width), black where the model saw nothing."""
    height, width = size
    (down, top), (across, left) = axes
    # The place on the canvas of each corner of the image: factor times its own place, plus the shift.
    corners = (left, top, across * width + left, down * height + top)
    inside = (max(corners[0], 0), max(corners[1], 0), min(corners[2], made.shape[1]), min(corners[3], made.shape[0]))
    box = tuple(
        round((value - shift) / factor)
        for value, shift, factor in zip(inside, (left, top, left, top), (across, down, across, down), strict=True)
    )
    whole = np.zeros((height, width, 3), np.uint8)
    target = (max(1, box[2] - box[0]), max(1, box[3] - box[1]))
    part = Image.fromarray(made).resize(target, Image.Resampling.BICUBIC, inside)
    whole[box[1] : box[1] + target[1], box[0] : box[0] + target[0]] = np.asarray(part)[: height - box[1], : width - box[0]]
    return whole
