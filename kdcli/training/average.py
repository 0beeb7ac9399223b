"""The average of a student's weights over the steps of a training."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm


class WeightAverage(ModelEmaV3):
    """timm's moving average, which also keeps spectral normalisations exact.

    A spectral normalisation divides a weight by ``uᵀ W v``, with two vectors of length 1 that a power iteration turns
    towards the largest singular value's in each step of training. Averages of such vectors are shorter than 1 where
    they turn, so that weights would be divided by too little. The average's own vectors are iterated on its own weight
    instead, once for every update.

    Args:
        model: which is averaged.
        decay: of the average, which is shorter at first.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        super().__init__(model, decay=decay, use_warmup=True)
        self._normed = [
            (part, owner, name)
            for owner in self.module.modules()
            for name, parts in getattr(owner, "parametrizations", {}).items()
            for part in parts
            if isinstance(part, _SpectralNorm) and hasattr(part, "_u")
        ]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Take in the model after one more optimiser step."""
        own = [(part._u.clone(), part._v.clone()) for part, *_ in self._normed]
        super().update(model, step)
        for (part, owner, name), (u, v) in zip(self._normed, own, strict=True):
            part._u.copy_(u)
            part._v.copy_(v)
            weight = owner.parametrizations[name].original
            part._power_method(part._reshape_weight_to_matrix(weight), 1)
