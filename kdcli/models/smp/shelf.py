"""The architectures of segmentation-models-pytorch, each with every encoder, as a shelf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import timm
import torch

from kdcli.models.place import Place
from kdcli.models.shelf import Built, Shelf
from kdcli.models.smp.build import make, settings_of
from kdcli.models.smp.names import architectures, package

_SHOWN = ("unet", "fpn", "deeplabv3plus", "segformer")
"""The architectures that are listed where no pattern is given, with ..."""
_SHOWN_ENCODERS = (
    *("resnet18", "resnet34", "resnet50", "mobilenet_v2", "efficientnet-b0", "mit_b0", "mit_b1"),
    *("tu-mobilenetv3_small_050", "tu-mobilenetv3_small_100", "tu-mobilenetv3_large_100", "tu-efficientnet_lite0"),
    *("tu-mobilenetv4_conv_small", "tu-convnext_atto", "tu-convnext_tiny"),
)


class SmpShelf(Shelf):
    """The library's architectures with its own encoders, and with those of timm that it can take."""

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return every pair; timm's encoders are called ``tu-NAME``, as the library does. ViTs are with dpt alone."""
        own = list(package().encoders.encoders)
        vits = [f"tu-{name}" for name in timm.list_models("*vit_*") if name.startswith("vit_")]
        others = [f"tu-{name}" for name in timm.list_models() if not name.startswith(("vit_", "test_"))]
        found = {}
        for architecture in architectures():
            for encoder in vits if architecture == "dpt" else [*own, *others]:
                name = f"smp:{architecture}/{encoder}"
                found[name] = Place("segmentation-models-pytorch", name, architecture=f"{architecture}/{encoder}")
        return found

    def is_shown(self, name: str) -> bool:
        """Whether it is a usual architecture with a usual encoder; a pattern finds all others."""
        architecture, _, encoder = name.removeprefix("smp:").partition("/")
        return architecture in _SHOWN and encoder in _SHOWN_ENCODERS

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images."""
        settings = settings_of(place)
        settings = settings.at(settings.images(None if size is None else (size, size)).image_size)
        height, width = (size, size) if size is not None else settings.images(None).image_size
        module = make(place, replace(settings, num_outputs=num_classes or 1)).eval()
        image = torch.randn(1, 3, height, width)
        return Built(module, lambda: module(image), (height, width))
