"""A detector of torchvision behind kdcli's interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.base.facts import Preprocessing
from kdcli.base.reads import Reads
from kdcli.machine.gather import is_alone, number_of_processes, sum_over
from kdcli.models.base import Inputs, Origin, Probe
from kdcli.models.detections import BOXES, DetectionModel, Detections, scale_boxes, unpack
from kdcli.models.outputs import ModelOutput
from kdcli.models.saved import write_network
from kdcli.models.taps import edges_of
from kdcli.models.torchvision_detection.networks import LOSSES, NETWORKS
from kdcli.models.torchvision_detection.passes import Counted, filled_up, levels_of, losses_and_boxes

NECK = "neck."
"""Before the name of a level: its tap."""
_MOST_STAGES = 4


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Let what is drawn for a loss be the same each time, and put the generators back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
        yield


class TorchvisionDetector(DetectionModel):
    """A detector of torchvision.

    Its taps beside ``pooled``, the last map of the backbone before the neck, are the levels that its heads read:
    ``neck.`` and torchvision's name of each, such as ``neck.0`` and ``neck.pool``.

    Args:
        module: the detector.
        origin: where it came from.
        preprocessing: how it wants its images; nothing is resized or normalised within the module.
        settings: what its ``config.json`` says beside labels and preprocessing: ``library``, ``network``,
            ``num_outputs`` (classes without background), ``arguments``, and ``frozen``: whether normalisations and the
            first stages of the backbone are kept as they came with published weights.
    """

    library = "torchvision_detection"

    def __init__(
        self, module: nn.Module, origin: Origin, preprocessing: Preprocessing, settings: Mapping[str, Any]
    ) -> None:
        self.settings = dict(settings)
        super().__init__(module, origin, preprocessing, settings["num_outputs"])
        self.facts = replace(self.facts, losses=LOSSES[NETWORKS[settings["network"]].family])

    def _probe(self, inputs: Any, num_classes: int) -> Probe:
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            levels, last = levels_of(self.module, filled_up(self.module, inputs).tensors)
        self.module.train(was_training)
        maps = {"pooled": last} | {NECK + name: level for name, level in levels.items()}
        measured = self._measure(inputs, Reads(heads=(BOXES,)))
        dims = {name: int(found.shape[1]) for name, found in maps.items()}
        return Probe(dims, measured, {name: (found.shape[2], found.shape[3]) for name, found in maps.items()})

    def _run(self, inputs: Inputs, reads: Reads) -> ModelOutput:
        images, canvas, targets = unpack(inputs, size=self.preprocessing.image_size)
        filled = filled_up(self.module, images)
        levels, last = levels_of(self.module, filled.tensors)
        output = ModelOutput()
        maps = {"pooled": last} | {NECK + name: level for name, level in levels.items()}
        for tap in reads.taps:
            output.edges[tap] = edges_of(maps[tap])
        # An in-place activation of what reads them later would write over them.
        output.maps |= {tap: maps[tap].clone() for tap in reads.maps}
        output.features |= {tap: maps[tap].mean(dim=(2, 3)) for tap in reads.features}
        if BOXES in reads.heads:
            if self.module.training and targets is None:
                raise ValueError("a detector in training needs its targets with the images")
            output.heads[BOXES] = self._detect(filled, levels, targets, canvas)
        return output

    def _detect(self, filled: Any, levels: dict[str, Tensor], targets: Any, canvas: tuple[int, int]) -> Detections:
        chooses = not self.module.training
        with _same_draws(filled.tensors.device) if chooses else nullcontext():
            losses, found, raw = losses_and_boxes(self.module, filled, levels, targets, chooses=chooses)
        size = self.preprocessing.image_size
        boxes = [{**one, "boxes": scale_boxes(one["boxes"], size, canvas)} for one in found]
        shares = {name: self._share(counted) for name, counted in losses.items()}
        return Detections(canvas, boxes, shares, raw)

    def _share(self, counted: Counted) -> Tensor:
        """Return a loss so that its mean over the processes is that of all samples."""
        if is_alone() or not self.module.training:
            return counted.loss
        count = counted.number.to(counted.loss)
        return counted.loss * count.clamp(min=1) * number_of_processes() / sum_over(count).clamp(min=1)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; normalisations that are kept as they are stay in evaluation."""
        super().train(mode)
        if self.settings["frozen"]:
            for part in self.module.backbone.modules():  # type: ignore[union-attr]
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

    def open_stages(self) -> None:
        """Name the levels of the neck as stages, at most four from the finest on: they are taps already."""
        levels = [name for name in self.facts.feature_dims if name.startswith(NECK)]
        self.facts = replace(self.facts, stages=tuple(levels[:_MOST_STAGES]))

    @property
    def _num_prefix_tokens(self) -> int:
        return 0

    def _head_names(self) -> None:
        return None

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, which names the network and its arguments."""
        write_network(self, folder, self.settings)
