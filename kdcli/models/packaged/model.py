"""Networks that give maps of something, and know no classes."""

from __future__ import annotations

from torch import nn

from kdcli.base.facts import Preprocessing
from kdcli.models.base import Origin
from kdcli.models.maps import MapModel
from kdcli.models.packaged.craft import CRAFT
from kdcli.models.packaged.hed import HED
from kdcli.models.packaged.rows import Packaged

NETWORKS: dict[str, type[HED] | type[CRAFT]] = {"hed": HED, "craft": CRAFT}
"""By the name of their row."""


def map_model(module: nn.Module, origin: Origin, preprocessing: Preprocessing, row: Packaged) -> MapModel:
    """Return a row's network as a model."""
    return MapModel(module, origin, preprocessing, row.task, {"library": "packaged", "network": row.name})
