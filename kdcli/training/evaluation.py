"""The task's metrics of a model on a split, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from kdcli.base.reads import Reads
from kdcli.base.result import UNREADABLE
from kdcli.data import AnyBatch, Source
from kdcli.data.unreadable import check_readable
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.tasks.features.class_means import nearest_class_mean_accuracy
from kdcli.tasks.meters import Meter, SampleSums
from kdcli.training.job import Job

Skip = Callable[[Iterable[str]], None]
Note = Callable[[AnyBatch, SampleSums], None]
"""Told of a batch and of what its samples add to the sums that metrics are made of."""


def ignore(names: Iterable[str]) -> None:
    """Tell nobody of unreadable files."""


def ignore_sums(batch: AnyBatch, sums: SampleSums) -> None:
    """Tell nobody."""


def evaluate(
    job: Job,
    model: Model,
    source: Source,
    team: Team,
    skip: Skip = ignore,
    note: Note = ignore_sums,
) -> dict[str, float]:
    """Return the task's metrics of ``model`` on ``source``; the model is left in the mode it was in.

    Where no method trains the classifier, it is ``ncm_accuracy`` alone, of the nearest class means of the labelled
    training images without augmentation. Several processes share the samples, each taken once, and all get the same
    metrics; ``unreadable``, the number of files left out, is among them where there are any.

    Args:
        job: whose task it is.
        model: on the team's device.
        source: a split.
        team: device, precision, processes.
        skip: told after every batch which files could not be read.
        note: told after every batch what its samples add to the metrics' sums; not of ``ncm_accuracy``.

    Raises:
        UserError: more than a few of the files can't be read.
    """

    def predict(batch: AnyBatch) -> Any:
        with team.autocast():
            return job.predict(model, batch)

    if job.trains_classifier or job.is_label_free:
        return measure(job, model, source, team, predict, skip, note)
    was_training = model.training
    model.eval()

    def embeddings(batches: Iterable[AnyBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            if not len(batch):
                continue
            with torch.inference_mode(), team.autocast():
                inputs = model.prepare(batch.to(team.device))
                features = model(inputs, Reads(("embedding",))).features["embedding"]
            yield features, batch.targets

    try:
        split = _Split(job, model, source, team, skip)
        accuracy = nearest_class_mean_accuracy(
            embeddings(_Split(job, model, job.labelled_samples(), team, skip).batches()),
            embeddings(split.batches()),
            len(job.task.class_names),
            model.facts.feature_dims["embedding"],
            team,
        )
        return {job.monitor: accuracy} | split.unreadable()
    finally:
        model.train(was_training)


def measure(
    job: Job,
    model: Model,
    source: Source,
    team: Team,
    predict: Callable[[AnyBatch], Any],
    skip: Skip = ignore,
    note: Note = ignore_sums,
    *,
    even: Callable[[Iterable[AnyBatch]], Iterable[AnyBatch]] = iter,
) -> dict[str, float]:
    """Return the task's metrics of what ``predict`` makes of ``model``'s batches; else as :func:`evaluate`.

    ``even`` yields the batches that are run, for a model that all processes run together.
    """
    was_training = model.training
    model.eval()
    try:
        split = _Split(job, model, source, team, skip)
        metrics = run_meter(job.task.meter(team), predict, even(split.batches()), team, note)
        return metrics | split.unreadable()
    finally:
        model.train(was_training)


@torch.inference_mode()
def run_meter(
    meter: Meter,
    predict: Callable[[AnyBatch], Any],
    batches: Iterable[AnyBatch],
    team: Team,
    note: Note = ignore_sums,
) -> dict[str, float]:
    """Return the metrics of what ``predict`` makes of ``batches``: the loop of every evaluation.

    Args:
        meter: a new one.
        predict: a batch to what the task's :meth:`~kdcli.tasks.base.Task.predict` returns.
        batches: of this process; those without a sample are left out.
        team: the processes that share the samples.
        note: told after every batch what its samples add to the metrics' sums, where they add anything.

    Raises:
        UserError: there is nothing to evaluate on.
    """
    for batch in batches:
        if not len(batch):
            continue
        batch = batch.to(team.device)
        if sums := meter.update(predict(batch), batch):
            note(batch, sums)
    return meter.compute()


class KeptSums:
    """What every sample of a split adds to the metrics' sums: a :data:`Note` that is kept.

    Pieces of a text are added up to the text.

    Args:
        source: the split.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def __call__(self, batch: AnyBatch, sums: SampleSums) -> None:
        """Keep those of a batch."""
        places = self._source.places(batch.samples)
        self._parts.append((places, {name: values.cpu() for name, values in sums.items()}))

    def gather(self, team: Team) -> dict[str, Tensor]:
        """Return what all processes have: ``index`` int64 (n,), ascending, and the sums float64 (n, k) by metric.

        Nothing where the task has noted nothing.
        """
        parts = team.gather(self._parts)
        if not parts:
            return {}
        index, place = torch.cat([places for places, _ in parts]).unique(return_inverse=True)
        gathered = {"index": index}
        for name, values in parts[0][1].items():
            added = torch.zeros(len(index), values.shape[1], dtype=torch.float64)
            gathered[name] = added.index_add_(0, place, torch.cat([sums[name] for _, sums in parts]))
        return gathered


class _Split:
    """The batches of a split as a model wants them, and the names of what could not be read in them."""

    def __init__(self, job: Job, model: Model, source: Source, team: Team, skip: Skip) -> None:
        self._source, self._skip, self._team = source, skip, team
        self._loader = job.eval_loader(
            source,
            job.shared_preprocessing() if job.is_label_free else model.facts.preprocessing,
            team,
            by_length=True,
        )
        self._what = f"{_name_of(job, source)} {job.data.facts.noun}s"
        self._lost: dict[str, None] = {}

    def batches(self) -> Iterator[AnyBatch]:
        """Yield this process's batches."""
        for batch in self._loader:
            self._lost.update(dict.fromkeys(batch.skipped))
            self._skip(batch.skipped)
            yield batch

    def unreadable(self) -> dict[str, float]:
        """Return their number where there are any, once all batches are read.

        Raises:
            UserError: they are more than a few.
        """
        names = self._team.gather(list(self._lost))
        check_readable(names, len(self._source), what=self._what)
        return {UNREADABLE: float(len(names))} if names else {}


def _name_of(job: Job, source: Source) -> str:
    if source is job.data.validation:
        return "validation"
    return "test" if source is job.data.test else "evaluation"
