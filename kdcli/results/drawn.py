"""``samples.png`` of a run: some validation samples, and what its models make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kdcli.base.errors import UserError
from kdcli.base.text import short_repr
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.results.pictures.samples import plot_samples
from kdcli.results.snapshots import on_cpu, shown_samples
from kdcli.runs.folder import SAMPLES, RunFolder
from kdcli.training.job import Job
from kdcli.training.teachers.check import columns_of


def draw_run(job: Job, run: RunFolder, device: torch.device) -> str:
    """Write ``samples.png`` of a run that is trained, where its task has pictures.

    The samples are those of :func:`~kdcli.results.snapshots.shown_samples`. The teacher is drawn where it predicts
    what the student does. Both see each sample as in training, but for augmentation. A run is not lost for want of a
    picture: whatever goes wrong is returned, and the file is missing then.

    Args:
        job: of the run.
        run: its folder, with the best student.
        device: to run the models on.

    Returns:
        What went wrong, in one sentence; empty for nothing.
    """
    if not job.task.has_pictures or not job.trains_classifier:
        return ""
    try:
        _draw(job, run, device)
    except Exception as error:  # whatever another package's task, a library or the disk stumbles over
        reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {short_repr(str(error))}"
        return f"{SAMPLES} could not be drawn, all else of the run is complete: {reason}"
    return ""


@torch.inference_mode()
def _draw(job: Job, run: RunFolder, device: torch.device) -> None:
    batch = shown_samples(job)
    outputs = {role: _predict(job, role, model, batch, device) for role, model in _models(job, run).items()}
    noun = f"{len(batch)} validation {job.data.facts.noun}{'' if len(batch) == 1 else 's'}"
    plot_samples(run.path / SAMPLES, job.task.pictures(batch, outputs), title=f"{noun} of {job.data.facts.name}")


def _models(job: Job, run: RunFolder) -> Mapping[str, Model]:
    models = {"student": load_saved(run.student)}
    if job.measures_teacher and job.teacher is not None:
        models["teacher"] = job.teacher
    return models


def _predict(job: Job, role: str, model: Model, batch: Any, device: torch.device) -> Any:
    """Return what a model predicts, on the CPU and in the data's order of classes."""
    place = next((parameter.device for parameter in model.parameters()), device)
    model.eval().to(device)
    try:
        outputs = job.predict(model, batch.to(device))
    finally:
        model.to(place)
    if role == "teacher":
        outputs = job.task.in_order(outputs, columns_of(job))
    return on_cpu(outputs)
