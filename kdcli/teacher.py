"""The frozen teacher beside the distiller."""

from __future__ import annotations

import torch

from kdcli.data import AnyBatch
from kdcli.models.base import Model, ModelOutput


class LiveTeacher:
    """Runs the teacher on each batch and returns no more than the methods read.

    Args:
        model: frozen, in eval mode, on its device.
        taps: features to return.
        logits: whether to run its head.
        maps: features to return as maps.
    """

    def __init__(self, model: Model, *, taps: tuple[str, ...], logits: bool, maps: tuple[str, ...] = ()) -> None:
        self.model = model
        self.taps = taps
        self.maps = maps
        self.logits = logits

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch`` without gradient."""
        if not (self.taps or self.maps or self.logits):  # only an earlier stage had a use for it
            return ModelOutput({}, None)
        with torch.no_grad():  # not inference mode, whose tensors no backward pass may save
            inputs = self.model.prepare(batch)
            return self.model(inputs, taps=self.taps, maps=self.maps, logits=self.logits)
