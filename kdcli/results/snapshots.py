"""What the student makes of the same validation samples over its training: pictures after validations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.text import short_repr
from kdcli.data import AnyBatch, Loading
from kdcli.models.base import Model
from kdcli.results.pictures.strip import Column, Pixels, plot_strip, read_grid, shrunk, write_grid
from kdcli.runs.folder import RunFolder
from kdcli.runs.snapshots import STRIP, grid_file, grids
from kdcli.tasks.reports import Panel
from kdcli.training.job import Job

_TIMES = 12
"""Pictures of a whole training, but for those of its start and its end."""
_ROLE = "student"


def shown_samples(job: Job) -> AnyBatch:
    """Return the validation samples that are drawn of a run, the same in every run on these data.

    They are labelled ones where any are, evenly spread over the split, as in training but for augmentation.
    """
    source = job.data.validation
    labelled = [index for index, label in enumerate(source.labels) if label != UNLABELLED]
    places = labelled or range(len(source))
    number = min(job.task.num_pictures, len(places))
    return validation_batch(job, [places[place * len(places) // number] for place in range(number)])


def validation_batch(job: Job, places: Sequence[int]) -> AnyBatch:
    """Return validation samples by their places in the split, as in training but for augmentation."""
    taken = job.data.validation.take(places)
    batch: AnyBatch = next(iter(taken.eval_batches(Loading(len(places), workers=0), job.shared_preprocessing())))
    return batch


def on_cpu(outputs: Any) -> Any:
    """Return what a task's ``predict`` returned on the CPU, tensors in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float().cpu()
    return outputs.cpu() if hasattr(outputs, "cpu") else outputs


class Snapshots:
    """Draws a run's student as it starts, at about twelve validations of the training, and at its end.

    Each time a grid of small pictures is written, and the strip of all times anew; see :mod:`kdcli.runs.snapshots`.
    Only tasks whose predictions are drawn, and whose pictures say which are the student's, have them. Training is not
    lost for want of a picture: what goes wrong is told once, and no more is drawn.

    Args:
        job: what is trained.
        run: its folder.
        device: of the student.
        warn: told what went wrong, in one sentence.
    """

    def __init__(self, job: Job, run: RunFolder, device: torch.device, warn: Callable[[str], None]) -> None:
        self._job, self._run, self._device, self._warn = job, run, device, warn
        self._every = math.ceil(job.config.train.epochs / _TIMES) or 1
        self._is_on = job.task.row().is_drawn and job.task.has_pictures and job.trains_classifier
        self._batch: AnyBatch | None = None

    def __call__(self, student: Model, *, epoch: int, step: int) -> Pixels | None:
        """Draw the student of this moment, where it is one of those to be drawn.

        Args:
            student: on the device; left as it was.
            epoch: how many have passed.
            step: how many have passed.

        Returns:
            The grid, for trackers; None where nothing was drawn.
        """
        if not self._is_on or not self._is_due(epoch):
            return None
        try:
            return self._draw(student, epoch, step)
        except Exception as error:  # whatever another package's task, a library or the disk stumbles over
            self._is_on = False
            told = f"{type(error).__name__}: {short_repr(str(error))}"
            reason = error.message if isinstance(error, UserError) else told
            self._warn(f"{STRIP} can't be drawn, the training goes on without: {reason}")
            return None

    def _is_due(self, epoch: int) -> bool:
        train = self._job.config.train
        is_end = epoch in (0, train.epochs)
        return is_end or epoch // self._every > (epoch - train.validate_every) // self._every

    @torch.inference_mode()
    def _draw(self, student: Model, epoch: int, step: int) -> Pixels | None:
        if self._batch is None:
            self._batch = shown_samples(self._job)
        was_training = student.training
        student.eval()
        try:
            outputs = self._job.predict(student, self._batch.to(self._device))
        finally:
            student.train(was_training)
        rows = self._job.task.pictures(self._batch, {_ROLE: on_cpu(outputs)})
        answers = [place for place, panel in enumerate(rows[0]) if panel.role == _ROLE]
        if not answers:
            self._is_on = False
            return None
        cells = [shrunk(row[answers[0]].image) for row in rows]
        grid = write_grid(grid_file(self._run.path, step), cells, heading=f"epoch {epoch}" if step else "start")
        self._collect([row[: answers[0]] for row in rows])
        return grid

    def _collect(self, beside: list[list[Panel]]) -> None:
        """Write the strip: what stands before the student's answers, and these at all times."""
        columns = [
            Column(panels[0].title.split("\n")[0].split(":")[0], [shrunk(panel.image) for panel in panels])
            for panels in zip(*beside, strict=True)
        ]
        columns += [read_grid(file) for file in grids(self._run.path).values()]
        data = self._job.data.facts
        title = f"{self._job.student.facts.name} over its training on {data.name}"
        plot_strip(self._run.path / STRIP, columns, title=title)
