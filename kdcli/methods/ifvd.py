"""Intra-class feature variation distillation (Wang et al., ECCV 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli import losses
from kdcli.config.methods import IFVDOptions
from kdcli.methods.base import Context, LayerMethod
from kdcli.methods.share import Share, mean_of
from kdcli.models.outputs import ModelOutput


class IFVD(LayerMethod):
    """:func:`kdcli.losses.ifvd` of the labelled positions, summed over the layers.

    The mean of a pair of layers is over the labelled positions of the student's grid, of all images together.
    """

    def __init__(self, options: IFVDOptions, context: Context) -> None:
        super().__init__(options, context)
        # Maps of other layers have other positions, and so other numbers of labelled ones: one sum for each.
        if options.projector is None and len(self.layers) == 1:
            self.scope = "local"

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor
    ) -> Tensor | Share:
        """Return the loss; zero, with a gradient, where nothing is labelled."""
        values = [losses.ifvd(*pair, targets) for pair in self.pairs(student, teacher)]
        if self.scope == "local":
            return Share.of(values[0])
        return torch.stack([mean_of(of_pair) for of_pair in values]).sum()


build = IFVD
