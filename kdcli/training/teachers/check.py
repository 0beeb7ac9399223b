"""The teacher is measured on labelled validation samples before it teaches, and refused if it only guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.result import Metrics, Saved, show_metric
from kdcli.data import AnyBatch, Source
from kdcli.machine.team import Team
from kdcli.plan.plan import Decision
from kdcli.plan.relation import map_labels
from kdcli.statistics.chance import (
    SHOWN_CLASSES,
    Finding,
    Mixed,
    find_mixed,
    judge_boxes,
    judge_classes,
    judge_depth,
    judge_numbers,
    judge_pixels,
    judge_scores,
    judge_tokens,
)
from kdcli.training.evaluation import Skip, ignore, measure
from kdcli.training.job import Job
from kdcli.training.teachers.cache import Remembered
from kdcli.training.teachers.sharded import even, teacher_on

DECISION = "teacher measured"
"""What the plan's decision about it is called."""
MOST_SAMPLES = 5000
"""A larger validation split is measured on so many of its samples, evenly spread over it."""
_MOST_SCORED = 1000
"""Classes up to which all probabilities are kept, not only the likeliest class."""
_PIXELS = 256
"""Of an image so many labelled pixels are looked at, evenly spread."""
_GOLDEN = 0.6180339887498949
"""The golden ratio: its multiples fill the numbers from 0 to 1 evenly."""


def check_teacher(job: Job, team: Team, *, refuses: bool = True) -> Job:
    """Return ``job`` with the teacher's validation metrics in its plan, where it predicts what the student does.

    What was measured before of the same teacher on the same samples is taken from the user's cache folder. Its classes
    are brought to the data's by the plan's label map. Several processes share the samples.

    Args:
        job: not begun.
        team: device, precision, processes.
        refuses: False lets a teacher pass that is no better than guessing; ``teacher.unchecked`` does too.

    Raises:
        UserError: the teacher does no better than guessing, or has its classes in another order; it says what to try.
    """
    if not job.measures_teacher:
        return job
    validation = job.data.validation
    sample = _sample(validation)
    measured = _measured(job, sample, team)
    metrics, mixed, finding = measured.metrics, measured.mixed, measured.finding
    noun = job.data.facts.noun
    shown = _show(metrics)
    where = f"{len(sample)} validation {noun}s"
    if refuses and not job.config.teacher.unchecked:
        if mixed is not None:
            raise _mixed_up(job, mixed, f"{shown} on {where}")
        if finding.level == "near":
            raise _near_chance(job, f"{shown} on {where}", finding)
    reason = "Measured before the first step"
    if len(sample) < len(validation):
        reason += f", on {len(sample)} of the {len(validation)} validation {noun}s, evenly spread"
    reason += f". Guessing gives {finding.guessing}"
    warning = ""
    if mixed is not None:
        warning = "its classes seem to be in another order than yours, and it is taken all the same"
    elif finding.level == "near":
        warning = "this is no better than guessing; it is taken all the same"
        if job.config.reads_images and job.teacher is not None:
            warning += f". The commonest cause is its preprocessing, {job.teacher.facts.preprocessing.describe()}"
    elif finding.level == "unsure":
        warning = f"{len(sample)} {noun}s are too few to tell this from guessing"
    decision = Decision(
        DECISION,
        f"{shown}, {where}",
        f"{reason}{f'; {warning}' if warning else ''}.",
        warning=warning and f"The teacher has {shown} on {where}: {warning}.",
        brief=f"{shown}, {where}; guessing gives {finding.guessing}",
    )
    plan = job.plan.with_decisions([decision])
    size = len(sample) if len(sample) < len(validation) else None
    return replace(job, plan=replace(plan, teacher_metrics=metrics, teacher_samples=size))


class _Measured(Saved):
    """What a teacher came to on a sample: metrics, classes that are mixed up, and how it stands to guessing."""

    metrics: Metrics
    mixed: Mixed | None
    finding: Finding


def _measured(job: Job, sample: Source, team: Team) -> _Measured:
    """Measure the teacher, or return what was measured of it before on the same samples."""
    found: _Measured | None = None
    remembered = None
    if team.is_main and job.config.extension_task is None:
        tokens = repr(job.student.facts.preprocessing) if job.config.task_facts.is_over_tokens else ""
        assert job.teacher is not None
        remembered = Remembered(
            job.config,
            job.teacher,
            job.data,
            sample,
            kind="metrics",
            task=[job.config.task, job.data.facts.label_scale, job.config.data.mask_probability, tokens],
            depth=[job.teacher.facts.depth, repr(job.data.facts.depth)],
            columns=list(columns_of(job)),
            precision=team.precision,
        )
        found = remembered.recall(_Measured)
    if (known := team.broadcast(found)) is not None:
        return known
    evidence = _Evidence()
    metrics = measure_teacher(job, sample, team, evidence=evidence)
    mixed, finding = evidence.judge(job, metrics, team)
    measured = _Measured(metrics=metrics, mixed=mixed, finding=finding)
    if remembered is not None:
        remembered.keep(measured)
    return measured


