"""Measure finished models side by side on one split: what ``kdcli evaluate`` shows and writes.

The trainer's ``evaluate`` gives the few numbers that choose and test a student; this module compares models that are
finished, with their costs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import DataFacts
from kdcli.config.data import DataConfig
from kdcli.data import AnyBatch, EvalBatches, Source
from kdcli.data.images.channels import check_models
from kdcli.data.unreadable import check_readable
from kdcli.machine.devices import resolve_device
from kdcli.models.base import Model
from kdcli.models.costs import measure_costs
from kdcli.results.candidates import Candidate, beside, check_runs, load_candidate, notes_on
from kdcli.results.samples import (
    check_pairs,
    choose_split,
    data_config,
    loader_of,
    one_of,
    open_run,
    open_samples,
    same_data,
    set_data,
    task_of,
)
from kdcli.tasks import Task, build_task
from kdcli.tasks.reports import Layout, Panel, Report

SPLITS = ("test", "validation", "train")


class Evaluated(NamedTuple):
    """What :func:`evaluate_models` found.

    Attributes:
        evaluation: the content of ``evaluation.json``.
        layout: how it is shown.
        pictures: of samples, as many side by side for each.
    """

    evaluation: dict[str, Any]
    layout: Layout
    pictures: list[list[Panel]]


def evaluate_models(
    name: str,
    *,
    against: Sequence[str],
    with_teacher: bool,
    data: str | None,
    data_root: Path | None,
    classes: str | None,
    settings: Sequence[str] = (),
    split: str | None,
    device: str,
    batch_size: int,
    task: str | None = None,
    weights: str | None = None,
    force: bool = False,
    show: int = 0,
) -> Evaluated:
    """Measure a run's student or a model, its teacher, and others beside it.

    Args:
        name: a run folder, or the name of a model.
        against: more of them; for a run its student. All are compared with the teacher of ``name``.
        with_teacher: also measure the teacher of the run ``name``.
        data: a data set's name; by default the run's own. Fractions and seed of the splits are the run's either way.
        data_root: where torchvision's data lie.
        classes: which of their classes; by default all, or those of the run on its own data.
        settings: ``data.KEY=VALUE``: how data that are not the run's own are read, as ``--set`` of ``distill`` says.
        split: ``test``, ``validation`` or ``train``; by default the test split where there is one, else validation.
        device: ``auto`` is the first GPU, else the CPU.
        batch_size: samples of a batch, also for the throughput.
        task: of a model, ``image-classification`` by default; a run has its own.
        weights: a checkpoint file for the model ``name``.
        force: go on although data, teacher or files of a run have changed.
        show: so many samples are drawn; only of a task that has pictures.

    Raises:
        UserError: for a name, split or device that isn't there, a model whose labels don't fit the data's, images that
            can't be read, a run whose files, data or teacher have changed, or one that was trained on the samples.
    """
    _check_asked([name, *against], split)
    place = resolve_device(device)
    run = open_run(name, force=force)
    if run is not None and weights is not None:
        raise UserError(f"{name} is a run: it has weights of its own.", "Leave --teacher-weights out.")
    config, seed = data_config(run, data, data_root, classes)
    task_name, extension = task_of(run, task)
    config = set_data(config, settings, extension or task_name, run)
    samples = open_samples(config, task_name, seed, extension=extension)
    facts = samples.facts
    if run is not None:
        check_pairs(run, samples)
    split, source, notes = choose_split(samples, split)
    others = {other: open_run(other, force=force) for other in against}
    first = load_candidate("model" if run is None else "student", name, run, facts, weights=weights)
    candidates = [first, *beside(first, run if with_teacher else None, others, facts)]
    runs = [opened for opened in (run, *others.values()) if opened is not None]
    check_models(source, {each.name: each.model.facts.preprocessing for each in candidates}, facts.name)
    own = run if run is not None and (data is None or same_data(run.read_config(), data)) else None
    forced = check_runs(runs, own, samples, candidates, config, split, notes)
    kind = build_task(facts, reference=_no_reference, extension=extension)
    layout = kind.layout
    if show and not kind.has_pictures:
        raise UserError(f"The task {kind.name} draws no pictures of samples.", "Leave --show out.")
    num_samples = len(source)
    source = kind.cut_together(source, [each.model for each in candidates if each.label_map is not None], notes)
    skipped: dict[str, None] = {}
    measured, reports = _measure(kind, candidates, source, config, place, skipped, notes, split=split, size=batch_size)
    evaluation = {
        "data": config.name,
        "split": split,
        **_counted(kind, facts, reports[candidates[0].role].counts(), num_samples, skipped),
        "forced": [*dict.fromkeys((*(sentence for opened in runs for sentence in opened.forced), *forced))],
        "notes": notes + [note for candidate in candidates for note in notes_on(candidate)],
        **_machine(place),
        "batch_size": batch_size,
        "models": measured,
    }
    return Evaluated(evaluation, layout, _draw(kind, candidates, source, config, place, show) if show else [])


def _counted(
    kind: Task, facts: DataFacts, counts: list[int], num_samples: int, skipped: Mapping[str, None]
) -> dict[str, Any]:
    """Return what was measured: units of every class (``counts``), in how many samples, and what could not be read."""
    return {
        "samples": kind.layout.unit,
        "num_images": num_samples - len(skipped) if kind.labels_are_independent else sum(counts),
        "num_samples": num_samples - len(skipped),
        "num_unreadable": len(skipped),
        "unreadable": list(skipped),
        "class_names": list(facts.class_names),
        "class_counts": counts,
        "data_notes": list(facts.notes),
    }


def _machine(place: torch.device) -> dict[str, Any]:
    return {
        "device": str(place),
        "device_name": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _check_asked(names: Sequence[str], split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise UserError(f"There is no split {split!r}. {did_you_mean(split, SPLITS)}".rstrip(), one_of(SPLITS))
    for other in names:
        if names.count(other) > 1:
            raise UserError(f"{other} is named twice.", "Name every model once.")


def _measure(
    kind: Task,
    candidates: Sequence[Candidate],
    source: Source,
    config: DataConfig,
    place: torch.device,
    skipped: dict[str, None],
    notes: list[str],
    *,
    split: str,
    size: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, Report]]:
    """Measure every candidate, one after the other, in batches of ``size``.

    Args:
        kind: the task.
        candidates: each is on ``place`` while it is measured.
        source: what they are measured on, a part of ``split``.
        config: of the data.
        place: the device.
        skipped: gets the names of what can't be read.
        notes: gets what the reports have to say.
        split: for messages.
        size: of a batch.

    Returns:
        What ``evaluation.json`` says of each role, and the reports of those whose labels fit.
    """
    measured: dict[str, dict[str, Any]] = {}
    reports: dict[str, Report] = {}
    for candidate in candidates:
        candidate.model.to(place)
        scores: dict[str, Any] = dict.fromkeys(kind.layout.keys)
        if candidate.label_map is not None:
            loader = loader_of(source, candidate.model.facts.preprocessing, size, config)
            report = reports[candidate.role] = _score(kind, candidate, loader, place, skipped)
            scores = report.compute()
            notes += report.notes(candidate.name)
            check_readable(list(skipped), len(source), what=f"{split} images of {config.name}")
        measured[candidate.role] = {
            "name": candidate.name,
            "labels": candidate.labels,
            **scores,
            "agreement_with_teacher": None,
            **measure_costs(candidate.model, candidate.weights, device=place, batch_size=size),
        }
        candidate.model.cpu()
    if "teacher" in reports:
        for role, own in reports.items():
            if role != "teacher":
                measured[role]["agreement_with_teacher"] = own.agreement(reports["teacher"])
    return measured, reports


def _no_reference(batch: AnyBatch) -> Tensor:
    raise NotImplementedError("a finished model is not compared with an embedding space")


@torch.inference_mode()
def _score(
    task: Task,
    candidate: Candidate,
    loader: EvalBatches,
    device: torch.device,
    skipped: dict[str, None],
) -> Report:
    """Return the report on a model; names of unreadable images go into ``skipped``."""
    report = task.report()
    for batch in loader:
        skipped.update(dict.fromkeys(batch.skipped))
        if len(batch):
            report.update(predict_batch(task, candidate, batch, device), batch)
    return report


def predict_batch(
    task: Task,
    candidate: Candidate,
    batch: AnyBatch,
    device: torch.device,
    *,
    ask: Callable[[Model, AnyBatch], Any] | None = None,
) -> Any:
    """Return what a model, on ``device``, predicts of a batch, on the CPU and in the data's order of classes.

    Args:
        task: what is predicted.
        candidate: the model.
        batch: at least one sample.
        device: where it is.
        ask: of a model and a batch to its outputs; by default the task's ``predict``.

    Raises:
        UserError: something of it is no finite number.
    """
    ask = ask or task.predict
    outputs = task.in_order(ask(candidate.model, batch.to(device)), candidate.label_map or ())
    if not isinstance(outputs, Tensor):
        return outputs.cpu() if hasattr(outputs, "cpu") else outputs
    outputs = outputs.float().cpu()
    if not outputs.isfinite().all():
        raise UserError(
            f"{candidate.name} gives logits that are not finite numbers.", "Its weights are damaged: train it anew."
        )
    return outputs


@torch.inference_mode()
def _draw(
    task: Task,
    candidates: Sequence[Candidate],
    source: Source,
    config: DataConfig,
    device: torch.device,
    number: int,
) -> list[list[Panel]]:
    """Return the pictures of ``number`` samples, evenly spread over ``source``; only of a task that has pictures."""
    number = min(number, len(source))
    taken = source.take([place * len(source) // number for place in range(number)])
    drawn = [candidate for candidate in candidates if candidate.label_map is not None]
    # all see the same pixels, as teacher and student in training: pictures side by side are of one place
    wanted = reduce(lambda one, other: one.shared_with(other), (each.model.facts.preprocessing for each in drawn))
    batch = next(iter(loader_of(taken, wanted, number, config)))
    outputs: dict[str, Any] = {}
    for candidate in drawn:
        candidate.model.to(device)
        outputs[candidate.role] = predict_batch(task, candidate, batch, device)
        candidate.model.cpu()
    return task.pictures(batch, outputs)
