"""A generator with the interface that all models have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from kdcli.base.facts import Preprocessing
from kdcli.base.reads import IMAGE
from kdcli.models.base import Origin
from kdcli.models.generators import networks
from kdcli.models.generators.exported import CODE
from kdcli.models.maps import MapModel
from kdcli.models.vision import check_divides


class TranslatorModel(MapModel):
    """A network that turns an image into another one.

    ``pooled`` is what its decoder begins with: the last residual block's output, of a U-Net the innermost map. All
    other layers can be opened, those of the decoder too. The head ``image`` is (B, 3, H, W), from -1 to 1, as large as
    the input.

    Args:
        module: out of :mod:`kdcli.models.generators.networks`.
        origin: where it came from.
        preprocessing: how it wants its images.
        task: what it is for.
        settings: of its ``config.json``.
    """

    head: ClassVar[str] = IMAGE

    def __init__(
        self, module: Any, origin: Origin, preprocessing: Preprocessing, task: str, settings: Mapping[str, Any]
    ) -> None:
        check_divides(origin.name, preprocessing.image_size, module.multiple)
        super().__init__(module, origin, preprocessing, task, settings)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``generator.py``, whose ``load(FOLDER)`` needs no kdcli."""
        super().save(folder)
        (folder / CODE).write_bytes(Path(networks.__file__).read_bytes())

    @property
    def native(self) -> nn.Module:
        """The network: it returns the image."""
        return self.module
