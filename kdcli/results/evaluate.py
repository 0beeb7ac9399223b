"""Measure finished models side by side on one split: what ``kdcli evaluate`` shows and writes.

The trainer's ``evaluate`` gives the few numbers that choose and test a student; this module compares models that are
finished, with their costs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import DataFacts
from kdcli.base.tasks import Modality
from kdcli.config.data import DataConfig
from kdcli.config.models import TeacherConfig
from kdcli.data import AnyBatch, EvalBatches, Source
from kdcli.data.fingerprint import AnyData, find_trained_on
from kdcli.data.unreadable import check_readable
from kdcli.machine.devices import resolve_device
from kdcli.models import load_saved, load_teacher, parse_name
from kdcli.models.base import Model
from kdcli.models.costs import measure_costs
from kdcli.models.locate import locate
from kdcli.models.settle import settle_teacher
from kdcli.plan.relation import map_labels
from kdcli.results.samples import (
    check_pairs,
    choose_split,
    data_config,
    loader_of,
    one_of,
    open_run,
    open_samples,
    same_data,
    task_of,
)
from kdcli.runs.folder import RunFolder
from kdcli.tasks import Task, build_task
from kdcli.tasks.reports import Layout, Panel, Report
from kdcli.training.provenance import OLD, Record, changes_since, insist_unchanged, read_record, take_record

SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Candidate:
    """One model that is measured.

    Attributes:
        role: ``student`` (of a run), ``model``, ``teacher``, or ``against-1``, ``against-2``, ...
        name: as the user knows it.
        model: on the CPU, in eval mode.
        weights: the folder that its weights lie in; None for a model that has none.
        label_map: for each of the data's classes the model's class of the same label; None where the label spaces
            differ, and nothing but costs can be measured.
        labels: the sentence that says how the label spaces fit.
        trained: whether its classifier is trained; a run of features alone leaves it as it was at the start.
        file: of weights from a checkpoint file, which it is and how they fitted; empty for others.
    """

    role: str
    name: str
    model: Model
    weights: Path | None
    label_map: tuple[int, ...] | None
    labels: str
    trained: bool = True
    file: str = ""


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
    samples = open_samples(config, task_name, seed, extension=extension)
    facts = samples.facts
    if run is not None:
        check_pairs(run, samples)
    split, source, notes = choose_split(samples, split)
    others = {other: open_run(other, force=force) for other in against}
    first = _candidate("model" if run is None else "student", name, run, facts, weights=weights)
    candidates = [first, *_beside(first, run if with_teacher else None, others, facts)]
    runs = [opened for opened in (run, *others.values()) if opened is not None]
    own = run if run is not None and (data is None or same_data(run.read_config(), data)) else None
    forced = _check_runs(runs, own, samples, candidates, config, split, notes)
    kind = build_task(facts, reference=_no_reference, extension=extension)
    layout = kind.layout
    if show and not kind.has_pictures:
        raise UserError(f"The task {kind.name} draws no pictures of samples.", "Leave --show out.")
    source = kind.cut_together(source, [each.model for each in candidates if each.label_map is not None], notes)
    skipped: dict[str, None] = {}
    measured, reports = _measure(kind, candidates, source, config, place, skipped, notes, split=split, size=batch_size)
    counts = reports[candidates[0].role].counts()
    evaluation = {
        "data": config.name,
        "split": split,
        "samples": layout.unit,
        "num_images": sum(counts),
        "num_unreadable": len(skipped),
        "unreadable": list(skipped),
        "class_names": list(facts.class_names),
        "class_counts": counts,
        "data_notes": list(facts.notes),
        "forced": [*dict.fromkeys((*(sentence for opened in runs for sentence in opened.forced), *forced))],
        "notes": notes + [note for candidate in candidates for note in _notes(candidate)],
        **_machine(place),
        "batch_size": batch_size,
        "models": measured,
    }
    return Evaluated(evaluation, layout, _draw(kind, candidates, source, config, place, show) if show else [])


def _check_runs(
    runs: Sequence[RunFolder],
    own: RunFolder | None,
    samples: AnyData,
    candidates: Sequence[Candidate],
    config: DataConfig,
    split: str,
    notes: list[str],
) -> list[str]:
    """Refuse runs whose data or teacher have changed; return what was forced, a sentence each.

    Args:
        runs: those that are measured.
        own: the one whose own data these are; None where they are other data.
        samples: the data.
        candidates: the teacher is among them where there is one.
        config: of the data.
        split: that is measured on.
        notes: gets what can't be told.
    """
    if not runs:
        return []
    teacher = next((candidate.model for candidate in candidates if candidate.role == "teacher"), None)
    now = take_record(samples, teacher, splits=(split,))
    found = [_check_record(run, now, config, split, notes, is_own=run is own) for run in runs]
    return [sentence for sentences in found for sentence in sentences]


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


def _beside(
    first: Candidate, run: RunFolder | None, others: Mapping[str, RunFolder | None], facts: DataFacts
) -> Iterator[Candidate]:
    """Yield the teacher of ``run``, where it has one, and the others."""
    if run is not None and (teacher := _teacher(run, first)) is not None:
        yield teacher
    for number, (other, opened) in enumerate(others.items(), 1):
        yield _candidate(f"against-{number}", other, opened, facts)


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


# --- candidates -------------------------------------------------------------------------------------------------------


def _candidate(
    role: str, name: str, run: RunFolder | None, data: DataFacts, *, weights: str | None = None
) -> Candidate:
    """Load a run's student or a model, and match its labels to the data's.

    Raises:
        UserError: when it can't be loaded, or its labels don't fit.
    """
    if run is None:
        config = settle_teacher(TeacherConfig(name=name, weights=weights), modality=data.noun)
        model = load_teacher(config, task=data.task, seed=0)
        folder = None if config.weights else _weights_folder(config.name, modality=data.noun)
        file = model.facts.weights if config.weights else ""
    else:
        model, folder, file = load_saved(run.student), run.student, ""
    if model.facts.num_classes == 0:
        raise UserError(f"{name} has no classifier: it can't be evaluated.", f"Choose a classifier of {data.noun}s.")
    if model.facts.task != data.task:
        raise UserError(
            f"{name} is for {model.facts.task}, and the data are for {data.task}.", "Choose another model or --data."
        )
    label_map, reason = map_labels(model.facts, data, role="model")
    if label_map is None:
        raise UserError(
            f"{name} can't be evaluated on {data.name}: {reason}",
            "Give data with the model's classes (--data), or a model for these classes.",
        )
    is_trained = run is None or not run.read_config().leaves_classifier_untrained
    return Candidate(role, name, model, folder, label_map, reason, is_trained, file)


def _teacher(run: RunFolder, student: Candidate) -> Candidate | None:
    """Load the run's teacher; it has an accuracy where the run's plan found its labels to be the student's."""
    config, plan = run.read_config(), run.read_plan()
    if config.teacher.name == "none":
        return None
    try:
        model = load_teacher(config.teacher, task=config.task, seed=config.seed)
    except UserError as error:
        raise UserError(error.message, f"{error.hint} --no-teacher leaves the teacher out.") from None
    assert student.label_map is not None
    ours = plan["label_map"]  # the student's class -> the teacher's
    label_map = None if ours is None else tuple(ours[label] for label in student.label_map)
    (reason,) = (decision["reason"] for decision in plan["decisions"] if decision["name"] == "relation")
    weights = (
        None if config.teacher.weights else _weights_folder(config.teacher.name, modality=config.task_facts.modality)
    )
    file = model.facts.weights if config.teacher.weights else ""
    return Candidate("teacher", model.facts.name, model, weights, label_map, reason, file=file)


