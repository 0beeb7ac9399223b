"""Ask finished models about a user's own samples: what ``kdcli predict`` shows and writes.

Models are loaded, and samples are prepared and answered, as ``kdcli evaluate`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from kdcli.base.errors import UserError
from kdcli.base.tasks import TASKS, TEACHERS_TASKS
from kdcli.config.data import DataConfig
from kdcli.data import Source, UnreadableImage
from kdcli.data.images.channels import check_models
from kdcli.data.images.decode import Range
from kdcli.data.own import STDIN, Item, find_images, find_texts, has_deep
from kdcli.machine.devices import resolve_device
from kdcli.models import load_saved
from kdcli.plan.relation import map_labels
from kdcli.results.calibration import read_calibration
from kdcli.results.candidates import Candidate, load_model, load_teacher_of
from kdcli.results.evaluate import predict_batch
from kdcli.results.export import embedding_projector
from kdcli.results.samples import loader_of, named_task, open_run
from kdcli.runs.folder import RunFolder
from kdcli.tasks import Task, build_task, task_class
from kdcli.tasks.answers import Answer, Answers, Asked, Choice


@dataclass(frozen=True)
class Question:
    """What is asked, and of which model.

    Attributes:
        name: a run folder, or the name of a model.
        inputs: files and folders; ``-`` for texts of standard input.
        texts: given on the command line.
        against: more runs and models.
        with_teacher: also ask the teacher of the run ``name``.
        task: of a model; by default its own.
        weights: a checkpoint file for the model ``name``.
        text_column: of tables.
        text_pair_column: of tables, where samples are pairs.
        choice: how much is told.
        device: ``auto`` is the first GPU, else the CPU.
        batch_size: samples of a batch.
        force: go on although files of a run have changed.
    """

    name: str
    inputs: Sequence[str] = ()
    texts: Sequence[str] = ()
    against: Sequence[str] = ()
    with_teacher: bool = False
    task: str | None = None
    weights: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    choice: Choice = field(default_factory=Choice)
    device: str = "auto"
    batch_size: int = 64
    force: bool = False

    @property
    def has_texts(self) -> bool:
        """Whether only texts can be meant."""
        return bool(self.texts) or STDIN in self.inputs or self.text_column is not None


@dataclass
class Prediction:
    """Models with the samples that they are asked about; :meth:`answers` asks them.

    Attributes:
        task: what the models are for.
        items: the samples.
        asking: how they are asked.
        candidates: the models.
        notes: what there is to say, a sentence each.
        asked: the same models, as they are asked.
        device: on which they run.
        unreadable: names of the images that can't be read, known once all have been answered.
    """

    task: Task
    items: Sequence[Item]
    asking: Answers
    candidates: Sequence[Candidate]
    notes: list[str]
    asked: Sequence[Asked]
    _source: Source
    device: torch.device
    _batch_size: int
    unreadable: dict[str, None] = field(default_factory=dict)

    @property
    def roles(self) -> list[str]:
        """What the models are called."""
        return [candidate.role for candidate in self.candidates]

    def answers(self) -> Iterator[tuple[int, dict[str, Answer]]]:
        """Yield of every sample its place in ``items`` and each model's answer; what can't be read is left out.

        Raises:
            UserError: no image can be read, or a model's outputs are no finite numbers.
        """
        self._check_readable()
        last = -1
        for number, parts in groupby(self._parts(), key=lambda part: part[0]):
            yield from self._lost(last + 1, number)
            last = number
            whole = reduce(_joined, (answers for _, answers in parts))  # of a text's pieces
            yield number, dict(zip(self.roles, whole, strict=True))
        yield from self._lost(last + 1, len(self.items))

    def _lost(self, start: int, stop: int) -> Iterator[tuple[int, dict[str, Answer]]]:
        """Yield empty answers on texts of which no word was read; images without an answer are unreadable."""
        for number in range(start, stop) if not self.task.row().reads_images else ():
            yield number, {role: Answer([], []) for role in self.roles}

    def _parts(self) -> Iterator[tuple[int, list[Answer]]]:
        config = DataConfig(name="none", strict=False)
        loaders = [
            loader_of(self._source, candidate.model.facts.preprocessing, self._batch_size, config)
            for candidate in self.candidates
        ]
        for candidate in self.candidates:
            candidate.model.to(self.device)
        for batches in zip(*loaders, strict=True):
            found = []
            for candidate, asked, batch in zip(self.candidates, self.asked, batches, strict=True):
                self.unreadable.update(dict.fromkeys(batch.skipped))
                ask = partial(_ask, self.asking, asked)
                with torch.inference_mode():
                    outputs = predict_batch(self.task, candidate, batch, self.device, ask=ask)
                found.append(self.asking.of(asked, outputs, batch))
            for number, *answers in zip(batches[0].samples.tolist(), *found, strict=True):
                yield number, answers

    def _check_readable(self) -> None:
        """Refuse images of which none can be read, with the reason of the first."""
        reasons: list[UnreadableImage] = []
        most = max(candidate.model.facts.preprocessing.num_channels for candidate in self.candidates)
        source = self._source.in_channels(most)  # what one of the models can't read is left out
        for number in range(len(source)):
            try:
                source.load(number)
            except UnreadableImage as error:
                reasons.append(error)
                continue
            return
        first = reasons[0]
        count = f"None of {len(reasons)} images can be read, " if len(reasons) > 1 else "It can't be read: "
        raise UserError(f"{count}{first.name}: {first.reason}", "Check that the files are complete images.")


def _joined(ours: list[Answer], theirs: list[Answer]) -> list[Answer]:
    return [one + other for one, other in zip(ours, theirs, strict=True)]


def _ask(asking: Answers, asked: Asked, model: Any, batch: Any) -> Any:
    return asking.ask(asked, batch)


def open_prediction(question: Question, *, leave_out: Path | None = None) -> Prediction:
    """Load the models, and find the samples.

    Args:
        question: what is asked.
        leave_out: a folder whose images are no samples: what is predicted is written there.

    Raises:
        UserError: for a name, file or device that isn't there, samples of another kind than the model reads, models of
            different tasks, or a run whose files have changed.
    """
    names = [question.name, *question.against]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is named twice.", "Name every model once.")
    if not question.inputs and not question.texts:
        raise UserError("Nothing is named to ask about.", 'Name image files or folders, or give texts by --text "...".')
    place = resolve_device(question.device)
    run = open_run(question.name, force=question.force)
    if run is not None and question.weights is not None:
        raise UserError(f"{question.name} is a run: it has weights of its own.", "Leave --teacher-weights out.")
    if run is None and question.with_teacher:
        raise UserError(f"{question.name} is no run: it has no teacher.", "Name another model by --against.")
    notes: list[str] = []
    task, extension = _task_of(question, run)
    if TASKS[task].is_language_model:
        row = TASKS[task]
        raise UserError(
            f"kdcli predict asks for classes, vectors, masks, depth and boxes; {row.words} writes tokens.",
            f"Load the folder by transformers: pipeline({row.pipeline_tag!r}, model=PATH).",
        )
    items = _without(_find(question, run, task, notes), leave_out, notes)  # before anything is loaded
    first, task, extension = _first(question, run, task, extension)
    config = None if run is None else run.read_config().data
    facts = task_class(extension or task).facts_of(first.model, config)
    others = {other: open_run(other, force=question.force) for other in question.against}
    candidates = [first, *_others(question, run, first, others, facts)]
    kind = build_task(facts, reference=_no_reference, extension=extension)
    deep_range = _deep_range(question.name, run, others, items, notes) if TASKS[task].reads_images else None
    asking = kind.answers([item.sample for item in items], question.choice, deep_range=deep_range)
    asked = [_asked(candidate, kind, others.get(candidate.name, run)) for candidate in candidates]
    if asking.one_space and (other := [each.name for each in candidates if each.label_map is None]):
        raise UserError(
            f"{other[0]} has other classes than {first.name}: they can't be put side by side.", "Ask it by itself."
        )
    for opened in (run, *others.values()):
        notes += [] if opened is None else opened.forced
    notes += [
        note for candidate, each in zip(candidates, asked, strict=True) for note in _notes(candidate, each, asking)
    ]
    source = asking.source([candidate.model for candidate in candidates])
    if len(candidates) > 1:  # of a single one what it can't read is left out
        models = {candidate.name: candidate.model.facts.preprocessing for candidate in candidates}
        check_models(source, models, "What is named")
    return Prediction(
        kind, items, asking, candidates, list(dict.fromkeys(notes)), asked, source, place, question.batch_size
    )


def _task_of(question: Question, run: RunFolder | None) -> tuple[str, str | None]:
    """Return the task as far as it is known before a model by name is loaded: of a folder what it was saved for."""
    if run is not None or question.task is not None:
        return named_task(run, question.task)
    if (Path(question.name) / "config.json").is_file() and question.weights is None:
        try:
            found = load_saved(Path(question.name)).facts.task
        except UserError:  # loaded as a teacher's it may tell better what is wrong, or work
            pass
        else:
            return found, None
    default, extension = named_task(None, None)
    if question.has_texts or (question.inputs and not any(map(_may_be_image, question.inputs))):
        row = TASKS[default]
        default = next(other.name for other in TASKS.values() if (other.modality, other.head) == ("text", row.head))
    return default, extension


def _may_be_image(name: str) -> bool:
    return Path(name).suffix.lower() not in (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")


def _find(question: Question, run: RunFolder | None, task: str, notes: list[str]) -> list[Item]:
    row = TASKS[task]
    if row.reads_images:
        if question.has_texts or question.text_pair_column is not None:
            raise UserError(f"{question.name} is for {row.words}, and reads no texts.", "Name image files or folders.")
        return find_images(question.inputs, notes)
    wants = run is not None and run.read_config().data.text_pair_column is not None
    takes_pairs = wants or (run is None and row.target == "label")
    items = find_texts(
        question.inputs,
        question.texts,
        asked=(question.text_column, question.text_pair_column),
        trained_on=None if run is None else run.read_config().data,
        takes_pairs=takes_pairs,
        notes=notes,
    )
    are_pairs = {not isinstance(item.sample, str) for item in items}
    if len(are_pairs) > 1 or (run is not None and are_pairs != {wants}):
        raise UserError(
            f"{question.name} was trained on {'pairs of texts' if wants else 'single texts'}."
            if run is not None
            else "Some of the samples are single texts, and some are pairs.",
            "Pairs are two columns of a csv file, such as premise and hypothesis, or named by --text-column and"
            " --text-pair-column."
            if wants
            else "Name the column of the texts by --text-column.",
        )
    return items


def _without(items: list[Item], folder: Path | None, notes: list[str]) -> list[Item]:
    """Return the items that are no files in ``folder``."""
    if folder is None or not folder.is_dir():
        return items
    inside = folder.resolve()
    kept = [item for item in items if not (item.place and inside in Path(item.sample).resolve().parents)]
    if len(kept) < len(items):
        notes.append(f"{len(items) - len(kept)} images in {folder} are left out: that is where pictures are written.")
    if not kept:
        raise UserError(f"All images are in {folder}, where pictures are written.", "Name another --output.")
    return kept


def _first(
    question: Question, run: RunFolder | None, task: str, extension: str | None
) -> tuple[Candidate, str, str | None]:
    """Return the model that is named, and its task: that asked for, or else what the model is for by itself."""
    loaded = load_model(question.name, run, task=task, weights=question.weights)
    found = loaded.model.facts.task
    if run is None and question.task is None and TASKS[found].modality == TASKS[task].modality:
        task = found
    _check_task(loaded.model, question.name, task)
    if run is not None and run.read_config().leaves_classifier_untrained and not TASKS[task].is_label_free:
        raise UserError(
            f"No method of {question.name} trained the student's classifier: its answers would be guesses.",
            "Train it with a method that reads the labels; --task image-embedding of its export gives its features."
            if TASKS[task].reads_images
            else "Train it with a method that reads the labels.",
        )
    role = "model" if run is None else "student"
    return Candidate(role, question.name, loaded.model, loaded.folder, (), "", file=loaded.file), task, extension


def _check_task(model: Any, name: str, task: str, *, hint: str = "") -> None:
    if task in TEACHERS_TASKS:
        raise UserError(f"{name} is for {TASKS[task].words}, which kdcli predict can't show.", "Name another model.")
    if model.facts.task != task and not TASKS[task].is_label_free:
        raise UserError(
            f"{name} is for {model.facts.task}, and asked for is {task}.", hint or f"--task {model.facts.task}"
        )


def _others(
    question: Question,
    run: RunFolder | None,
    first: Candidate,
    others: dict[str, RunFolder | None],
    facts: Any,
) -> Iterator[Candidate]:
    if run is not None and question.with_teacher:
        whole = replace(first, label_map=tuple(range(len(facts.class_names))))
        teacher = load_teacher_of(run, whole, facts)
        if teacher is None:
            raise UserError(f"{question.name} was trained without a teacher.", "Leave --teacher out.")
        if teacher.model.facts.task != facts.task and not TASKS[facts.task].is_label_free:
            raise UserError(
                f"The teacher of {question.name} is for {teacher.model.facts.task}: it gives no such answers.",
                "Leave --teacher out.",
            )
        yield teacher
    for number, (name, opened) in enumerate(others.items(), 1):
        loaded = load_model(name, opened, task=facts.task)
        _check_task(loaded.model, name, facts.task, hint=f"Leave --against {name} out, or ask it by itself.")
        label_map, reason = map_labels(loaded.model.facts, facts, role="model")
        yield Candidate(f"against-{number}", name, loaded.model, loaded.folder, label_map, reason, file=loaded.file)


def _deep_range(
    name: str, run: RunFolder | None, others: Mapping[str, RunFolder | None], items: Sequence[Item], notes: list[str]
) -> Range | None:
    """Return what is black and white in deep grayscale: what it was in the training of the runs that are asked."""
    ranges: dict[Range, str] = {}
    for each, opened in {name: run, **others}.items():
        if opened is not None and (found := opened.read_config().data.deep_range) is not None:
            ranges.setdefault(found, each)
    if len(ranges) > 1:
        raise UserError(
            f"{' and '.join(ranges.values())} take different values of deep images for black and white.",
            "Ask them one by one.",
        )
    if not ranges and has_deep(items):
        notes.append(
            "Deep grayscale images are scaled each by its own values: no run that is asked says what was black and"
            " white in training."
        )
    return next(iter(ranges), None)


def _asked(candidate: Candidate, task: Task, run: RunFolder | None) -> Asked:
    """Return how a model is asked; ``run`` is its own, or that which it taught."""
    model = candidate.model
    facts = type(task).facts_of(model, None if run is None else run.read_config().data)
    if task.row().is_label_free:
        is_student = run is not None and candidate.role != "teacher"
        into = embedding_projector(run, model.facts.feature_dims["pooled"]) if run is not None and is_student else None
        return Asked(model, (), facts, None if into is None else _on_its_device(into))
    names = facts.class_names if candidate.label_map is None else task.class_names
    found = None if run is None or candidate.role == "teacher" else read_calibration(run)
    return Asked(model, names, facts, temperature=1.0 if found is None else found.temperature)


def _on_its_device(projector: Any) -> Callable[[Any], Any]:
    projector.eval()
    return lambda features: projector.to(features.device)(features)


def _notes(candidate: Candidate, asked: Asked, asking: Answers) -> list[str]:
    """Return what is not a matter of course about a model and its answers."""
    name, facts = candidate.name, candidate.model.facts
    phrases = (candidate.file, facts.preprocessing.note, facts.preprocessing.said_channels)
    said = [f"{name}: {phrase}" for phrase in phrases if phrase]
    if asked.into_teacher is not None:
        said.append(f"{name}: embeddings are mapped into the teacher's space by the run's projector.")
    if candidate.label_map is None and asked.class_names:
        said.append(f"{name} answers with its own classes. {candidate.labels}")
    elif candidate.labels and list(candidate.label_map or ()) != sorted(candidate.label_map or ()):
        said.append(f"{name}: {candidate.labels}")
    if facts.label_names is None and len(asked.class_names) > 1:
        said.append(f"{name} carries no names of its classes: they are numbered from 0.")
    return said + asking.notes(asked)


def _no_reference(batch: Any) -> Any:
    raise NotImplementedError("a finished model is not compared with an embedding space")
