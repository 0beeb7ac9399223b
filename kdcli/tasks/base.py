"""What every task has in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from torch import Tensor

from kdcli.base.facts import DataFacts
from kdcli.data import AnyBatch
from kdcli.machine.team import Team
from kdcli.tasks.meters import Meter


class Task(Protocol):
    """What a student is trained to do.

    Attributes:
        name: as in the config.
        monitor: the metric that the best student is chosen by; higher is better; see
            :func:`rank_students`.
        class_names: of the student's head, in order; empty where it has none.
    """

    name: str
    monitor: str
    class_names: tuple[str, ...]

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``; ``reference`` is of a batch to the teacher's embeddings."""

    def supervised_loss(self, logits: Any, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Return the loss on the labels, a scalar averaged over what is labelled, from what ``predict`` returns."""

    def meter(self, team: Team) -> Meter:
        """Return a new meter of the metrics, ``monitor`` and ``loss`` among them, over the samples that ``team`` shares."""


def rank_students(metrics: Mapping[str, float], monitor: str) -> tuple[bool, bool, float, float]:
    """Return what orders students by their metrics: the greater is the better one, whatever the task.

    A loss that is not finite is worst. A monitored metric that is not finite, as the correlation of a constant
    prediction, ranks below every one that is. Ties go to the lower loss.

    Args:
        metrics: as a :class:`~kdcli.tasks.meters.Meter` computes them; without a ``loss`` it counts as 0.
        monitor: the metric that decides.
    """
    value, loss = metrics[monitor], metrics.get("loss", 0.0)
    has_loss, has_value = math.isfinite(loss), math.isfinite(value)
    return has_loss, has_value, value if has_value else 0.0, -loss if has_loss else 0.0
