"""Splits of images for a task that reads no labels, and the labelled images that its students are measured on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.base.tasks import task_of
from kdcli.base.text import counted
from kdcli.config.data import DataConfig
from kdcli.data.images.sources import ImageSource, OfficialSplits, file_identity, file_paths, sample_names
from kdcli.data.images.splits import ImageData, append_unlabelled, check_disjoint
from kdcli.data.splits import MAX_PAIRS, TEST_SEED, draw_indices, hold_out

MAX_LABELLED = 5000
"""Most labelled images of a split that features are measured on, drawn by a fixed seed, every class in proportion."""
_FEWEST = 3
"""Images of a split that is compared in pairs."""


def complete_unlabelled(
    official: OfficialSplits, config: DataConfig, labelled: ImageData | None, *, uses_own_labels: bool, seed: int
) -> ImageData:
    """Cut what is missing, whatever the labels, take them away, and draw and append as ``config`` says.

    Args:
        official: the images, with or without labels.
        config: of the data.
        labelled: other data to measure features on; what they hold out is left out of training.
        uses_own_labels: measure them on the labels of ``official``, where there are any.
        seed: the run's; cuts the validation split.

    Raises:
        UserError: too few images, an image file in two splits, or nothing at ``unlabelled``.
    """
    train, validation, test = official.train, official.validation, official.test
    notes = list(official.notes)
    if validation is None and test is None:
        train, test = _cut(train, config.test_fraction, seed=TEST_SEED, purpose="test")
        notes.append(f"Test: {counted(len(test), 'image')} cut from the whole by a fixed seed.")
    elif test is None:
        notes.append("Test: none, as the data have a validation split but no test split.")
    if validation is None:
        train, validation = _cut(train, config.validation_fraction, seed=seed, purpose="validation")
        notes.append(f"Validation: {counted(len(validation), 'image')} cut from the training split by seed {seed}.")
    sizes = {"training": len(train), "validation": len(validation)} | ({} if test is None else {"test": len(test)})
    if min(sizes.values()) < _FEWEST:
        told = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise UserError(
            f"{config.name} has too few images: {told}; every split needs at least {_FEWEST}.", "Add images."
        )
    check_disjoint(train, validation, test)
    if config.train_images is not None and config.train_images < len(train):
        same = [UNLABELLED] * len(train)
        train = train.take(draw_indices(same, config.train_images, seed=seed, noun="image"))
        notes.append(f"Training images: {len(train)} drawn by seed {seed}; the rest left out.")
    if uses_own_labels:
        labelled = _with_labels(official.class_names, config.name, train, validation, test)
    train = _unlabelled(train)
    if config.unlabelled is not None:
        train, note = append_unlabelled(train, config.unlabelled, others=(validation, test))
        notes.append(note)
    if labelled is not None and not uses_own_labels:
        train = _without(train, labelled, "training", notes)
        validation = _without(validation, labelled, "validation", notes)
    splits = [_thin_out(validation, "validation", notes)]
    splits += [] if test is None else [_thin_out(test, "test", notes)]
    facts = DataFacts(
        name=config.name,
        task=task_of("image", "none").name,
        class_names=(),
        num_train=len(train),
        num_labelled=0,
        num_validation=len(splits[0]),
        num_test=len(splits[1]) if splits[1:] else 0,
        notes=tuple(notes),
        label_kind="none",
    )
    return ImageData(facts, train, splits[0], splits[1] if splits[1:] else None, labelled)


def _cut(source: ImageSource, fraction: float, *, seed: int, purpose: str) -> tuple[ImageSource, ImageSource]:
    """Return (the rest, a ``fraction`` of the images, at least ``_FEWEST`` where there are as many)."""
    count = len(source)
    names = sample_names(source)
    if names is not None and count > 1:
        part = hold_out(names, fraction, seed=seed, purpose=purpose, fewest=_FEWEST)
    else:
        order = np.random.default_rng(seed).permutation(count)
        part = np.sort(order[: min(max(round(fraction * count), _FEWEST), count)])
    return source.take(np.setdiff1d(np.arange(count), part)), source.take(part)


def _with_labels(
    names: Sequence[str], name: str, train: ImageSource, validation: ImageSource, test: ImageSource | None
) -> ImageData | None:
    """Return the splits with their labels; None where there are too few to train on or to report on."""
    labelled = [label for label in train.labels if label != UNLABELLED]
    facts = DataFacts(
        name=name,
        task=task_of("image", "sequence").name,
        class_names=tuple(names),
        num_train=len(train),
        num_labelled=len(labelled),
        num_validation=len(validation),
        num_test=0 if test is None else len(test),
    )
    data = ImageData(facts, train, validation, test)
    has_held_out = any(label != UNLABELLED for label in data.held_out[1].labels)
    return data if len(set(labelled)) > 1 and has_held_out else None


def _unlabelled(source: ImageSource) -> ImageSource:
    return source.take(range(len(source)), [UNLABELLED] * len(source))


def _without(source: ImageSource, labelled: ImageData, split: str, notes: list[str]) -> ImageSource:
    """Return the images of a split without the files that ``labelled`` is reported on."""
    taken = {file_identity(path) for path in file_paths(labelled.held_out[1])}
    if not taken:
        return source
    kept = [index for index in range(len(source)) if file_identity(source.describe(index)) not in taken]
    if len(kept) == len(source):
        return source
    notes.append(f"{len(source) - len(kept)} {split} images are held out by {labelled.facts.name}, and left out.")
    if len(kept) < _FEWEST:
        raise UserError(f"{labelled.facts.name} holds out all but {len(kept)} of the {split} images.", "Add images.")
    return source.take(kept)


def _thin_out(source: ImageSource, split: str, notes: list[str]) -> ImageSource:
    """Return the images without their labels; of many ``MAX_PAIRS``, spread evenly over the split."""
    count = len(source)
    if count <= MAX_PAIRS:
        return _unlabelled(source)
    notes.append(f"Of {count} {split} images {MAX_PAIRS}, spread evenly, are compared in pairs.")
    chosen = [number * count // MAX_PAIRS for number in range(MAX_PAIRS)]
    return source.take(chosen, [UNLABELLED] * MAX_PAIRS)


def labelled_sample(source: ImageSource) -> ImageSource:
    """Return the labelled images, or ``MAX_LABELLED`` of them, at least one of each class."""
    labels = np.asarray(source.labels, dtype=np.int64)
    chosen = np.flatnonzero(labels != UNLABELLED)
    if len(chosen) > MAX_LABELLED:
        size = max(MAX_LABELLED, len(np.unique(labels[chosen])))
        chosen = chosen[draw_indices(labels[chosen].tolist(), size, seed=TEST_SEED, noun="image")]
    return source.take(chosen)