def measure_teacher(
    job: Job,
    source: Source,
    team: Team,
    skip: Skip = ignore,
    *,
    evidence: _Evidence | None = None,
) -> dict[str, float]:
    """Return the task's metrics of the teacher on ``source``, its outputs brought into the student's order.

    Args:
        job: whose :attr:`~kdcli.training.job.Job.measures_teacher` is true.
        source: a split.
        team: device, precision, processes.
        skip: told after every batch which files could not be read.
        evidence: gets what the teacher predicts.
    """
    teacher = job.teacher
    assert teacher is not None
    teacher = teacher_on(job, team)
    columns = columns_of(job)

    @torch.inference_mode()
    def predict(batch: AnyBatch) -> Any:
        with team.autocast():
            outputs = job.task.in_order(job.predict(teacher, batch), columns)
        if evidence is not None and isinstance(outputs, Tensor):
            with team.autocast():
                told = job.task.evidence(teacher, batch, outputs)
            evidence.add(told, batch.targets)
        return outputs

    return measure(job, teacher, source, team, predict, skip, even=lambda batches: even(job, batches, team))


def columns_of(job: Job) -> Sequence[int]:
    """Return the teacher's class of each of the student's; nothing where all are the same."""
    if job.plan.label_map is not None:
        return job.plan.label_map
    assert job.teacher is not None
    label_map, _ = map_labels(job.teacher.facts, job.data.facts)
    return label_map or ()


