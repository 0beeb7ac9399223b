"""Train, validation and test: taken as they are, or cut so that they never overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.base.text import expand_user
from kdcli.config.run import DataConfig
from kdcli.data.classes import alike, choose_classes, list_classes, listing, order_notes
from kdcli.data.images.decode import Range
from kdcli.data.images.sources import (
    Concatenation,
    FileSource,
    ImageSource,
    OfficialSplits,
    Subset,
    file_identity,
    file_paths,
    sample_names,
)
from kdcli.data.listing import is_image, list_files, unread_notes
from kdcli.machine.seeding import stable_share

TEST_SEED = 0
"""Cuts the test split, whatever the run's seed: every run is tested on the same images."""
MAX_PAIRS = 2000
"""Largest validation and test split of a task whose metrics look at pairs of samples."""


@dataclass(frozen=True)
class ImageData:
    """A data set, split.

    Attributes:
        facts: what the plan needs to know about it.
        train: unlabelled images included.
        validation: for choosing; labelled, unless the task reads no labels.
        test: for reporting; likewise; None where the data have a validation split and no test split.
        labelled: of a task that reads no labels: labelled images to measure the student's features on at the end.
        deep_range: what is black and white in deep grayscale; None where there is none.
    """

    facts: DataFacts
    train: ImageSource
    validation: ImageSource
    test: ImageSource | None
    labelled: ImageData | None = None
    deep_range: Range | None = None

    @property
    def held_out(self) -> tuple[str, ImageSource]:
        """The split to report on, with its name: the test split, or validation where there is none."""
        return ("validation", self.validation) if self.test is None else ("test", self.test)


def complete(official: OfficialSplits, config: DataConfig, *, seed: int) -> ImageData:
    """Cut what is missing, take classes, withhold and append as ``config`` says; check that nothing is in two splits.

    Splits are cut from all classes before some are taken: which split an image is in does not depend on
    ``config.classes``, so a teacher of some classes never trained on test images of a student of others.

    Raises:
        UserError: fewer than two classes, no such classes, a split without images of them, too few images to cut, an
            image file in two splits, fewer labels than ``labels_per_class``, or nothing at ``unlabelled``.
    """
    names, train, validation, test = official.class_names, official.train, official.validation, official.test
    notes = [*official.notes, *alike(names), *order_notes(names)]
    if len(names) < 2:
        raise UserError(
            f"{config.name} has {len(names)} class{'' if len(names) == 1 else 'es'}"
            f"{f' ({names[0]})' if names else ''}; classification needs at least 2.",
            "Give every class a folder, or a value in the label column, of its own.",
        )
    chosen = range(len(names)) if config.classes is None else choose_classes(config.classes, names, data=config.name)
    if len(chosen) < 2:
        raise UserError(
            f"data.classes takes 1 class of {config.name} ({names[chosen[0]]}); classification needs at least 2.",
            f"Take more of its {len(names)} classes.",
        )
    how = how_cut(by_hash=sample_names(train) is not None)
    if validation is None and test is None:
        train, test = _cut(train, config.test_fraction, names, chosen, seed=TEST_SEED, purpose="test")
    if validation is None:
        train, validation = _cut(train, config.validation_fraction, names, chosen, seed=seed, purpose="validation")
    if config.classes is not None:
        train, validation = (
            _take(split, chosen, name) for split, name in ((train, "training"), (validation, "validation"))
        )
        test = None if test is None else _take(test, chosen, "test")
        num_all, names = len(names), tuple(names[label] for label in chosen)
        notes.append(f"Classes: {len(names)} of {num_all} taken: {list_classes(names)}.")
    if test is None:
        notes.append("Test: none, as the data have a validation split but no test split.")
    elif official.test is None:
        notes.append(f"Test: {len(test)} images cut from the whole by a fixed seed, {how}.")
    if official.validation is None:
        notes.append(f"Validation: {len(validation)} images cut from the training split by seed {seed}, {how}.")
    check_disjoint(train, validation, test)
    if absent := [name for name, count in zip(names, _count(train.labels, len(names)), strict=True) if count == 0]:
        notes.append(f"No training image has the label {', '.join(absent)}.")
    if config.train_images is not None and config.train_images < len(train):
        train = _draw(train, config.train_images, seed=seed)
        notes.append(f"Training images: {len(train)} drawn by seed {seed}, stratified by class; the rest left out.")
    if config.labels_per_class is not None:
        train = _withhold_labels(train, config.labels_per_class, names, seed=seed)
        notes.append(f"Labels: {config.labels_per_class} a class kept by seed {seed}, the rest withheld.")
    if config.unlabelled is not None:
        train, note = append_unlabelled(train, config.unlabelled, others=(validation, test))
        notes.append(note)
    facts = DataFacts(
        name=config.name,
        task="image-classification",
        class_names=names,
        num_train=len(train),
        num_labelled=sum(label != UNLABELLED for label in train.labels),
        num_validation=len(validation),
        num_test=0 if test is None else len(test),
        notes=tuple(notes),
    )
    return ImageData(facts=facts, train=train, validation=validation, test=test)


