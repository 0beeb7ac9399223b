"""The whole batch out of the shares that several training processes have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function


def is_alone() -> bool:
    """Whether no other process trains with this one."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1


def number_of_processes() -> int:
    """Return how many processes train together; 1 for this one alone."""
    return 1 if is_alone() else distributed.get_world_size()


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
    if is_alone():
        return share
    return _GatherBatch.apply(share)


def gather_rows(share: Tensor) -> Tensor:
    """Return the rows of all processes as :func:`gather_batch` does, where each process may have another number.

    Args:
        share: (n, ...); only n may differ between processes.

    Returns:
        (sum of all n, ...).
    """
    if is_alone():
        return share
    own = torch.tensor([len(share)], device=share.device)
    counts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own)
    numbers = [int(count) for count in counts]
    padding = share.new_zeros(max(numbers) - len(share), *share.shape[1:])
    parts = gather_batch(torch.cat([share, padding])).unflatten(0, (len(numbers), max(numbers)))
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])


def gather_list(part: list[Any]) -> list[Any]:
    """Return the things of all processes, in the order of their ranks; all that can be pickled, any number of them."""
    if is_alone():
        return part
    parts: list[list[Any]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, part)
    return [item for items in parts for item in items]


def sum_over(share: Tensor) -> Tensor:
    """Return the sum of ``share`` over all processes, without gradient; in a single process the tensor itself."""
    if is_alone():
        return share
    total = share.detach().clone()
    distributed.all_reduce(total)
    return total


def sum_shares(share: Tensor) -> Tensor:
    """Return the sum of ``share`` over all processes, with :func:`gather_batch`'s gradient; alone the tensor itself.

    Args:
        share: of one shape in every process.
    """
    if is_alone():
        return share
    return _SumShares.apply(share)


class _SumShares(Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return sum_over(share)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * distributed.get_world_size()


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
