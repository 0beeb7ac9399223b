"""Packaged weights as a shelf of architectures for students."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kdcli.config.section import height_and_width
from kdcli.models.packaged.places import place_of
from kdcli.models.packaged.rows import ROWS
from kdcli.models.place import Place
from kdcli.models.shelf import Built, Shelf
from kdcli.models.timm.build import load


class PackagedShelf(Shelf):
    """The classifiers; networks of maps are teachers alone."""

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return every classifier."""
        places = [place_of(name) for name, row in ROWS.items() if row.architecture]
        return {place.name: place for place in places}

    def is_published(self, place: Place) -> bool:
        """Whether there are weights: of all."""
        return True

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images, by default of its own size."""
        module, _ = load(place, pretrained=False, num_classes=num_classes, image_size=height_and_width(size))
        assert place.packaged is not None, "it comes from this shelf"
        height, width = place.packaged.preprocessing.image_size if size is None else (size, size)
        image = torch.randn(1, 3, height, width)
        return Built(module.eval(), lambda: module(image), (height, width))
