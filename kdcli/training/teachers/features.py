"""What a teacher's features tell of the data's classes, measured on a sample of labelled training data."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.result import Saved
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, ImageData, TextData
from kdcli.machine.devices import resolve_device
from kdcli.models.base import Model
from kdcli.statistics.chance import Level, judge_classes
from kdcli.tasks.features.frozen import ridge_classifier
from kdcli.tasks.features.probing import features_of, sample_by_class
from kdcli.training.teachers.cache import Remembered

MOST_SAMPLES, FEWEST_SAMPLES = 256, 64
MOST_MACS = 1e11
"""A costly teacher gets fewer samples: so many multiply-accumulates in all, a few seconds of a small CPU."""
SIDE = 8
"""Pixels a side of what a classifier of the images themselves sees."""
_WORDS = 2000
_FOLDS = 5
_SEED = 0
"""Not the run's: a sweep's seeds share what was measured, and take the same layer."""


class Probed(Saved):
    """What simple classifiers make of features of the same samples, none of which they have seen.

    Attributes:
        samples: how many.
        classes: of how many.
        largest: the share of the largest class.
        guessing: what guessing gives, in words.
        means: by tap the accuracy of nearest class means, see :func:`nearest_other_means`.
        linear: by tap that of a ridge regression in cross-validation; of some taps alone.
        levels: of these how they stand to guessing, see :mod:`kdcli.statistics.chance`.
        of_input: as ``linear``, on the samples themselves: on small images, or counts of words.
        seconds: that all this took.
    """

    samples: int
    classes: int
    largest: float
    guessing: str
    means: dict[str, float]
    linear: dict[str, float]
    levels: dict[str, Level]
    of_input: float
    seconds: float


def probe_features(
    config: RunConfig, teacher: Model, data: ImageData | TextData, taps: tuple[str, ...], *, linear: bool
) -> Probed | None:
    """Measure what features tell of the classes, or return what was measured before of the same teacher and samples.

    Only labelled training samples are looked at: what is chosen by them has seen neither validation nor test data.

    Args:
        config: of the run: device.
        teacher: frozen; it is moved to the device.
        data: with one class a sample.
        taps: of the teacher, open.
        linear: ask for ``linear`` of all of them, else of the best by nearest class means alone.

    Returns:
        At least what is asked for; None where there are no two classes with two labelled samples that can be read.

    Raises:
        UserError: none of the samples can be read.
    """
    size = min(MOST_SAMPLES, max(FEWEST_SAMPLES, int(MOST_MACS / max(teacher.facts.macs, 1))))
    try:
        sample, _ = sample_by_class(data.train.near(size), data.facts.class_names, size, _SEED)
    except UserError:
        return None
    remembered = Remembered(config, teacher, data, sample, kind="features")
    known = remembered.recall(Probed)
    if known is not None and known.means.keys() >= set(taps):
        wanted = taps if linear else (best_of(known.means, taps),)
        if known.linear.keys() >= set(wanted):
            return known
    started = time.perf_counter()
    view = _Input()
    device = resolve_device("cpu" if config.teacher.sharded else config.train.device)
    found = features_of(teacher, sample, taps, device, look=view.add, workers=0)
    kept = np.bincount(found.labels)[found.labels] > 1  # where others of a class can't be read
    labels = found.labels[kept]
    if len(np.unique(labels)) < 2:
        return None
    targets = torch.from_numpy(labels)
    features = {tap: values[torch.from_numpy(kept)] for tap, values in found.by_tap.items()}
    means = {tap: nearest_other_means(values, targets) for tap, values in features.items()}
    guesses = {tap: _guess(features[tap], labels) for tap in (taps if linear else (best_of(means, taps),))}
    findings = {tap: judge_classes(guess, labels) for tap, guess in guesses.items()}
    accuracies = {tap: float((guess == labels).mean()) for tap, guess in guesses.items()}
    levels = {tap: finding.level for tap, finding in findings.items()}
    probed = Probed(
        samples=len(labels),
        classes=len(np.unique(labels)),
        largest=float(np.bincount(labels).max()) / len(labels),
        guessing=next(iter(findings.values())).guessing,
        means=means if known is None else known.means | means,
        linear=accuracies if known is None else known.linear | accuracies,
        levels=levels if known is None else known.levels | levels,
        of_input=float((_guess(view.features()[kept], labels) == labels).mean()) if known is None else known.of_input,
        seconds=time.perf_counter() - started + (0 if known is None else known.seconds),
    )
    remembered.keep(probed)
    return probed


def best_of(accuracies: dict[str, float], taps: tuple[str, ...]) -> str:
    """Return the best of ``taps``; of equals the last one."""
    return max(reversed(taps), key=lambda tap: accuracies[tap])


def nearest_other_means(features: Tensor, targets: Tensor) -> float:
    """Return the share of samples whose nearest class mean is their own class's, which they are left out of.

    Channels are standardised first, and those that are not finite make the share 0. A class of one sample has no mean
    for it.

    Args:
        features: (N, d).
        targets: int64 (N,), at least 0.
    """
    features = features.double()
    if not bool(features.isfinite().all()):
        return 0.0
    features = features - features.mean(dim=0)
    features = features / features.square().mean(dim=0).sqrt().clamp_min(1e-6)
    counts = targets.bincount().double()
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64).index_add_(0, targets, features)
    distances = torch.cdist(features, sums / counts.clamp_min(1)[:, None])
    distances[:, counts == 0] = torch.inf
    others = counts[targets] - 1
    own = (features - (sums[targets] - features) / others.clamp_min(1)[:, None]).norm(dim=1)
    rows = torch.arange(len(targets))
    distances[rows, targets] = torch.where(others > 0, own, torch.inf)
    return float((distances.argmin(dim=1) == targets).double().mean())


def _guess(features: Tensor | NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what a linear classifier says of samples that it has not seen; one class if features are not finite."""
    values = np.asarray(features, dtype=np.float64)
    if not np.isfinite(values).all():
        return np.full_like(labels, labels[0])
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = int(min(_FOLDS, np.unique(labels, return_counts=True)[1].min()))
    split = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
    guesses: NDArray[np.int64] = cross_val_predict(ridge_classifier(), values, labels, cv=split)
    return guesses


class _Input:
    """The samples themselves as features: small images, or which words are in a text."""

    def __init__(self) -> None:
        self._pixels: list[NDArray[np.float64]] = []
        self._texts: list[str] = []

    def add(self, batch: AnyBatch) -> None:
        """Add a batch."""
        if (pixels := batch.pixels(SIDE)) is not None:
            self._pixels.append(pixels.numpy())
        self._texts += batch.plain_texts()

    def features(self) -> NDArray[np.float64]:
        """Return one row a sample."""
        if self._pixels:
            return np.concatenate(self._pixels)
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(max_features=_WORDS, token_pattern=r"\w+|[^\w\s]")
        found: NDArray[np.float64] = words.fit_transform(self._texts).toarray()
        return found
