"""timm's registry as a shelf of architectures."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch

from kdcli.config.section import height_and_width
from kdcli.models.libraries import find_extension
from kdcli.models.place import Place
from kdcli.models.shelf import Built, Shelf
from kdcli.models.timm import kdcli_networks
from kdcli.models.timm.build import load
from kdcli.models.timm.registry import load_architectures


class TimmShelf(Shelf):
    """timm's classifiers of images, and backbones."""

    def __init__(self) -> None:
        self._published = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return the registry, those of CIFAR and of the extension called ``prefix`` by their own names."""
        entry = find_extension(prefix) if prefix else None
        if entry is not None:
            load_architectures(entry)
        places = {}
        for architecture in timm.list_models():
            own = architecture in kdcli_networks.NAMES and architecture.startswith("cifar_")
            own = own or (entry is not None and architecture.startswith(f"{entry.name}_"))
            name = architecture.replace("_", ":", 1) if own else architecture
            places[name] = Place("timm", name, architecture=architecture)
        return places

    def is_shown(self, name: str) -> bool:
        """Whether it is none of timm's own test networks."""
        return not name.startswith("test_")

    def is_published(self, place: Place) -> bool:
        """Whether timm has weights."""
        return place.architecture in self._published

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images, by default of its own size."""
        module, _ = load(place, pretrained=False, num_classes=num_classes, image_size=height_and_width(size))
        own = module.pretrained_cfg["input_size"][1:]  # type: ignore[index]
        height, width = own if size is None else (size, size)
        image = torch.randn(1, 3, int(height), int(width))
        return Built(module.eval(), lambda: module(image), (int(height), int(width)))
