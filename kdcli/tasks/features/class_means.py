"""Means of features by class, and the classifier that the nearest of them makes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.machine.team import ALONE, Team

NCM_ACCURACY = "ncm_accuracy"
"""What :func:`nearest_class_mean_accuracy` is called among a run's metrics."""


def class_means(
    batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, width: int, team: Team
) -> tuple[Tensor, Tensor]:
    """Return the mean feature of every class.

    Args:
        batches: features (B, width) with their targets, int64 (B,); those without a label are left out.
        num_classes: C.
        width: of the features.
        team: of the processes that have a share of the batches each.

    Returns:
        On the CPU, float64: the means (C, width), zeros for a class without a sample, and the numbers of samples (C,).
    """
    sums = torch.zeros(num_classes, width + 1, dtype=torch.float64)  # the last column counts
    for features, targets in batches:
        labelled = (targets != UNLABELLED).cpu()
        rows = F.pad(features.detach().cpu().double(), (0, 1), value=1.0)
        sums.index_add_(0, targets.cpu()[labelled], rows[labelled])
    sums = team.sum(sums).cpu()
    counts = sums[:, -1]
    return sums[:, :-1] / counts.clamp(min=1)[:, None], counts


def nearest_class_mean_accuracy(
    training: Iterable[tuple[Tensor, Tensor]],
    held_out: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    width: int,
    team: Team = ALONE,
) -> float:
    """Return the share of ``held_out`` whose nearest class mean, by Euclidean distance, is that of its own class.

    All features are brought to length one first; the means of those are taken as they are. A class without a training
    sample is never the nearest.

    Args:
        training: features (B, width) with their targets, for the means; unlabelled ones are left out.
        held_out: likewise, labelled.
        num_classes: C.
        width: of the features.
        team: of the processes that have a share of the batches each.

    Raises:
        UserError: there is nothing held out, or no training sample with a label.
    """
    means, counts = class_means(
        ((F.normalize(features.float()), targets) for features, targets in training), num_classes, width, team
    )
    totals = torch.zeros(2, dtype=torch.float64)  # right, all
    for features, targets in held_out:
        distances = torch.cdist(F.normalize(features.float()).cpu().double(), means)
        nearest = distances.masked_fill(counts == 0, torch.inf).argmin(dim=1)
        totals += torch.tensor([(nearest == targets.cpu()).sum(), len(targets)], dtype=torch.float64)
    right, count = team.sum(totals).tolist()
    if count == 0:
        raise UserError("None of the evaluation images can be read.", "Check the files of that split.")
    if not counts.any():
        raise UserError("None of the labelled training images can be read.", "Check the files of that split.")
    return right / count
