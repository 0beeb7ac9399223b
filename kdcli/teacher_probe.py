"""A teacher of other classes, of another task or of none is probed on labelled training samples before it teaches."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch.nn import functional as F

from kdcli.chance import Level, judge_classes
from kdcli.data import AnyBatch, Batch, ImageSource, TextBatch, TextSource
from kdcli.data.sources import Subset
from kdcli.facts import UNLABELLED
from kdcli.job import Job
from kdcli.plan import Decision
from kdcli.probing import features_of
from kdcli.result import Saved
from kdcli.tasks.frozen_features import ridge_classifier
from kdcli.teacher_cache import Remembered

DECISION = "teacher probed"
"""What the plan's decision about it is called."""
MOST_SAMPLES, FEWEST_SAMPLES = 500, 100
MOST_MACS = 2.5e11
"""A costly teacher gets fewer samples: so many multiply-accumulates in all, a few seconds of a small CPU."""
_PER_CLASS = 5
"""So many samples at least are wanted of each class; of too many classes some are left out, evenly."""
_FOLDS = 5
_SIDE, _WORDS = 8, 2000
"""What a classifier of the input itself sees: pixels a side, and words."""
_SEED = 0
"""Not the run's: a sweep's seeds share what was measured."""


class Probed(Saved):
    """What a linear classifier makes of a teacher's features in cross-validation.

    Attributes:
        accuracy: by tap.
        level: of the best tap, against guessing; see :mod:`kdcli.chance`.
        guessing: what guessing gives, in words.
        of_input: the accuracy of the same classifier on the samples themselves.
        samples: how many.
        classes: of how many.
    """

    accuracy: dict[str, float]
    level: Level
    guessing: str
    of_input: float
    samples: int
    classes: int

    @property
    def best(self) -> float:
        """The accuracy of the best tap."""
        return max(self.accuracy.values())


def probe_teacher(job: Job, accelerator: Accelerator) -> Job:
    """Return ``job`` with what the teacher's features tell of the classes in its plan, where nothing else measures it.

    That is for the relations cross and random, where each sample has one class. Features are those that are distilled, of
    labelled training samples: what is chosen by them has seen neither validation nor test data. One of several processes
    does it alone, and what was measured before of the same teacher on the same samples is taken from the user's cache
    folder.

    Args:
        job: not begun.
        accelerator: the device, and which process this is.

    Raises:
        UserError: none of the samples can be read.
    """
    taps = _taps(job)
    if not taps or not accelerator.is_main_process:
        return job
    started = time.perf_counter()
    noun = job.data.facts.noun
    sample = _sample(job)
    if sample is None:
        reason = f"There are no two classes with two labelled training {noun}s each."
        return replace(job, plan=job.plan.with_decisions([Decision(DECISION, "no", reason)]))
    remembered = Remembered(job, sample, kind="probe", taps=list(taps))
    probed = remembered.recall(Probed)
    before = probed is not None
    if probed is None:
        probed = _probe(job, sample, taps, accelerator.device)
        if probed is None:
            return job
        remembered.keep(probed)
    took = "Known from an earlier plan." if before else f"Took {time.perf_counter() - started:.1f} s."
    plan = job.plan.with_decisions([_describe(job, probed, took)])
    measured = {"accuracy": probed.best, "level": probed.level, "of_input": probed.of_input, "samples": probed.samples}
    return replace(job, plan=replace(plan, teacher_probe=measured))


def _taps(job: Job) -> tuple[str, ...]:
    """Return the teacher's features that are distilled; nothing where it is not to be probed."""
    is_probed = job.plan.relation in ("cross", "random") and job.data.facts.label_kind == "class"
    if job.teacher is None or not is_probed:
        return ()
    stage = () if job.plan.embedding is None else job.plan.embedding.methods
    methods = [options for options in (*stage, *job.plan.methods) if options.needs_teacher]
    return tuple(dict.fromkeys(pair.teacher for options in methods for pair in options.pairs))


