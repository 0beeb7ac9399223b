"""``samples.png`` and ``worst.png`` of a run: validation samples, and what its models make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcli.base.errors import UserError
from kdcli.base.text import short_repr
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.results.pictures.samples import plot_samples
from kdcli.results.snapshots import on_cpu, shown_samples, validation_batch
from kdcli.runs.folder import SAMPLES, RunFolder
from kdcli.runs.snapshots import WORST
from kdcli.statistics.intervals import metric_of
from kdcli.training.job import Job
from kdcli.training.teachers.check import columns_of


def draw_run(job: Job, run: RunFolder, device: torch.device) -> str:
    """Write ``samples.png`` and ``worst.png`` of a run that is trained, where its task has pictures.

    The samples of the one are those of :func:`~kdcli.results.snapshots.shown_samples`, of the other those that the best
    student is worst at by the metric that chose it, where that is one of single samples. The teacher is drawn where it
    predicts what the student does. Both see each sample as in training, but for augmentation. A run is not lost for
    want of a picture: whatever goes wrong is returned, and the file is missing then.

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
        return f"{SAMPLES} and {WORST} could not be drawn, all else of the run is complete: {reason}"
    return ""


def _draw(job: Job, run: RunFolder, device: torch.device) -> None:
    noun, models = job.data.facts.noun, _models(job, run)
    batch = shown_samples(job)
    plural = "" if len(batch) == 1 else "s"
    is_made = job.task.row().target == "samples"  # nothing of the validation images is in the pictures
    of = f"made {noun}{plural} after those" if is_made else f"validation {noun}{plural}"
    _plot(job, run.path / SAMPLES, models, batch, device, of=of)
    worst = worst_places(job, run)
    if worst:
        batch = validation_batch(job, worst)
        what = f"validation {noun}{'' if len(batch) == 1 else 's'} with the lowest {job.monitor}"
        _plot(job, run.path / WORST, models, batch, device, of=what)
    else:
        (run.path / WORST).unlink(missing_ok=True)


@torch.inference_mode()
def _plot(job: Job, file: Path, models: Mapping[str, Model], batch: Any, device: torch.device, *, of: str) -> None:
    outputs = {role: _predict(job, role, model, batch, device) for role, model in models.items()}
    rows = job.task.pictures(batch, outputs)
    plot_samples(file, rows, title=f"{len(batch)} {of} of {job.data.facts.name}")


def worst_places(job: Job, run: RunFolder) -> list[int]:
    """Return the places of the validation samples with the lowest metric, worst first; of equal ones the first.

    Samples on which the metric is as good as on the best of all are none of them.
    """
    tensors = run.read_tensors("validation_samples.safetensors")
    if not {"index", job.monitor} <= tensors.keys():
        return []
    values = metric_of(job.monitor, tensors[job.monitor].numpy().astype(np.float64))
    order = [place for place in np.argsort(values, kind="stable") if values[place] < np.nanmax(values)]
    return [int(tensors["index"][place]) for place in order[: job.task.num_pictures]]


def _models(job: Job, run: RunFolder) -> Mapping[str, Model]:
    models = {"student": load_saved(run.student)}
    if job.measures_teacher and job.teacher is not None:
        models["teacher"] = job.teacher
    return models


def _predict(job: Job, role: str, model: Model, batch: Any, device: torch.device) -> Any:
    """Return what a model predicts, on the CPU and in the data's order of classes."""
    if role == "teacher" and job.config.teacher.sharded:  # it is in shares because no device has room for it
        device = torch.device("cpu")
    place = next((parameter.device for parameter in model.parameters()), device)
    model.eval().to(device)
    try:
        outputs = job.predict(model, batch.to(device))
    finally:
        model.to(place)
    if role == "teacher":
        outputs = job.task.in_order(outputs, columns_of(job))
    return on_cpu(outputs)
