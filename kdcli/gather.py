"""The whole batch out of the shares that several training processes have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function


def gather_batch(share: Tensor) -> Tensor:
    """Return the samples of all processes, in the order of their ranks; in a single process the tensor itself.

    For losses that every process computes alike on the whole batch: then the gradient of each share is there already,
    and is only scaled so that the mean over processes, which data-parallel training takes of the parameters'
    gradients, is their sum.

    Args:
        share: (b, ...), as many samples in every process.

    Returns:
        (b * number of processes, ...).
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return share
    return _GatherBatch.apply(share)


class _GatherBatch(Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        share = share.contiguous()
        parts = [torch.empty_like(share) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, share)
        ctx.size = len(share)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        first = distributed.get_rank() * ctx.size
        return gradient[first : first + ctx.size] * distributed.get_world_size()