def _count(labels: Sequence[int], num_classes: int) -> NDArray[np.int64]:
    known = np.asarray(labels, dtype=np.int64)
    return np.bincount(known[known != UNLABELLED], minlength=num_classes)


def _take(source: ImageSource, chosen: Sequence[int], split: str) -> Subset:
    """Return the images of the ``chosen`` labels, renumbered from 0 in their order, and those without a label."""
    labels = np.asarray(source.labels, dtype=np.int64)
    kept = np.flatnonzero(np.isin(labels, [*chosen, UNLABELLED]))
    if not np.any(labels[kept] != UNLABELLED):
        raise UserError(
            f"data.classes: no image of the {split} split has one of these classes.", "Take other classes, or more."
        )
    renumbered = np.where(labels[kept] == UNLABELLED, UNLABELLED, np.searchsorted(chosen, labels[kept]))
    return Subset(source, kept, renumbered.tolist())


def how_cut(*, by_hash: bool) -> str:
    """Return how samples with classes are cut, for the notes."""
    return "in every class by the hash of each name" if by_hash else "stratified by class"


def _cut(
    source: ImageSource,
    fraction: float,
    class_names: Sequence[str],
    chosen: Sequence[int],
    *,
    seed: int,
    purpose: str,
) -> tuple[Subset, Subset]:
    """Return (the rest, a ``fraction`` of the labelled images of every class); unlabelled images stay in the rest.

    A class with a single image can't be cut: it stays in the rest, or is an error where it is ``chosen``.
    """
    names = sample_names(source)
    rest, part = cut_indices(source.labels, fraction, class_names, chosen, seed=seed, purpose=purpose, names=names)
    return Subset(source, rest), Subset(source, part)


