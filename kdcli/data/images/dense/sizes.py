"""Whether images and what belongs to them have one size: some are looked at, by their headers, before training."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.base.errors import UserError
from kdcli.data.images.dense.boxes import Boxes
from kdcli.data.images.dense.files import Encoded, size_of
from kdcli.data.images.sources import FileSource, ImageSource

_LOOKED_AT = 16
"""So many of a split, evenly spread."""


def check_sizes(images: ImageSource, targets: Encoded) -> None:
    """Compare the sizes of some images with those of what belongs to them, by their headers.

    Raises:
        UserError: they differ.
    """
    if not isinstance(images, FileSource):
        return
    size = len(images)
    for index in dict.fromkeys(number * size // _LOOKED_AT for number in range(_LOOKED_AT)):
        encoded = targets.encoded(index)
        sizes = None if encoded is None else (size_of(images.paths[index]), size_of(encoded))
        if sizes is None or None in sizes or sizes[0] == sizes[1]:
            continue
        assert sizes[0] is not None
        assert sizes[1] is not None
        if sizes[0] == sizes[1][::-1]:  # perhaps turned by its EXIF data: seen when it is read
            continue
        raise UserError(
            f"{targets.describe(index)} is {sizes[1][0]}x{sizes[1][1]}, and its image {images.paths[index]} is"
            f" {sizes[0][0]}x{sizes[0][1]} (width x height).",
            "An image and what belongs to it have one size.",
        )


def check_box_sizes(images: ImageSource, boxes: Sequence[Boxes]) -> None:
    """Compare the sizes of some images with those that their annotations have, by their headers.

    Raises:
        UserError: they differ.
    """
    if not isinstance(images, FileSource):
        return
    size = len(images)
    for index in dict.fromkeys(number * size // _LOOKED_AT for number in range(_LOOKED_AT)):
        said, found = boxes[index].size, size_of(images.paths[index])
        if said is None or found is None or found == said or found == said[::-1]:
            continue
        raise UserError(
            f"{images.paths[index]} is {found[0]}x{found[1]}, and its boxes are of an image of {said[0]}x{said[1]}"
            " (width x height).",
            "Boxes are in pixels of the very image.",
        )
