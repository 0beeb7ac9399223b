"""The three splits of a set of images, and how those that are missing are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.base.tasks import task_of
from kdcli.base.text import counted, expand_user
from kdcli.config.data import DataConfig
from kdcli.data.classes import alike, choose_classes, list_classes, order_notes
from kdcli.data.images.decode import Range
from kdcli.data.images.sources import (
    Concatenation,
    FileSource,
    ImageSource,
    OfficialSplits,
    file_identity,
    file_paths,
    sample_names,
)
from kdcli.data.listing import is_image, list_files, unread_notes
from kdcli.data.splits import TEST_SEED, class_counts, cut_indices, draw_indices, how_cut, keep_labels


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

    has_pairs: ClassVar[bool] = False
    """Whether a sample is a pair."""

    def settle(self, config: DataConfig) -> DataConfig:
        """Return ``config``, by which the data were opened, with what was found out then."""
        several = {"label_kind": "classes"} if self.facts.label_kind == "classes" else {}
        return config.model_copy(update={"deep_range": self.deep_range, **several})

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
    notes += notes_on_cuts(official, validation, test, how=how, seed=seed)
    check_disjoint(train, validation, test)
    if absent := [
        name for name, count in zip(names, class_counts(train.labels, len(names)), strict=True) if count == 0
    ]:
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
        task=task_of("image", "sequence").name,
        class_names=names,
        num_train=len(train),
        num_labelled=sum(label != UNLABELLED for label in train.labels),
        num_validation=len(validation),
        num_test=0 if test is None else len(test),
        notes=tuple(notes),
    )
    return ImageData(facts=facts, train=train, validation=validation, test=test)


def notes_on_cuts(
    official: OfficialSplits, validation: ImageSource, test: ImageSource | None, *, how: str, seed: int
) -> list[str]:
    """Return what is said of the splits that the data don't have: those that were cut, and a missing test split.

    Args:
        official: the splits that the data have.
        validation: as it is used.
        test: likewise.
        how: the cut was made.
        seed: of validation's cut.
    """
    notes = []
    if test is None:
        notes.append("Test: none, as the data have a validation split but no test split.")
    elif official.test is None:
        notes.append(f"Test: {counted(len(test), 'image')} cut from the whole by a fixed seed, {how}.")
    if official.validation is None:
        size = counted(len(validation), "image")
        notes.append(f"Validation: {size} cut from the training split by seed {seed}, {how}.")
    return notes


def _take(source: ImageSource, chosen: Sequence[int], split: str) -> ImageSource:
    """Return the images of the ``chosen`` labels, renumbered from 0 in their order, and those without a label."""
    labels = np.asarray(source.labels, dtype=np.int64)
    kept = np.flatnonzero(np.isin(labels, [*chosen, UNLABELLED]))
    if not np.any(labels[kept] != UNLABELLED):
        raise UserError(
            f"data.classes: no image of the {split} split has one of these classes.", "Take other classes, or more."
        )
    renumbered = np.where(labels[kept] == UNLABELLED, UNLABELLED, np.searchsorted(chosen, labels[kept]))
    return source.take(kept, renumbered.tolist())


def _cut(
    source: ImageSource,
    fraction: float,
    class_names: Sequence[str],
    chosen: Sequence[int],
    *,
    seed: int,
    purpose: str,
) -> tuple[ImageSource, ImageSource]:
    """Return (the rest, a ``fraction`` of the labelled images of every class); unlabelled images stay in the rest.

    A class with a single image can't be cut: it stays in the rest, or is an error where it is ``chosen``.
    """
    names = sample_names(source)
    rest, part = cut_indices(source.labels, fraction, class_names, chosen, seed=seed, purpose=purpose, names=names)
    return source.take(rest), source.take(part)


def _draw(source: ImageSource, size: int, *, seed: int) -> ImageSource:
    return source.take(draw_indices(source.labels, size, seed=seed, noun="image"))


def _withhold_labels(source: ImageSource, num_kept: int, class_names: Sequence[str], *, seed: int) -> ImageSource:
    return source.take(range(len(source)), keep_labels(source.labels, num_kept, class_names, seed=seed))


def append_unlabelled(
    train: ImageSource,
    folder: Path,
    *,
    others: Sequence[ImageSource | None],
    wrap: Callable[[ImageSource], ImageSource] | None = None,
) -> tuple[ImageSource, str]:
    """Return ``train`` with the images below ``folder`` that no split holds yet, and a note.

    Args:
        train: what they are added to.
        folder: with images.
        others: the other splits.
        wrap: gives them targets that say nothing, where targets are no classes.

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
    added: ImageSource = FileSource(new, root=folder)
    return Concatenation(train, added if wrap is None else wrap(added)), " ".join([note, *unread_notes(found.unread)])


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
