"""Networks whose answer is a map or an image, made of the maps of a trunk: those of packages, and generators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdcli.base.facts import Preprocessing
from kdcli.base.reads import LOGITS, Reads
from kdcli.models.base import Origin, Probe
from kdcli.models.outputs import ModelOutput, pooled_output
from kdcli.models.saved import write_network
from kdcli.models.vision import VisionModel


class MapModel(VisionModel):
    """A network with a trunk of several levels and a part that makes maps of them.

    ``pooled`` is the trunk's last level: the deepest features, before anything is brought back to the image's size. The
    other levels, and those of a decoder after it, are layers to be opened. The one head, called ``head``, is the maps
    (B, C, h, w); they are no classes, so ``facts.num_classes`` is 0 and there are no label names.

    Args:
        module: with ``trunk``, ``maps`` and ``levels``.
        origin: where it came from.
        preprocessing: how it wants its images.
        task: what it is for.
        settings: what its ``config.json`` says beside its preprocessing: ``library``, ``network`` and so on.

    Attributes:
        head: the name of its answer.
    """

    head: ClassVar[str] = LOGITS

    def __init__(
        self,
        module: nn.Module,
        origin: Origin,
        preprocessing: Preprocessing,
        task: str,
        settings: Mapping[str, Any],
    ) -> None:
        self.library = str(settings["library"])
        self._own_task, self.settings = task, settings
        super().__init__(module, origin, preprocessing, 0)

    def _probe(self, inputs: Tensor, num_classes: int) -> Probe:
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            last = self._trunk(inputs)[-1]
        self.module.train(was_training)
        measured = self._measure(inputs, Reads(heads=(self.head,)))
        return Probe({"pooled": last.shape[1]}, measured, {"pooled": (last.shape[2], last.shape[3])})

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return (self.head,)

    def _run(self, inputs: Tensor, reads: Reads) -> ModelOutput:
        levels = self._trunk(inputs)
        output = pooled_output(levels[-1], reads)
        if reads.heads or self._reads_beyond_trunk():
            maps = self.module.maps(levels)  # type: ignore[operator]
            output.heads |= dict.fromkeys(reads.heads, maps)
        return output

    def _reads_beyond_trunk(self) -> bool:
        """Whether a layer is read in this pass that runs after the trunk."""
        trunk = {level.partition(".")[0] for level in self._levels}
        wanted = [name for name, layer in self._layers.items() if layer.wants_mean or layer.wants_map]
        return any(name.partition(".")[0] not in trunk for name in wanted)

    def _layer_lists(self) -> list[list[str]]:
        return [list(self._levels)]

    @property
    def _levels(self) -> tuple[str, ...]:
        levels: Any = self.module.levels
        return tuple(levels)

    def _trunk(self, inputs: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.module.trunk(inputs)  # type: ignore[operator]
        return levels

    @property
    def _num_prefix_tokens(self) -> int:
        return 0

    def _head_names(self) -> None:
        return None

    def _task(self, num_classes: int) -> str:
        return self._own_task

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, which names the library and the network."""
        write_network(self, folder, self.settings)
