"""The models that are evaluated side by side: loaded, their labels matched, what their runs have on record checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.tasks import TASKS, Modality
from kdcli.config.data import DataConfig
from kdcli.config.models import TeacherConfig
from kdcli.data.fingerprint import AnyData, find_trained_on
from kdcli.models import load_saved, load_teacher, parse_name
from kdcli.models.base import Model
from kdcli.models.locate import locate
from kdcli.models.settle import settle_teacher
from kdcli.plan.relation import map_labels
from kdcli.runs.folder import RunFolder
from kdcli.training.provenance import OLD, Record, changes_since, insist_unchanged, read_record, take_record


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


class Loaded(NamedTuple):
    """A model; the folder that its weights lie in, None where they lie in none; of a checkpoint file, which it is."""

    model: Model
    folder: Path | None
    file: str


def load_candidate(
    role: str, name: str, run: RunFolder | None, data: DataFacts, *, weights: str | None = None
) -> Candidate:
    """Load a run's student or a model, and match its labels to the data's.

    Raises:
        UserError: when it can't be loaded, or its labels don't fit.
    """
    model, folder, file = load_model(name, run, task=data.task, weights=weights)
    if not model.facts.predictions:
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


def load_model(name: str, run: RunFolder | None, *, task: str, weights: str | None = None) -> Loaded:
    """Load a run's student, or a model by its name for ``task``.

    Raises:
        UserError: when it can't be loaded.
    """
    if run is not None:
        return Loaded(load_saved(run.student), run.student, "")
    if TASKS[task].target == "samples":  # it has no place among the teachers, but a folder of its own
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                f"{name} is neither a run nor a model that was saved.", f"Name a run of the task {task}, or its export."
            )
        return Loaded(load_saved(Path(name)), Path(name), "")
    modality = TASKS[task].modality
    config = settle_teacher(TeacherConfig(name=name, weights=weights), modality=modality)
    model = load_teacher(config, task=task, seed=0)
    if config.weights:
        return Loaded(model, None, model.facts.weights)
    return Loaded(model, _weights_folder(config.name, modality=modality), "")


def load_teacher_of(run: RunFolder, student: Candidate, data: DataFacts) -> Candidate | None:
    """Load the run's teacher; it has an accuracy where the run's plan found its labels to be the student's."""
    config, plan = run.read_config(), run.read_plan()
    if config.teacher.name == "none" or config.task_facts.target == "samples":  # no teacher makes images
        return None
    try:
        model = load_teacher(config.teacher, task=config.task, seed=config.seed, channels=config.data.channels)
    except UserError as error:
        raise UserError(error.message, f"{error.hint} --no-teacher leaves the teacher out.") from None
    assert student.label_map is not None
    ours = plan["label_map"]  # the student's class -> the teacher's
    label_map = None if ours is None else tuple(ours[label] for label in student.label_map)
    if ours is None and plan["relation"] == "same":  # both have these classes, and their outputs are no rows of logits
        label_map, _ = map_labels(model.facts, data)
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


def beside(
    first: Candidate, run: RunFolder | None, others: Mapping[str, RunFolder | None], facts: DataFacts
) -> Iterator[Candidate]:
    """Yield the teacher of ``run``, where it has one, and the others."""
    if run is not None and (teacher := load_teacher_of(run, first, facts)) is not None:
        yield teacher
    for number, (other, opened) in enumerate(others.items(), 1):
        yield load_candidate(f"against-{number}", other, opened, facts)


def notes_on(candidate: Candidate) -> list[str]:
    """Return what is not a matter of course about the weights, the input and the labels."""
    pre = candidate.model.facts.preprocessing
    said = (candidate.file, pre.note, pre.said_channels)
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


def check_runs(
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
