"""A mean over the rows of all processes out of what each of them has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.machine.gather import is_alone, sum_over, sum_shares


@dataclass(frozen=True)
class Share:
    """The loss of a process's own rows, from which that of all processes' rows follows: the mean over all of them.

    Attributes:
        mean: of the process's own rows, a scalar: their sum over ``max(count, 1)``.
        count: how many rows it is a mean over, a number or a scalar tensor; mixed labels count in part.
    """

    mean: Tensor
    count: Tensor | float

    @classmethod
    def of(cls, values: Tensor) -> Share:
        """Return the share of ``values``, of any shape, each of which counts; there may be none."""
        return cls(mean_of(values), values.numel())

    def whole(self) -> Tensor:
        """Return the mean over the rows of all processes, with gradient; alone the process's own mean."""
        if is_alone():
            return self.mean
        count = torch.as_tensor(self.count, dtype=self.mean.dtype, device=self.mean.device)
        mean = torch.where(count > 0, self.mean, 0)  # of no rows it may be NaN
        return sum_shares(mean * count.clamp(min=1)) / sum_over(count).clamp(min=1)


def mean_of(values: Tensor) -> Tensor:
    """Return the mean of ``values``; of none of them 0, with a gradient."""
    return values.mean() if values.numel() else values.sum()