def _sample(source: Source) -> Source:
    if len(source) <= MOST_SAMPLES:
        return source
    source = source.near(MOST_SAMPLES)
    number = min(MOST_SAMPLES, len(source))
    return source.take([place * len(source) // number for place in range(number)])


class _Evidence:
    """What the teacher predicts of each labelled sample, and what is true."""

    def __init__(self) -> None:
        self._guesses: list[Any] = []
        self._targets: list[Any] = []
        self._scores: list[Any] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: of classes the likeliest (n,) and, where they are not too many, their probabilities, else all
        outputs (n, C).
        """
        if targets.is_floating_point() and targets.ndim == 3:
            self._guesses.append(_correlations(outputs, targets))
            return
        if targets.ndim == 4:
            self._guesses.append(_similarities(outputs, targets))
            return
        if not targets.is_floating_point():
            keeps_scores = True
            if targets.ndim == 3:
                outputs, targets = _some_pixels(outputs, targets)
                keeps_scores = False  # pixels are judged by their likeliest class alone
            targets = targets.flatten()
            labelled = targets != UNLABELLED
            outputs, targets = outputs[labelled], targets[labelled]
            if outputs.shape[1] <= _MOST_SCORED and keeps_scores:
                self._scores.append(outputs.float().softmax(dim=1).cpu().numpy())
            outputs = outputs.argmax(dim=1)
        self._guesses.append(outputs.float().cpu().numpy() if outputs.is_floating_point() else outputs.cpu().numpy())
        self._targets.append(targets.cpu().numpy())

    def judge(self, job: Job, metrics: dict[str, float], team: Team) -> tuple[Mixed | None, Finding]:
        """Return which classes are mixed up, and how the teacher stands to guessing."""
        assert job.teacher is not None
        kind = job.data.facts.label_kind
        if kind == "tokens":
            return None, judge_tokens(metrics["loss"], job.teacher.facts.num_classes)
        if kind == "boxes":
            return None, judge_boxes(metrics[job.task.monitor])
        if kind == "unpaired":
            return None, Finding("above", "nothing to compare with: images have no targets of their own")
        if kind in ("depth", "image"):
            return None, judge_depth(np.concatenate(team.gather(self._guesses)))
        parts = [team.gather(part) for part in (self._guesses, self._targets, self._scores)]
        guesses, targets = (np.concatenate(part) for part in parts[:2])
        scores = np.concatenate(parts[2]) if parts[2] else None
        if kind == "number":
            return None, judge_numbers(guesses[:, 0], targets[:, 0])
        if kind == "classes":
            return None, judge_scores(guesses, targets)
        mixed = find_mixed(guesses, targets, job.data.facts.class_names, are_independent=kind != "pixels")
        return mixed, judge_pixels(guesses, targets) if kind == "pixels" else judge_classes(guesses, targets, scores)


def _some_pixels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs (n, C) and targets (n,) of at most :data:`_PIXELS` labelled pixels of each image.

    Args:
        outputs: maps (B, C, h, w) of any size, or a row a pixel, (B * H * W, C).
        targets: (B, H, W).
    """
    rows, labels = [], []
    for number, target in enumerate(targets):  # one by one: at full size the maps of a batch would fill the memory
        own = target.flatten()
        places = torch.nonzero(own != UNLABELLED)[:, 0]
        places = places[_spread(len(places)).to(places.device)]
        if outputs.ndim == 4:
            whole = F.interpolate(outputs[number : number + 1].float(), target.shape, mode="bilinear")
            rows.append(whole[0].flatten(1)[:, places].T)
        else:
            rows.append(outputs.unflatten(0, (len(targets), -1))[number][places])
        labels.append(own[places])
    return torch.cat(rows), torch.cat(labels)


def _spread(count: int) -> Tensor:
    """Return at most :data:`_PIXELS` of so many places: one of every part, each time at another point of its part.

    Equal steps would be whole rows of many an image, and all places in its first column.
    """
    if count <= _PIXELS:
        return torch.arange(count)
    parts = torch.arange(_PIXELS, dtype=torch.float64)
    return ((parts + parts * _GOLDEN % 1) * count / _PIXELS).long()


def _correlations(outputs: Tensor, targets: Tensor) -> Any:
    """Return the correlation of each image's depth with its target (B, H, W) over what was measured, float64 (B,).

    NaN where fewer than two values were, or all are alike.
    """
    outputs = outputs.float().reshape(len(targets), 1, *outputs.shape[-2:])
    outputs = F.interpolate(outputs, targets.shape[1:], mode="bilinear")[:, 0].cpu().double().flatten(1)
    truth = targets.cpu().double().flatten(1)
    measured = truth > 0
    number = measured.sum(dim=1, keepdim=True)
    centred = [
        torch.where(measured, values - torch.where(measured, values, 0).sum(dim=1, keepdim=True) / number, 0)
        for values in (outputs, truth)
    ]
    norms = [values.norm(dim=1) for values in centred]
    return ((centred[0] * centred[1]).sum(dim=1) / (norms[0] * norms[1])).cpu().numpy()


def _similarities(outputs: Tensor, targets: Tensor) -> Any:
    """Return the correlation of each image with its target (B, 3, H, W), float64 (B,); NaN where either is constant."""
    outputs = F.interpolate(outputs.float(), targets.shape[2:], mode="bilinear", antialias=True)
    sides = [side.cpu().double().flatten(1) for side in (outputs, targets)]
    ours, theirs = (side - side.mean(dim=1, keepdim=True) for side in sides)
    return ((ours * theirs).sum(dim=1) / (ours.norm(dim=1) * theirs.norm(dim=1))).cpu().numpy()


def _show(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {show_metric(name, value)}" for name, value in metrics.items())


_GO_ON = "--unchecked-teacher takes the teacher as it is."


def _near_chance(job: Job, shown: str, finding: Finding) -> UserError:
    assert job.teacher is not None
    tries = [_preprocessing(job)] if job.config.reads_images else []
    tries.append("other weights (--teacher-weights)")
    if job.data.facts.has_classes:
        tries.append("its classes in its own order (--set 'teacher.label_names=[...]')")
    features = "" if job.data.facts.label_kind == "tokens" else " --relation cross distils its features alone."
    return UserError(
        f"The teacher {job.teacher.facts.name} does no better than guessing: {shown}, where guessing gives"
        f" {finding.guessing}.",
        f"Try {', '.join(tries)}.{features} {_GO_ON}",
    )


def _preprocessing(job: Job) -> str:
    """Return the commonest cause of a teacher that knows nothing, and how to mend it."""
    assert job.teacher is not None
    return (
        f"the preprocessing that it was trained with: it gets {job.teacher.facts.preprocessing.describe()}, set by"
        " --set teacher.image_size=N, 'teacher.mean=[R,G,B]' and 'teacher.std=[R,G,B]' (of values from 0 to 1; for"
        " weights that take 0 to 255 the std is 1/255, 0.00392)"
    )


def _mixed_up(job: Job, mixed: Mixed, shown: str) -> UserError:
    assert job.teacher is not None
    return UserError(
        f"The teacher {job.teacher.facts.name} has your classes in another order: {shown}, and"
        f" {mixed.describe(job.data.facts.class_names)}",
        f"Tell its classes in its own order: --set 'teacher.label_names={_own_names(job, mixed)}'. {_GO_ON}",
    )


def _own_names(job: Job, mixed: Mixed) -> str:
    """Return the list of the teacher's classes that sets the order right, or its outline where that is long."""
    assert job.teacher is not None
    names, columns = job.data.facts.class_names, list(columns_of(job))
    own = list(job.teacher.facts.label_names or [""] * job.teacher.facts.num_classes)
    for label, other in enumerate(mixed.order):
        own[columns[other]] = names[label]
    shown = own if len(own) <= 2 * SHOWN_CLASSES + 8 else [*own[:SHOWN_CLASSES], "..."]
    return f"[{', '.join(shown)}]"
