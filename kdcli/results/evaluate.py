"""Measure finished models side by side on one split: what ``kdcli evaluate`` shows and writes.

The trainer's ``evaluate`` gives the few numbers that choose and test a student; this module compares models that are
finished, with their costs.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import UNLABELLED, DataFacts, Preprocessing
from kdcli.base.tasks import TASKS
from kdcli.config.data import DataConfig
from kdcli.config.models import TeacherConfig
from kdcli.data import (
    EvalLoader,
    ImageSource,
    Reader,
    TextData,
    TextEvalLoader,
    TextSource,
    WordBatch,
    WordSource,
    cut_words,
)
from kdcli.data.fingerprint import find_trained_on
from kdcli.data.unreadable import check_readable
from kdcli.machine.devices import resolve_device
from kdcli.models import load_saved, load_teacher, load_text_teacher, parse_name
from kdcli.models.base import Model
from kdcli.models.costs import measure_costs
from kdcli.models.locate import locate
from kdcli.models.settle import settle_teacher
from kdcli.models.transformers.text import HFTextModel
from kdcli.plan.relation import map_labels
from kdcli.results.evaluation import ENTITY_SCORES
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
from kdcli.tasks.classification.report import ClassificationMeters, agreement
from kdcli.tasks.words.task import count_entities, entity_scores, tell_entities
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
) -> dict[str, Any]:
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

    Returns:
        The content of ``evaluation.json``.

    Raises:
        UserError: for a name, split or device that isn't there, a model whose labels don't fit the data's, images that
            can't be read, a run whose files, data or teacher have changed, or one that was trained on the samples.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"There is no split {split!r}. {did_you_mean(split, SPLITS)}".rstrip(), one_of(SPLITS))
    for other in against:
        if [name, *against].count(other) > 1:
            raise UserError(f"{other} is named twice.", "Name every model once.")
    place = resolve_device(device)
    run = open_run(name, force=force)
    if run is not None and weights is not None:
        raise UserError(f"{name} is a run: it has weights of its own.", "Leave --teacher-weights out.")
    config, seed = data_config(run, data, data_root, classes)
    samples = open_samples(config, task_of(run, task), seed)
    facts = samples.facts
    if run is not None and isinstance(samples, TextData):
        check_pairs(run, samples)
    split, source, notes = choose_split(samples, split)
    candidates = [_candidate("model" if run is None else "student", name, run, facts, weights=weights)]
    if run is not None and with_teacher and (teacher := _teacher(run, candidates[0])) is not None:
        candidates.append(teacher)
    others = {other: open_run(other, force=force) for other in against}
    candidates += [
        _candidate(f"against-{number}", other, opened, facts)
        for number, (other, opened) in enumerate(others.items(), 1)
    ]
    forced: list[str] = []
    runs = [opened for opened in (run, *others.values()) if opened is not None]
    if runs:
        teacher_now = next((candidate.model for candidate in candidates if candidate.role == "teacher"), None)
        now = take_record(samples, teacher_now, splits=(split,))
        for opened in runs:
            is_own = opened is run and (data is None or same_data(run.read_config(), data))
            forced += _check_record(opened, now, config, split, notes, is_own=is_own)

    noun: str = facts.noun
    if isinstance(source, WordSource):
        source, noun = _cut_words(source, candidates, facts, notes), "word"

    measured: dict[str, dict[str, Any]] = {}
    predictions: dict[str, Tensor] = {}
    skipped: dict[str, None] = {}
    for candidate in candidates:
        candidate.model.to(place)
        scores: dict[str, Any] = dict.fromkeys(_score_names(facts))
        if candidate.label_map is not None:
            loader = loader_of(source, candidate.model.facts.preprocessing, batch_size, config)
            scores, predictions[candidate.role] = _score(candidate, loader, place, source, facts, skipped, notes)
            check_readable(list(skipped), len(source), what=f"{split} images of {config.name}")
        measured[candidate.role] = {
            "name": candidate.name,
            "labels": candidate.labels,
            **scores,
            "agreement_with_teacher": None,
            **measure_costs(candidate.model, candidate.weights, device=place, batch_size=batch_size),
        }
        candidate.model.cpu()
    if "teacher" in predictions:
        for role, own in predictions.items():
            if role != "teacher":
                measured[role]["agreement_with_teacher"] = agreement(own, predictions["teacher"])

    counts = torch.tensor(measured[candidates[0].role]["confusion"]).sum(dim=1).tolist()
    return {
        "data": config.name,
        "split": split,
        "samples": noun,
        "num_images": sum(counts),
        "num_unreadable": len(skipped),
        "unreadable": list(skipped),
        "class_names": list(facts.class_names),
        "class_counts": counts,
        "data_notes": list(facts.notes),
        "forced": [*dict.fromkeys((*(sentence for opened in runs for sentence in opened.forced), *forced))],
        "notes": notes + [note for candidate in candidates for note in _notes(candidate)],
        "device": str(place),
        "device_name": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "models": measured,
    }


# --- candidates -------------------------------------------------------------------------------------------------------


def _candidate(
    role: str, name: str, run: RunFolder | None, data: DataFacts, *, weights: str | None = None
) -> Candidate:
    """Load a run's student or a model, and match its labels to the data's.

    Raises:
        UserError: when it can't be loaded, or its labels don't fit.
    """
    if run is None:
        config = settle_teacher(TeacherConfig(name=name, weights=weights), is_text=data.noun == "text")
        model = _load(config, task=data.task, seed=0)
        folder = None if config.weights else _weights_folder(config.name, is_text=data.noun == "text")
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
    is_text = not config.reads_images
    if config.teacher.name == "none":
        return None
    try:
        model = _load(config.teacher, task=config.task, seed=config.seed)
    except UserError as error:
        raise UserError(error.message, f"{error.hint} --no-teacher leaves the teacher out.") from None
    assert student.label_map is not None
    ours = plan["label_map"]  # the student's class -> the teacher's
    label_map = None if ours is None else tuple(ours[label] for label in student.label_map)
    (reason,) = (decision["reason"] for decision in plan["decisions"] if decision["name"] == "relation")
    weights = None if config.teacher.weights else _weights_folder(config.teacher.name, is_text=is_text)
    file = model.facts.weights if config.teacher.weights else ""
    return Candidate("teacher", model.facts.name, model, weights, label_map, reason, file=file)


def _load(config: TeacherConfig, *, task: str, seed: int) -> Model:
    if TASKS[task].reads_images:
        return load_teacher(config, seed=seed)
    return load_text_teacher(config, seed=seed, task=task)


def _weights_folder(name: str, *, is_text: bool) -> Path | None:
    parsed = parse_name(name.partition("?")[0] if is_text else name)
    assert parsed is not None  # "none" was no model to load
    return None if parsed.random else locate(parsed, weights=True, is_text=is_text).folder


def _notes(candidate: Candidate) -> list[str]:
    """Return what is not a matter of course about the weights, the input and the labels."""
    pre = candidate.model.facts.preprocessing
    said = (candidate.file, pre.note if isinstance(pre, Preprocessing) else "")
    return [*(f"{candidate.name}: {phrase}" for phrase in said if phrase), *_label_notes(candidate)]


def _label_notes(candidate: Candidate) -> list[str]:
    """Return what is not a matter of course about the labels."""
    if not candidate.trained:
        return [
            f"{candidate.name}: no method of the run trained its classifier, so that its accuracy is by chance; the run's own"
            " is that of nearest class means."
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

_SCORES = ("top1", "top5", "expected_calibration_error", "cross_entropy", "per_class_accuracy", "confusion")


def _score_names(data: DataFacts) -> tuple[str, ...]:
    has_entities = data.label_kind == "words" and tell_entities(data.class_names)
    return (*_SCORES, *ENTITY_SCORES) if has_entities else _SCORES


def _cut_words(source: WordSource, candidates: Sequence[Candidate], data: DataFacts, notes: list[str]) -> WordSource:
    """Return the texts in pieces that all models with an accuracy can take, so that all have the same words."""
    readers = [
        Reader(candidate.model.tokenizer, candidate.model.preprocessing.max_length)
        for candidate in candidates
        if isinstance(candidate.model, HFTextModel) and candidate.label_map is not None
    ]
    pieces = cut_words(source, readers, class_names=data.class_names)
    if len(pieces) > len(source):
        notes.append(
            f"{len(source)} texts are cut between words into {len(pieces)} pieces that every model takes whole."
        )
    if lost := source.num_words - pieces.num_words:
        notes.append(f"{lost} words that a tokenizer makes nothing of are left out.")
    # A piece of a labelled text may have no label.
    return pieces.take(index for index, label in enumerate(pieces.labels) if label != UNLABELLED)


@torch.inference_mode()
def _score(
    candidate: Candidate,
    loader: EvalLoader | TextEvalLoader,
    device: torch.device,
    source: ImageSource | TextSource,
    data: DataFacts,
    skipped: dict[str, None],
    notes: list[str],
) -> tuple[dict[str, Any], Tensor]:
    """Return the metrics and the predicted class of every sample, (N,), -1 for an unreadable image or no label.

    Names of unreadable images go into ``skipped``; ``notes`` get one where classes are certainly taken for one another.
    """
    assert candidate.label_map is not None
    label_map = torch.tensor(candidate.label_map)
    meters = ClassificationMeters(len(label_map))
    starts = _first_rows(source)
    predictions = torch.full((starts[-1],), -1)
    entities = torch.zeros(3, dtype=torch.float64)
    for batch in loader:
        skipped.update(dict.fromkeys(batch.skipped))
        logits = candidate.model(candidate.model.prepare(batch.to(device))).logits
        assert logits is not None
        logits = logits.float().cpu()[:, label_map]
        if not logits.isfinite().all():
            raise UserError(
                f"{candidate.name} gives logits that are not finite numbers.", "Its weights are damaged: train it anew."
            )
        guesses, labelled = logits.argmax(dim=1), batch.targets != UNLABELLED
        meters.update(logits[labelled], batch.targets[labelled])
        rows = [row for index in batch.indices.tolist() for row in range(starts[index], starts[index + 1])]
        predictions[torch.tensor(rows, dtype=torch.int64)[labelled]] = guesses[labelled]
        if isinstance(batch, WordBatch):
            entities += count_entities(guesses, batch, data.class_names).sum(dim=0)
    scores = meters.compute()
    mixed = meters.find_mixed(data.class_names)
    if mixed is not None:
        notes.append(f"{candidate.name} seems to have the classes in another order: {mixed.describe(data.class_names)}")
    return scores | (entity_scores(entities) if "entity_f1" in _score_names(data) else {}), predictions


def _first_rows(source: ImageSource | TextSource) -> list[int]:
    """Return where the predictions of every sample begin, one of an image or text, one a word; and their number."""
    sizes = [len(words) for words in source.words] if isinstance(source, WordSource) else [1] * len(source)
    return [0, *accumulate(sizes)]
