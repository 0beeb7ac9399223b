"""The frozen teacher beside the distiller."""

from __future__ import annotations

import torch

from kdcli.data import Batch
from kdcli.models.base import Model, ModelOutput


class LiveTeacher:
    """Runs the teacher on each batch and returns no more than the methods read.

    Args:
        model: frozen, in eval mode, on its device.
        taps: features to return.
        logits: whether to run its head.
    """

    def __init__(self, model: Model, *, taps: tuple[str, ...], logits: bool) -> None:
        self.model = model
        self.taps = taps
        self.logits = logits

    def __call__(self, batch: Batch) -> ModelOutput:
        """Return the outputs for ``batch`` without gradient, as ordinary tensors that losses may save."""
        with torch.inference_mode():
            output = self.model(self.model.prepare(batch), taps=self.taps, logits=self.logits)
        # Inference tensors can't be saved for a backward pass: a copy made outside can.
        features = {tap: value.clone() for tap, value in output.features.items()}
        return ModelOutput(features=features, logits=None if output.logits is None else output.logits.clone())
