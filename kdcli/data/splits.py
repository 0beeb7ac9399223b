"""Train, validation and test: taken as they are, or cut so that they never overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data.classes import listing
from kdcli.data.stratify import draw_stratified
from kdcli.machine.seeding import stable_share

TEST_SEED = 0
"""Cuts the test split, whatever the run's seed: every run is tested on the same images."""
MAX_PAIRS = 2000
"""Largest validation and test split of a task whose metrics look at pairs of samples."""


def class_counts(labels: Sequence[int], num_classes: int) -> NDArray[np.int64]:
    """Return how many samples each class has, int64 (num_classes,); those without a label are in none."""
    known = np.asarray(labels, dtype=np.int64)
    return np.bincount(known[known != UNLABELLED], minlength=num_classes)


def how_cut(*, by_hash: bool, of: str = "name") -> str:
    """Return how samples with classes are cut, for the notes; ``of`` is what the hash is of."""
    return f"in every class by the hash of each {of}" if by_hash else "stratified by class"


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
    counts = class_counts(given, len(class_names))
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
        part = labelled[draw_stratified(labels[labelled], size, seed=seed)]
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
    """Return which samples are held out, in order: those whose hash of ``purpose``, ``seed`` and name is below
    ``fraction``.

    So it is decided for each sample alone, and their number varies about the fraction. Only where that would hold out
    fewer than ``fewest`` or than half of the fraction, or keep fewer than two (one of two), those with the next hashes
    go too, or stay.

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


def keep_labels(given: Sequence[int], num_kept: int, class_names: Sequence[str], *, seed: int) -> list[int]:
    """Return the labels ``given`` with all but ``num_kept`` a class, drawn by ``seed``, put to ``UNLABELLED``.

    Raises:
        UserError: a class has fewer.
    """
    labels = np.asarray(given, dtype=np.int64)
    counts = class_counts(given, len(class_names))
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
