"""What each sample adds to the sums that a task's metrics are made of, by which samples can be resampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kdcli.data import AnyBatch

Note = Callable[[AnyBatch, Mapping[str, Tensor]], None]
"""Told of a batch and, by metric, of what each of its B samples adds to the sums of :func:`kdcli.statistics.intervals.metric_of`:
float64 (B, k). Metrics that are not made of sums, such as rank correlations, are left out."""


def ignore_sums(batch: AnyBatch, sums: Mapping[str, Tensor]) -> None:
    """Tell nobody."""


def shares(hits: Tensor) -> Tensor:
    """Return what samples add to a mean of theirs, float64 (B, 2): their own value (B,), and 1."""
    hits = hits.cpu().double()
    return torch.stack([hits, torch.ones_like(hits)], dim=1)
