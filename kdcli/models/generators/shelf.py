"""The generators as a shelf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from kdcli.models.generators.biggan import SAMPLERS, SIDES
from kdcli.models.generators.loading import SIDE
from kdcli.models.generators.networks import TRANSLATORS
from kdcli.models.place import Place
from kdcli.models.shelf import Built, Shelf


class GeneratorShelf(Shelf):
    """Networks by name.

    Args:
        library: the library's name.
        names: of the networks, with its prefix.
    """

    def __init__(self, library: str, names: Sequence[str]) -> None:
        self._library, self._names = library, names

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return all."""
        return {name: Place(self._library, name, architecture=name.partition(":")[2]) for name in self._names}

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images."""
        if (network := str(place.architecture)) in SAMPLERS:
            sampler = SAMPLERS[network]().eval()
            z = torch.randn(1, sampler.dim_z)
            return Built(sampler, lambda: sampler(z), (SIDES[network],) * 2)
        side = size or SIDE
        module = TRANSLATORS[str(place.architecture)]().eval()
        image = torch.randn(1, 3, side, side)
        return Built(module, lambda: module(image), (side, side))