def _sample(job: Job) -> ImageSource | TextSource | None:
    """Return labelled training samples, as many of each class; None where there are no two classes with two."""
    assert job.teacher is not None
    train = job.data.train
    labels = np.array(train.labels)
    classes, counts = np.unique(labels[labels != UNLABELLED], return_counts=True)
    classes = classes[counts > 1]
    if len(classes) < 2:
        return None
    size = min(MOST_SAMPLES, max(FEWEST_SAMPLES, int(MOST_MACS / max(job.teacher.facts.macs, 1))))
    most = size // _PER_CLASS
    if len(classes) > most:
        classes = classes[np.arange(most) * len(classes) // most]
    draw, each = np.random.default_rng(_SEED), size // len(classes)
    kept = np.sort(np.concatenate([draw.permutation(np.flatnonzero(labels == label))[:each] for label in classes]))
    return train.take(kept) if isinstance(train, TextSource) else Subset(train, kept)


def _probe(job: Job, sample: ImageSource | TextSource, taps: tuple[str, ...], device: torch.device) -> Probed | None:
    """Return what was found; None where features are not finite or hardly anything can be read: training says so."""
    assert job.teacher is not None
    view = _Input()
    found = features_of(job.teacher, sample, taps, device, look=view.add, workers=job.config.data.workers)
    counts = np.bincount(found.labels)
    kept = counts[found.labels] > 1  # where others of a class can't be read
    labels = found.labels[kept]
    if len(np.unique(labels)) < 2 or not all(bool(features.isfinite().all()) for features in found.by_tap.values()):
        return None
    guesses = {tap: _guess(features.double().numpy()[kept], labels) for tap, features in found.by_tap.items()}
    accuracy = {tap: float((guess == labels).mean()) for tap, guess in guesses.items()}
    best = max(accuracy, key=lambda tap: accuracy[tap])
    finding = judge_classes(guesses[best], labels)
    return Probed(
        accuracy=accuracy,
        level=finding.level,
        guessing=finding.guessing,
        of_input=float((_guess(view.features()[kept], labels) == labels).mean()),
        samples=len(labels),
        classes=len(np.unique(labels)),
    )


def _guess(features: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what a linear classifier that has not seen a sample says of it."""
    folds = int(min(_FOLDS, np.unique(labels, return_counts=True)[1].min()))
    split = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
    guesses: NDArray[np.int64] = cross_val_predict(ridge_classifier(), features, labels, cv=split)
    return guesses


class _Input:
    """The samples themselves as features: small images, or which words are in a text."""

    def __init__(self) -> None:
        self._pixels: list[NDArray[np.float64]] = []
        self._texts: list[str] = []

    def add(self, batch: AnyBatch) -> None:
        """Add a batch."""
        if isinstance(batch, Batch):
            self._pixels.append(F.adaptive_avg_pool2d(batch.images.double(), _SIDE).flatten(1).numpy())
        elif isinstance(batch, TextBatch):
            self._texts += [text if isinstance(text, str) else " ".join(text) for text in batch.texts]

    def features(self) -> NDArray[np.float64]:
        """Return one row a sample."""
        if self._pixels:
            return np.concatenate(self._pixels)
        words = TfidfVectorizer(max_features=_WORDS, token_pattern=r"\w+")
        found: NDArray[np.float64] = words.fit_transform(self._texts).toarray()
        return found


_INPUTS = {"image": f"the pixels themselves ({_SIDE}x{_SIDE})", "text": "counts of words"}


def _describe(job: Job, probed: Probed, took: str) -> Decision:
    noun = job.data.facts.noun
    if len(probed.accuracy) == 1:
        shown = f"accuracy {probed.best:.4f}"
    else:
        shown = "accuracy " + ", ".join(f"{value:.4f} ({tap})" for tap, value in probed.accuracy.items())
    value = f"{shown}, {probed.samples} training {noun}s of {probed.classes} classes"
    reason = (
        f"Of a linear classifier on the features that are distilled, in cross-validation. Guessing gives {probed.guessing},"
        f" {_INPUTS[noun]} {probed.of_input:.4f}."
    )
    if probed.level == "near":
        task = "" if noun == "image" else f" --task {job.config.task}"
        reason += (
            " Warning: they tell nothing of your classes, so expect no help of this teacher; 'kdcli models"
            f" probe{task}' ranks others."
        )
    elif probed.level == "unsure":
        reason += f" {probed.samples} {noun}s are too few to tell this from guessing."
    return Decision(DECISION, value, f"{reason} {took}")
