"""Methods without modules of their own: one loss on the features or maps of every pair of layers, summed over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from kdcli import losses
from kdcli.config.methods import (
    AttentionTransferOptions,
    CIRKDOptions,
    CorrelationCongruenceOptions,
    LayerOptions,
    NSTOptions,
    PKDOptions,
    PKTOptions,
    RKDAngleOptions,
    RKDDistanceOptions,
    SimilarityPreservingOptions,
    SKDOptions,
)
from kdcli.methods.base import Context, LayerMethod
from kdcli.models.outputs import ModelOutput


class Pairwise(LayerMethod):
    """``Σ loss(student's, teacher's)`` over the pairs of layers, with a loss of :mod:`kdcli.losses`.

    With a projector the loss is that of the projected, standardised features (see
    :class:`~kdcli.methods.base.LayerMethod`). Distances and angles (RKD) and similarities (PKT, SP, CC) then are those
    of the samples in the space of one side. Attention is the power of the projected maps' deviation from their mean,
    and NST's neurons are the projected channels. These two read patterns over positions: a direction in which the
    teacher differs between samples alone would fit a student that does so too; one that never changes is gone.
    Similarities of positions (SKD, CIRKD) are those of the projected ones; PKD is then MSE/2 of standardised maps, of
    which the projected side is standardised once more where it is the teacher's.
    """

    def __init__(self, options: LayerOptions, context: Context) -> None:
        super().__init__(options, context)
        self.compare = _loss(options)
        self.is_aligned = isinstance(options, PKDOptions)
        is_by_sample = isinstance(options, (AttentionTransferOptions, NSTOptions, SKDOptions))
        if is_by_sample and options.projector is None:  # a projector comes with statistics of the batch
            self.scope = "local"

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield what the loss gives for each pair."""
        for pair in self.pairs(student, teacher):
            yield self.compare(*pair)


def _loss(options: LayerOptions) -> Callable[[Tensor, Tensor], Tensor]:
    match options:
        case AttentionTransferOptions():
            return partial(losses.attention_transfer, power=options.power, reduction="mean")
        case NSTOptions():
            return partial(losses.nst, kernel=options.kernel)
        case SimilarityPreservingOptions():
            return losses.similarity_preserving
        case PKTOptions():
            return losses.pkt
        case CorrelationCongruenceOptions():
            return partial(losses.correlation_congruence, gamma=options.gamma, order=options.order)
        case SKDOptions():
            return partial(losses.skd, pool=options.pool)
        case CIRKDOptions():
            return partial(losses.cirkd, temperature=options.temperature, max_positions=options.max_positions)
        case PKDOptions():
            return losses.pkd
        case RKDDistanceOptions():
            return losses.rkd_distance
        case RKDAngleOptions():
            return losses.rkd_angle
    raise TypeError(f"{options.method} is no method of one loss")


build = Pairwise
