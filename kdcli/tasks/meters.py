"""Metrics over a split, from its batches: what all meters have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from kdcli.data import AnyBatch
from kdcli.machine.team import Team

if TYPE_CHECKING:
    from torchmetrics import Metric

SampleSums = Mapping[str, Tensor]
"""By metric, what each of the B samples of a batch adds to the sums of :func:`kdcli.statistics.intervals.metric_of`:
float64 (B, k) on the CPU. By them samples can be resampled. Metrics that are not made of sums, such as rank
correlations, are left out."""


class Meter(Protocol):
    """The metrics of one model on one split, over all processes of a team."""

    def update(self, outputs: Any, batch: AnyBatch) -> SampleSums:
        """Add a batch of this process.

        Args:
            outputs: what :meth:`kdcli.tasks.base.Task.predict` returned for ``batch``.
            batch: at least one sample, on the team's device.
        """

    def compute(self) -> dict[str, float]:
        """Return the metrics of all batches of all processes, the task's monitor and ``loss`` among them.

        Raises:
            UserError: there was nothing to measure on.
        """


class TeamMetrics:
    """Metrics of torchmetrics, brought together over a team.

    Args:
        metrics: by name, new ones.
        team: of the processes that have a share of the samples each.
    """

    def __init__(self, metrics: Mapping[str, Metric], team: Team) -> None:
        self._metrics = {name: metric.to(team.device) for name, metric in metrics.items()}
        for metric in self._metrics.values():
            metric.dist_sync_fn = lambda state, group: [
                share.to(state.device) for share in team.gather([state.detach().cpu()])
            ]
            metric.distributed_available_fn = lambda: not team.is_alone

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch to each."""
        for metric in self._metrics.values():
            metric.update(outputs, targets)

    def compute(self) -> dict[str, float]:
        """Return the values by name."""
        return {name: float(metric.compute()) for name, metric in self._metrics.items()}


def shares(hits: Tensor) -> Tensor:
    """Return what samples add to a mean of theirs, float64 (B, 2): their own value (B,), and 1."""
    hits = hits.cpu().double()
    return torch.stack([hits, torch.ones_like(hits)], dim=1)
