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
from kdcli.tasks.dense.answers import axes_of, back_to
from kdcli.tasks.reports import Panel


class ImageAnswers(Answers):
    """An image of the same size as the one that was given: as far as the model saw it.

    Of a model whose input is a crop the rest of the image is black.
    """

    has_pictures = True

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the image that is made of each."""
        for one, (height, width) in zip(outputs, batch.targets.tolist(), strict=True):
            made = np.empty((height, width, 3), np.uint8)
            for start, found, shown in back_to(one, (height, width), axes_of(asked.model, (height, width))):
                part = as_pixels(found.masked_fill(~shown, -1.0))
                made[start : start + part.shape[1]] = part.permute(1, 2, 0).numpy()
            red, green, blue = made.reshape(-1, 3).mean(axis=0).tolist()
            record = {"height": height, "width": width, "red": red, "green": green, "blue": blue}
            yield Answer([record], [f"{width}x{height} pixels, mean colour {red:.0f}, {green:.0f}, {blue:.0f}"], made)

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
        return {"_made.png": answer.raw}

    def file_notes(self) -> list[str]:
        """Say what is in the files."""
        return ["NAME_made.png is the image that the model makes, at the size of the one that was given."]
