"""Compare teachers on data before any student is trained: what ``kdcli models probe`` shows and writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import DataFacts, ModelFacts
from kdcli.base.files import write_atomically
from kdcli.base.tasks import TASKS
from kdcli.base.text import human_count, short_repr
from kdcli.config.data import DataConfig
from kdcli.config.models import TeacherConfig
from kdcli.data import Source
from kdcli.data.unreadable import check_readable
from kdcli.machine.devices import resolve_device
from kdcli.models import load_teacher
from kdcli.models.settle import settle_teacher
from kdcli.projectors.spectra import effective_rank, singular_values
from kdcli.tasks import task_class
from kdcli.tasks.features.frozen import NEIGHBOURS, knn_classifier, linear_classifier
from kdcli.tasks.features.log_me import log_me
from kdcli.tasks.features.probing import Features, features_of, sample_by_class

Table = tuple[str, list[str], list[list[str]]]
Report = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""

TAPS = ("pooled", "embedding")
_FOLDS = 5


def probe_teachers(
    teachers: Sequence[str],
    *,
    weights: str | None = None,
    task: str,
    data: str,
    data_root: Path | None,
    samples: int,
    classes: str | None,
    tap: str,
    seed: int,
    device: str,
    report: Report,
) -> dict[str, Any]:
    """Describe and rank the features of frozen teachers on a sample of the training images or texts.

    Accuracies are means over stratified cross-validation with the same folds for all: of a k-nearest-neighbours
    classifier (cosine distance) and of a logistic regression on standardised features. The test split is never looked
    at.

    Args:
        teachers: names, as ``--teacher`` takes them.
        weights: a checkpoint file for the only one.
        task: ``image-classification``, or ``text-classification`` with one class a text.
        data: name of the data.
        data_root: where torchvision's data lie.
        samples: size of the sample, drawn by class in proportion.
        classes: which of the data's classes to look at, as :func:`kdcli.data.classes.choose_classes` reads it.
        tap: ``pooled`` or ``embedding``.
        seed: of sample, folds and the weights of ``random:`` teachers.
        device: ``auto`` is the first GPU, else the CPU.
        report: told about the progress.

    Returns:
        What ``--json`` prints, the best teacher first.

    Raises:
        UserError: there is no such teacher, class or tap, there are too few images or texts, or the labels are not one
            class each.
    """
    _check_named(teachers, weights, tap)
    train, facts = _open(task, data, data_root, classes, seed)
    source, dropped = sample_by_class(train, facts.class_names, samples, seed)
    folds = min(_FOLDS, min(np.unique(source.labels, return_counts=True)[1]))
    place = resolve_device(device)
    probed: list[dict[str, Any]] = []
    for number, name in enumerate(teachers):
        config = settle_teacher(TeacherConfig(name=name, weights=weights), modality=facts.noun)
        model = load_teacher(config, seed=seed, task=task)
        if tap not in model.facts.feature_dims:
            raise UserError(f"{name} has no features {tap!r}: it has no classifier.", "Use --features pooled.")

        def count(done: int, *, before: int = number * len(source), name: str = name) -> None:
            report(f"Running {name}", before + done, len(teachers) * len(source))

        found = features_of(model, source, (tap,), place, count)
        check_readable(found.lost, len(source), what="images of the sample")
        report(f"Probing {name}", (number + 1) * len(source), len(teachers) * len(source))
        scores = _scores(name, found.by_tap[tap], found.labels, folds=int(folds), seed=seed)
        probed.append({"teacher": name, **_entry(model.facts, config.weights, scores, found, tap)})
    probed.sort(key=lambda entry: (-entry["linear_probe"], -entry["log_me"]))
    counted = [facts.class_names[label] for label in np.unique(source.labels)]
    return {
        "task": task,
        "data": facts.name,
        "data_notes": list(facts.notes),
        "num_samples": len(found.labels),
        "num_unreadable": len(source) - len(found.labels),
        "class_names": counted,
        "dropped_classes": dropped,
        "features": tap,
        "folds": int(folds),
        "seed": seed,
        "device": str(place),
        "ranked_by": "linear_probe, then log_me",
        "teachers": probed,
    }


def _check_named(teachers: Sequence[str], weights: str | None, tap: str) -> None:
    if tap not in TAPS:
        raise UserError(
            f"There are no features {short_repr(tap)}. {did_you_mean(tap, TAPS)}".rstrip(), f"Use {' or '.join(TAPS)}."
        )
    for name in teachers:
        if list(teachers).count(name) > 1:
            raise UserError(f"The teacher {name} is named twice.", "Name every teacher once.")
        if name == "none":
            raise UserError("The teacher 'none' has no features.", "Name models.")
    if weights is not None and len(teachers) > 1:
        raise UserError(
            f"--teacher-weights {weights} is for one teacher, and {len(teachers)} are named.",
            "Name the files with the teachers: --teacher 'NAME?weights=FILE'",
        )


def _entry(
    facts: ModelFacts, file: str | None, scores: Mapping[str, float], found: Features, tap: str
) -> dict[str, Any]:
    """Return what is told of a teacher; ``file`` has its weights, where they are not its library's."""
    return {
        "resolved": facts.name,
        "note": getattr(facts.preprocessing, "note", ""),
        "weights": facts.weights,
        "weights_file": file,
        **scores,
        "width": found.by_tap[tap].shape[1],
        "parameters": facts.num_parameters,
        "ms_per_sample": 1e3 * found.seconds / len(found.labels),
    }


