"""What a student that learnt without labels is good for: its frozen features, measured on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.data import ImageData, ImageSource
from kdcli.data.images.unlabelled import labelled_sample
from kdcli.data.unreadable import check_readable
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.tasks.embedding.texts import in_order
from kdcli.tasks.features.frozen import NEIGHBOURS, frozen_accuracies
from kdcli.training.job import Job

_SEED = 0
COLUMNS = {"student": "", "as initialised": "initial_", "teacher": "teacher_"}
"""Whose features -> how the names of their metrics begin."""
ROWS = {f"{NEIGHBOURS}-NN accuracy": "knn_accuracy", "linear probe accuracy": "linear_probe_accuracy"}


def measure_features(
    job: Job,
    labelled: ImageData,
    student: Model,
    team: Team,
    skip: Callable[[Iterable[str]], None],
) -> dict[str, float]:
    """Return accuracies of classifiers on the pooled features of student, untrained student and teacher.

    Each model has its own preprocessing, and no projector. The processes share the images; the main one classifies.

    Args:
        job: the run.
        labelled: the images.
        student: on the team's device, in eval mode.
        team: device, precision, processes.
        skip: told after every batch which files could not be read.

    Returns:
        ``knn_accuracy`` and ``linear_probe_accuracy``, and both with ``initial_`` and ``teacher_`` before them; nothing
        in processes other than the main one.

    Raises:
        UserError: too few of the images can be read.
    """
    assert job.teacher is not None, "the plan lets no task without labels pass without a teacher"
    initial = job.initial_student().to(team.device).eval()
    models = {"": student, "initial_": initial, "teacher_": job.teacher}
    sources = [labelled_sample(labelled.train), labelled_sample(labelled.held_out[1])]
    metrics: dict[str, float] = {}
    for prefix, model in models.items():
        spaces = [_features(job, model, source, team, skip) for source in sources]
        if not team.is_main:
            continue
        (train, train_labels), (held_out, held_out_labels) = spaces
        if len(set(train_labels)) < 2 or not len(held_out):
            raise UserError(
                f"Too few images of {labelled.facts.name} can be read to measure features on.",
                "Check its files; --eval-data names others, or none.",
            )
        found = frozen_accuracies(train, train_labels, held_out, held_out_labels, seed=_SEED)
        metrics |= {prefix + name: value for name, value in found.items()}
    return metrics


def table_of(metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]] | None:
    """Return heads and rows of the table of what :func:`measure_features` found; None where nothing was measured."""
    if not set(ROWS.values()) <= metrics.keys():
        return None
    rows = [[label, *(f"{metrics[prefix + name]:.4f}" for prefix in COLUMNS.values())] for label, name in ROWS.items()]
    return ["", *COLUMNS], rows


METRICS = frozenset(prefix + name for prefix in COLUMNS.values() for name in ROWS.values())
"""The names of all that :func:`measure_features` returns."""


@torch.inference_mode()
def _features(
    job: Job,
    model: Model,
    source: ImageSource,
    team: Team,
    skip: Callable[[Iterable[str]], None],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the pooled features (N, d) and the labels (N,) of the images that can be read, in order."""
    parts, indices, lost = [], [], dict[str, None]()
    for batch in job.eval_loader(source, model.facts.preprocessing, team):
        skip(batch.skipped)
        lost.update(dict.fromkeys(batch.skipped))
        if len(batch):
            with team.autocast():
                inputs = model.prepare(batch.to(team.device))
                features = model(inputs, Reads(("pooled",))).features["pooled"]
            labels = batch.targets[:, None].cpu().double()
            parts.append(torch.cat([labels, features.cpu().double()], dim=1))
            indices.append(batch.samples)
    check_readable(team.gather(list(lost)), len(source), what="images that features are measured on")
    space = in_order(parts, indices, team).numpy()
    return space[:, 1:], space[:, 0].astype(np.int64)
