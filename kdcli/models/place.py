"""Where a model is: its library and its name or folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcli.base.names import Quantization
from kdcli.models.packaged.rows import Packaged
from kdcli.models.spec import format_query


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Attributes:
        library: the name of the one whose model it is.
        name: resolved, with the library: ``timm:resnet50.a1_in1k``, ``hf:org/name``, ``cifar:resnet20``.
        architecture: what its library calls it: a name in timm's registry, with or without a tag, a kind of model of
            transformers, with its default config; None for a folder.
        folder: with ``config.json``, and weights unless only the architecture was asked for; None for the registry.
        run: the run folder of ``kdcli distill`` whose best student is meant; None for anything else.
        arguments: of the architecture, that differ from its own.
        packaged: the weights in a package that its name stands for; None where they are published otherwise.
        quantization: how the weights are to be kept; None as they are.
        channels: of the images that it is to read; None for its own number.
    """

    library: str
    name: str
    architecture: str | None = None
    folder: Path | None = None
    run: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    packaged: Packaged | None = None
    quantization: Quantization | None = None
    channels: int | None = None

    def with_arguments(self, arguments: Mapping[str, Any]) -> Place:
        """Return the same place with its architecture changed further, in its name too."""
        merged = {**self.arguments, **arguments}
        return replace(self, name=self.name.partition("?")[0] + format_query(merged), arguments=merged)