def table(probe: dict[str, Any]) -> Table:
    """Return the table for the terminal, the best teacher first."""
    columns = ["teacher", "linear probe", f"{NEIGHBOURS}-NN", "LogME", "effective rank", "parameters"]
    columns.append(f"ms per {_noun(probe)}")
    rows = [
        [
            entry["teacher"],
            f"{entry['linear_probe']:.4f}",
            f"{entry['knn']:.4f}",
            f"{entry['log_me']:.3f}",
            f"{entry['effective_rank']:.1f} of {entry['width']}",
            human_count(entry["parameters"]),
            f"{entry['ms_per_sample']:.1f}",
        ]
        for entry in probe["teachers"]
    ]
    return "Teachers", columns, rows


def remarks(probe: dict[str, Any]) -> Iterator[str]:
    """Yield the rule of the ranking, and what was measured on what."""
    yield (
        "Ranked by the linear probe's accuracy, then by LogME. Both accuracies are means over"
        f" {probe['folds']}-fold cross-validation."
    )
    noun = _noun(probe)
    own = "preprocessing" if noun == "image" else "tokenizer, length and pooling"
    yield (
        f"Measured on {probe['num_samples']} training {noun}s of {probe['data']}, {len(probe['class_names'])} classes:"
        f" {probe['features']} features, each teacher with its own {own}; time in batches on {probe['device']}."
    )
    yield from probe["data_notes"]
    for entry in probe["teachers"]:
        if entry["weights_file"] is not None:
            yield f"{entry['teacher']}: weights of {entry['weights']}."
    if probe["num_unreadable"]:
        yield f"{probe['num_unreadable']} {noun}s of the sample can't be read and are left out."
    yield from (f"{entry['teacher']}: {entry['note']}" for entry in probe["teachers"] if entry["note"])
    if probe["dropped_classes"]:
        yield f"Left out, as the sample has a single {noun} of each: {', '.join(probe['dropped_classes'])}."


def to_json(probe: dict[str, Any]) -> str:
    """Return what ``--json`` prints and ``--output`` writes."""
    return json.dumps(probe, indent=2, allow_nan=False) + "\n"


def check_output(file: Path) -> None:
    """Refuse what can be no file, before anything is measured.

    Raises:
        UserError: it is a folder, or its folder does not exist.
    """
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else "would be in a folder that does not exist"
        raise UserError(f"{file} {what}.", "Give --output a file's name.")


def write_probe(probe: dict[str, Any], file: Path) -> None:
    """Write the JSON object to ``file``.

    Raises:
        UserError: it can't be written there.
    """
    write_atomically(file, lambda temporary: temporary.write_text(to_json(probe), encoding="utf-8"))


def _noun(probe: dict[str, Any]) -> str:
    return TASKS[probe["task"]].modality


def _open(task: str, data: str, data_root: Path | None, classes: str | None, seed: int) -> tuple[Source, DataFacts]:
    """Return the training split, and what is known of the data."""
    for option, value in (("--data-root", data_root), ("--classes", classes)):
        if value is not None and not TASKS[task].reads_images:
            raise UserError(f"{option} is about images, and the task is {task}.", "Leave it out.")
    chosen = None if classes is None else (classes,)
    opened = task_class(task).open_classes(DataConfig(name=data, root=data_root, classes=chosen), seed=seed)
    if opened.facts.label_kind != "class":
        what = "several labels" if opened.facts.label_kind == "classes" else "a number"
        raise UserError(
            f"A text of {data} has {what}, and teachers are ranked by how well they tell classes apart.",
            "Name texts with one class each.",
        )
    return opened.train, opened.facts


def _scores(name: str, features: Tensor, labels: NDArray[np.int64], *, folds: int, seed: int) -> dict[str, float]:
    try:
        rank = effective_rank(singular_values(features - features.mean(dim=0)))
        evidence = log_me(features, torch.from_numpy(labels))
    except ValueError as error:
        raise UserError(f"{name} can't be probed: {error}.", "Its weights are damaged, or made for float16.") from error
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    values = features.double().numpy()
    nearest, linear = knn_classifier(len(labels) - len(labels) // folds - 1), linear_classifier()
    return {
        "linear_probe": float(cross_val_score(linear, values, labels, cv=split).mean()),
        "knn": float(cross_val_score(nearest, values, labels, cv=split).mean()),
        "log_me": evidence,
        "effective_rank": rank,
    }