def cut_indices(
    given: Sequence[int],
    fraction: float,
    class_names: Sequence[str],
    chosen: Sequence[int],
    *,
    seed: int,
    purpose: str,
    noun: str = "image",
    names: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (the rest, a ``fraction`` of the labelled samples of every class); unlabelled samples stay in the rest.

    A class with a single sample can't be cut: it stays in the rest, or is an error where it is ``chosen``. Samples with
    names are cut by :func:`hold_out`, class by class, so that another sample moves none of them; others by their place.

    Args:
        given: one class index a sample, ``UNLABELLED`` for none.
        fraction: of the labelled samples.
        class_names: in label order.
        chosen: classes that both parts must have.
        seed: decides which.
        purpose: of the part, for messages.
        noun: what a sample is, for messages.
        names: one a sample, which it keeps whatever else the data have.

    Returns:
        The indices of both, in order.

    Raises:
        UserError: there are too few samples.
    """
    labels = np.asarray(given, dtype=np.int64)
    counts = _count(given, len(class_names))
    lone = np.flatnonzero(counts == 1)
    labelled = np.flatnonzero((labels != UNLABELLED) & ~np.isin(labels, lone))
    num_classes = int(np.count_nonzero(counts > 1))
    # At least one sample a class on either side, as far as the counts allow.
    size = max(round(fraction * len(labelled)), num_classes)
    hint = f"Add {noun}s, or give the data a {purpose} split of their own."
    if single := [class_names[label] for label in np.intersect1d(lone, chosen)]:
        raise UserError(
            f"Too few {noun}s to cut a {purpose} split: {listing(single)} {'has' if len(single) == 1 else 'have'} "
            f"only 1 {noun}, and each class needs at least 2.",
            hint,
        )
    if len(labelled) - size < max(num_classes, 1):
        raise UserError(
            f"Too few {noun}s to cut a {purpose} split: {len(labelled)} labelled {noun}s of {num_classes} classes, of "
            f"which {size} are to be cut and {len(labelled) - size} would stay.",
            hint,
        )
    if names is None:
        _, part = train_test_split(labelled, test_size=size, stratify=labels[labelled], random_state=seed)
    else:
        classes = [labelled[labels[labelled] == label] for label in np.unique(labels[labelled])]
        held_out = [
            members[hold_out([names[index] for index in members], fraction, seed=seed, purpose=purpose)]
            for members in classes
        ]
        part = np.concatenate(held_out)
    rest = np.setdiff1d(np.arange(len(labels)), part)
    if lost := [class_names[label] for label in np.intersect1d(np.setdiff1d(labels[labelled], labels[rest]), chosen)]:
        raise UserError(f"Too few {noun}s to cut a {purpose} split: none of {listing(lost)} would stay.", hint)
    return rest, np.sort(part)


def hold_out(names: Sequence[str], fraction: float, *, seed: int, purpose: str, fewest: int = 1) -> NDArray[np.int64]:
    """Return which samples are held out, in order: those whose hash of ``purpose``, ``seed`` and name is below ``fraction``.

    So it is decided for each sample alone, and their number varies about the fraction. Only where that would hold out
    fewer than ``fewest`` or than half of the fraction, or keep fewer than two (one of two), those with the next hashes go
    too, or stay.

    Args:
        names: one a sample, at least two.
        fraction: of the samples.
        seed: decides which.
        purpose: two cuts by one seed are independent.
        fewest: of them to be held out.
    """
    shares = np.array([stable_share(purpose, seed, name) for name in names])
    most = max(len(names) - 2, 1)  # so that the rest can be cut once more
    least = max(round(fraction * len(names) / 2), fewest)
    size = min(max(int(np.count_nonzero(shares < fraction)), least), most)
    return np.sort(np.argsort(shares, kind="stable")[:size])


def _draw(source: ImageSource, size: int, *, seed: int) -> Subset:
    return Subset(source, draw_indices(source.labels, size, seed=seed, noun="image"))


def draw_indices(given: Sequence[int], size: int, *, seed: int, noun: str) -> NDArray[np.int64]:
    """Return ``size`` samples, every class and the unlabelled ones in proportion, at least one of each.

    Args:
        given: one class index a sample, ``UNLABELLED`` for none.
        size: at most as many as there are.
        seed: decides which.
        noun: what a sample is, for messages.

    Raises:
        UserError: ``size`` is less than the number of classes.
    """
    labels = np.asarray(given, dtype=np.int64)
    num_classes = len(np.unique(labels))
    if size < num_classes:
        raise UserError(
            f"data.train_{noun}s is {size}, but there are {num_classes} classes.", f"Ask for at least {num_classes}."
        )
    order = np.random.default_rng([seed, size]).permutation(len(labels))
    # The k-th of n images of a class stands at k/n of the way: the first of this order have each class, in proportion.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = np.arange(len(members)) / len(members)
    chosen = np.lexsort((order.argsort(), place))[:size]
    return np.sort(chosen)


def _withhold_labels(source: ImageSource, num_kept: int, class_names: Sequence[str], *, seed: int) -> Subset:
    return Subset(source, range(len(source)), keep_labels(source.labels, num_kept, class_names, seed=seed))


def keep_labels(given: Sequence[int], num_kept: int, class_names: Sequence[str], *, seed: int) -> list[int]:
    """Return the labels ``given`` with all but ``num_kept`` a class, drawn by ``seed``, put to ``UNLABELLED``.

    Raises:
        UserError: a class has fewer.
    """
    labels = np.asarray(given, dtype=np.int64)
    counts = _count(given, len(class_names))
    if short := [f"{name} ({n})" for name, n in zip(class_names, counts, strict=True) if n < num_kept]:
        raise UserError(
            f"data.labels_per_class is {num_kept}, but after the validation cut there are fewer labels in "
            f"{listing(short)}.",
            f"Ask for at most {counts.min()}.",
        )
    generator = np.random.default_rng([seed, num_kept])
    kept = np.full_like(labels, UNLABELLED)
    for label in range(len(class_names)):
        chosen = generator.choice(np.flatnonzero(labels == label), size=num_kept, replace=False)
        kept[chosen] = label
    return kept.tolist()


def append_unlabelled(
    train: ImageSource, folder: Path, *, others: Sequence[ImageSource | None]
) -> tuple[ImageSource, str]:
    """Return ``train`` with the images below ``folder`` that no split holds yet, and a note.

    Raises:
        UserError: there is no such folder, or no such image in it.
    """
    folder = expand_user(folder)
    hint = "data.unlabelled names a folder with images, in any depth."
    if not folder.is_dir():
        raise UserError(f"data.unlabelled: there is no folder {folder}.", hint)
    found = list_files(folder, is_image)
    paths = sorted(found.files)
    if not paths:
        raise UserError(f"data.unlabelled: there is no image in {folder}.", hint)
    known = {file_identity(path) for source in (train, *others) if source is not None for path in file_paths(source)}
    new = [path for path in paths if file_identity(path) not in known]
    if not new:
        raise UserError(f"data.unlabelled: every image in {folder} is already in the data.", hint)
    note = f"Unlabelled: {len(new)} images of {folder} added to the training split."
    if len(new) < len(paths):
        note += f" {len(paths) - len(new)} others there are left out, as they are already in the data."
    return Concatenation(train, FileSource(new, root=folder)), " ".join([note, *unread_notes(found.unread)])


def check_disjoint(train: ImageSource, validation: ImageSource, test: ImageSource | None) -> None:
    """Refuse splits that share an image file.

    Raises:
        UserError: it names one.
    """
    files: dict[str, dict[tuple[int, int] | str, str]] = {}
    for name, source in {"train": train, "validation": validation, "test": test}.items():
        if source is not None:
            files[name] = {file_identity(path): path for path in file_paths(source)}
    for (first, left), (second, right) in combinations(files.items(), 2):
        if shared := left.keys() & right.keys():
            example = min(right[key] for key in shared)
            raise UserError(
                f"{len(shared)} image file{'s are' if len(shared) > 1 else ' is'} in both the {first} and the {second} "
                f"split, such as {example}.",
                "Splits must not share images, not through links either: remove them from one of the two.",
            )
