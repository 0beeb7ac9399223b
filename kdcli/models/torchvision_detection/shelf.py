"""torchvision's detectors as a shelf of architectures."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kdcli.models.place import Place
from kdcli.models.shelf import Built, Shelf
from kdcli.models.torchvision_detection.loading import OWN_CLASSES
from kdcli.models.torchvision_detection.model import TorchvisionDetector
from kdcli.models.torchvision_detection.networks import NETWORKS
from kdcli.models.torchvision_detection.passes import filled_up, levels_of, losses_and_boxes


class DetectorShelf(Shelf):
    """The detectors."""

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return all of them."""
        names = {f"torchvision:{network}": network for network in NETWORKS}
        return {name: Place(TorchvisionDetector.library, name, architecture=network) for name, network in names.items()}

    def is_published(self, place: Place) -> bool:
        """Whether torchvision has weights of the whole detector."""
        return NETWORKS[str(place.architecture)].is_published

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images, with COCO's classes where none are counted."""
        network = NETWORKS[str(place.architecture)]
        side = size or network.side
        module = network.made(num_classes or OWN_CLASSES, {}, (side, side)).make().eval()
        image = torch.randn(1, 3, side, side)

        def run() -> object:
            filled = filled_up(module, image)
            levels, _ = levels_of(module, filled.tensors)
            return losses_and_boxes(module, filled, levels, None, chooses=True)

        return Built(module, run, (side, side))
