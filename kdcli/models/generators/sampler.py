"""Generators that make images out of random numbers, with the interface that all models have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.base.facts import Preprocessing
from kdcli.base.reads import IMAGE, Reads
from kdcli.base.tasks import TASKS, TaskFacts
from kdcli.data import AnyBatch
from kdcli.machine.seeding import draw
from kdcli.models.base import Inputs, Origin, Probe
from kdcli.models.generators import biggan
from kdcli.models.generators.exported import CODE
from kdcli.models.outputs import ModelOutput, pooled_output
from kdcli.models.saved import write_network
from kdcli.models.taps import LayerTap, describe_layer
from kdcli.models.vision import VisionModel


def row_of_samplers() -> TaskFacts:
    """Return the row of the task that they are for."""
    return next(row for row in TASKS.values() if row.target == "samples")


class SamplerModel(VisionModel):
    """A network that makes an image out of random numbers, and a class where it knows any.

    It reads no images: what it makes of a sample is a function of the sample's id and view, of its class, and of a seed
    of its own. ``pooled`` is its last block's maps; the head ``image`` is (B, 3, H, W), from -1 to 1.

    Args:
        module: out of :mod:`kdcli.models.generators.biggan`.
        origin: where it came from.
        preprocessing: of real images as large as those that it makes.
        settings: of its ``config.json``: network, arguments, number of classes and seed.
    """

    module: Any

    def __init__(
        self, module: nn.Module, origin: Origin, preprocessing: Preprocessing, settings: Mapping[str, Any]
    ) -> None:
        self.library, self.settings = str(settings["library"]), settings
        super().__init__(module, origin, preprocessing, int(settings["num_classes"]))

    @property
    def seed(self) -> int:
        """Of its random numbers."""
        return int(self.settings["seed"])

    def prepare(self, batch: AnyBatch) -> Inputs:
        """Return ``z`` (B, dim_z) and ``classes`` (B,) where it has any, of the batch's samples, on their device."""
        found = {"z": draw(batch.samples, batch.view, self.module.dim_z, "z", self.seed)}
        return found | ({"classes": batch.targets} if self.module.num_classes else {})

    def sample(self, numbers: Tensor, *, seed: int, bound: float | None, classes: Tensor | None) -> Tensor:
        """Return images (B, 3, H, W), from -1 to 1.

        Args:
            numbers: int64 (B,), of the images: each is a function of its number, ``seed`` and its class.
            seed: of the random numbers.
            bound: numbers beyond it are drawn again.
            classes: int64 (B,), of a generator that knows any.
        """
        z = draw(numbers, torch.zeros_like(numbers), self.module.dim_z, "sample", seed, bound=bound)
        inputs = {"z": z} | ({} if classes is None else {"classes": classes})
        image: Tensor = self(inputs).heads[IMAGE]
        return image

    def example(self, batch_size: int = 1, *, seed: int = 0) -> Any:
        """Return made-up inputs, with the classes in turn."""
        generator = torch.Generator().manual_seed(seed)
        found = {"z": torch.randn(batch_size, self.module.dim_z, generator=generator)}
        number = self.module.num_classes
        return found | ({"classes": torch.arange(batch_size) % number} if number else {})

    def _probe(self, inputs: Any, num_classes: int) -> Probe:
        measured = self._measure(inputs, Reads(maps=("pooled",), heads=(IMAGE,)))
        _, width, rows, columns = measured.result.maps["pooled"].shape
        return Probe({"pooled": width}, measured, {"pooled": (rows, columns)})

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return (IMAGE,)

    def _run(self, inputs: Any, reads: Reads) -> ModelOutput:
        maps = self.module.trunk(inputs["z"], inputs.get("classes"))
        output = pooled_output(maps, reads)
        if reads.heads:
            output.heads |= dict.fromkeys(reads.heads, self.module.image(maps))
        return output

    def _describe_layer(self, name: str, outputs: list[Any], inputs: Any) -> tuple[LayerTap, int]:
        image = torch.empty(1, 3, *self.preprocessing.image_size)
        return describe_layer(self.facts.name, name, outputs, image, 0)

    def _layer_lists(self) -> list[list[str]]:
        return [[f"blocks.{number}" for number in range(len(self.module.blocks))]]

    @property
    def _num_prefix_tokens(self) -> int:
        return 0

    def _head_names(self) -> None:
        return None

    def _task(self, num_classes: int) -> str:
        return row_of_samplers().name

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``generator.py``, whose ``load(FOLDER)`` needs no kdcli."""
        write_network(self, folder, self.settings)
        (folder / CODE).write_bytes(Path(biggan.__file__).read_bytes())