def _weights_folder(name: str, *, modality: Modality) -> Path | None:
    parsed = parse_name(name.partition("?")[0] if modality == "text" else name)
    assert parsed is not None  # "none" was no model to load
    return None if parsed.random else locate(parsed, weights=True, modality=modality).folder


def _notes(candidate: Candidate) -> list[str]:
    """Return what is not a matter of course about the weights, the input and the labels."""
    pre = candidate.model.facts.preprocessing
    said = (candidate.file, pre.note)
    return [*(f"{candidate.name}: {phrase}" for phrase in said if phrase), *_label_notes(candidate)]


def _label_notes(candidate: Candidate) -> list[str]:
    """Return what is not a matter of course about the labels."""
    if not candidate.trained:
        return [
            f"{candidate.name}: no method of the run trained its classifier, so that its accuracy is by chance; the"
            " run's own is that of nearest class means."
        ]
    if candidate.label_map is None:
        return [f"The teacher has no accuracy here. {candidate.labels}"]
    if candidate.model.facts.label_names is None or list(candidate.label_map) != sorted(candidate.label_map):
        return [f"{candidate.name}: {candidate.labels}"]
    return []


def _check_record(
    run: RunFolder, now: Record, config: DataConfig, split: str, notes: list[str], *, is_own: bool
) -> list[str]:
    """Refuse to measure a run on other samples than it began with, beside another teacher, or on what it has learnt.

    Args:
        run: whose student is measured.
        now: the split that is measured on, and the teacher where it is measured too.
        config: of the data.
        split: its name.
        notes: get a note where the run has no record.
        is_own: whether these are the data and the teacher of the run.

    Returns:
        What was forced, a sentence each.

    Raises:
        UserError: it is refused, and the run was not opened by force.
    """
    record = read_record(run)
    if record is None:
        notes.append(f"{run.path}: it can't be told whether data or teacher have changed: {OLD}.")
        return []
    told = list(record.forced)
    if is_own:
        before = record.of_classes(now.data.class_names) if config.classes is not None else record
        changes = changes_since(before, now, splits=(split,), teacher=now.teacher is not None)
        return told + insist_unchanged(run, changes, what="Evaluated")
    if split == "train":
        return told
    has_same_name = run.read_config().data.name == config.name
    learnt = find_trained_on(record.data, now.data, split=split, by_content=has_same_name)
    if not learnt:
        return told
    found = f"{len(learnt)} of the {split} samples are among those that {run.path} was trained on, such as {learnt[0]}."
    if not run.force:
        raise UserError(found, "Measure it on what it has not seen. --force goes on all the same.")
    return [*told, f"Evaluated with --force although {found}"]


# --- numbers ----------------------------------------------------------------------------------------------------------


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
            report.update(_predict(task, candidate, batch, device), batch)
    return report


def _predict(task: Task, candidate: Candidate, batch: AnyBatch, device: torch.device) -> Any:
    """Return what a model predicts of a batch, on the CPU and in the data's order of classes."""
    outputs = task.predict(candidate.model, batch.to(device))
    if not isinstance(outputs, Tensor):
        return outputs
    outputs = outputs.float().cpu()
    if candidate.label_map:
        outputs = outputs[:, torch.tensor(candidate.label_map)]
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
    spread = [place * len(source) // number for place in range(number)]
    taken = source.take(spread)
    seen: list[AnyBatch] = []
    outputs: dict[str, Any] = {}
    for candidate in candidates:
        if candidate.label_map is not None:
            candidate.model.to(device)
            found = list(loader_of(taken, candidate.model.facts.preprocessing, number, config))
            seen = seen or found
            outputs[candidate.role] = _predict(task, candidate, found[0], device)
            candidate.model.cpu()
    return task.pictures(seen[0], outputs)
