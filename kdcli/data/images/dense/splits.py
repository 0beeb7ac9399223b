"""The splits of images with targets at places: what is missing is cut, whatever the targets are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts, LabelKind
from kdcli.base.text import counted, have
from kdcli.config.data import DataConfig
from kdcli.data.images.sources import ImageSource, OfficialSplits, sample_names
from kdcli.data.images.splits import ImageData, append_unlabelled, check_disjoint, notes_on_cuts
from kdcli.data.splits import TEST_SEED, cut_indices, draw_indices, hold_out, how_cut

_FEWEST = 2
"""Images that a part can be cut from."""
_FEWEST_GROUPS = 4
"""Groups of images that a split is cut from by groups."""


def complete_dense(
    official: OfficialSplits,
    config: DataConfig,
    *,
    task: str,
    kind: LabelKind,
    seed: int,
    unlabelled: Callable[[ImageSource], ImageSource],
    groups: Sequence[str] = (),
) -> ImageData:
    """Cut what is missing, draw, withhold and append as ``config`` says; check that nothing is in two splits.

    Args:
        official: the splits that the data have; labels are 0, or ``UNLABELLED`` where an image has no target.
        config: of the data.
        task: that the data are for.
        kind: of labels.
        seed: the run's; cuts the validation split.
        unlabelled: of images without targets to the same with targets that say nothing.
        groups: of training images: whole groups are cut; empty for images that stand each for itself.

    Raises:
        UserError: too few images, an image file in two splits, fewer images with targets than ``labelled_images``, or
            nothing at ``unlabelled``.
    """
    train, validation, test = official.train, official.validation, official.test
    notes = list(official.notes)
    how = how_cut(by_hash=True).removeprefix("in every class ") if sample_names(train) is not None else "at random"
    if validation is None and test is None:
        train, test, groups = _cut(train, groups, config.test_fraction, seed=TEST_SEED, purpose="test")
    if validation is None:
        train, validation, _ = _cut(train, groups, config.validation_fraction, seed=seed, purpose="validation")
    if len(set(groups)) >= _FEWEST_GROUPS and official.validation is None:
        how = "by whole folders of images"
    notes += notes_on_cuts(official, validation, test, how=how, seed=seed)
    check_disjoint(train, validation, test)
    if config.train_images is not None and config.train_images < len(train):
        train = train.take(draw_indices(train.labels, config.train_images, seed=seed, noun="image"))
        notes.append(f"Training images: {len(train)} drawn by seed {seed}; the rest left out.")
    if config.labelled_images is not None:
        train = _withhold(train, config.labelled_images, seed=seed)
        notes.append(
            f"Labels: those of {counted(config.labelled_images, 'image')} kept by seed {seed}, the rest withheld."
        )
    if config.unlabelled is not None:
        if kind == "boxes":
            raise UserError(
                "data.unlabelled is set, but boxes are learnt from every image: one without any is taken to show"
                " nothing.",
                "Leave it out.",
            )
        train, note = append_unlabelled(train, config.unlabelled, others=(validation, test), wrap=unlabelled)
        notes.append(note)
    facts = DataFacts(
        name=config.name,
        task=task,
        class_names=official.class_names,
        num_train=len(train),
        num_labelled=sum(label != UNLABELLED for label in train.labels),
        num_validation=len(validation),
        num_test=0 if test is None else len(test),
        notes=tuple(notes),
        label_kind=kind,
    )
    return ImageData(facts=facts, train=train, validation=validation, test=test)


def _cut(
    source: ImageSource, groups: Sequence[str], fraction: float, *, seed: int, purpose: str
) -> tuple[ImageSource, ImageSource, Sequence[str]]:
    """Return the rest, the part that is cut, and the groups of the rest."""
    labelled = sum(label != UNLABELLED for label in source.labels)
    if labelled < _FEWEST:
        raise UserError(
            f"Too few images to cut a {purpose} split: {labelled} {have(labelled)} a target.",
            f"Add images, or give the data a {purpose} split of their own.",
        )
    if len(set(groups)) >= _FEWEST_GROUPS:
        known = sorted({group for group, label in zip(groups, source.labels, strict=True) if label != UNLABELLED})
        chosen = {known[index] for index in hold_out(known, fraction, seed=seed, purpose=purpose)}
        part = [index for index, group in enumerate(groups) if group in chosen and source.labels[index] != UNLABELLED]
        rest = [index for index, group in enumerate(groups) if group not in chosen]
    else:
        names = sample_names(source)
        kept, cut = cut_indices(source.labels, fraction, ("images",), (), seed=seed, purpose=purpose, names=names)
        rest, part = kept.tolist(), cut.tolist()
    return source.take(rest), source.take(part), [groups[index] for index in rest] if groups else ()


def _withhold(source: ImageSource, size: int, *, seed: int) -> ImageSource:
    labels = np.asarray(source.labels, dtype=np.int64)
    labelled = np.flatnonzero(labels != UNLABELLED)
    if len(labelled) < size:
        raise UserError(
            f"data.labelled_images is {size}, but {counted(len(labelled), 'training image')}"
            f" {have(len(labelled))} a target.",
            f"Ask for at most {len(labelled)}.",
        )
    kept = labelled[draw_indices([0] * len(labelled), size, seed=seed, noun="image")]
    left = np.full_like(labels, UNLABELLED)
    left[kept] = labels[kept]
    return source.take(range(len(source)), left.tolist())
