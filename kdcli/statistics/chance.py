"""Whether predictions tell more of the labels than guessing does, and whether classes are mixed up. No torch here.

A finding is ``near`` chance only where the samples rule out, at 99 %, that the predictions are of any use, and
``unsure`` where they are too few to tell; a teacher that is merely weak is neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["above", "unsure", "near"]
_LEVEL = 0.01
"""Probability of taking guesses for more, and of calling near chance what is of use."""
_USEFUL = 0.2
"""Of the way from guessing to perfect: what surely falls short of it, and is not surely above 0, is of no use."""
_LEAST_KAPPA = 0.05
"""Of pixels: what agrees with the truth less than this, in parts of the way from chance to perfect, is of no use."""
_NORMAL_99 = 2.326
_SWAPPED_LEVEL = 0.001
_MOST_SEARCHED = 2000
SHOWN_CLASSES = 6
"""Classes up to which the best of all orders is searched for: that takes their number cubed."""


@dataclass(frozen=True)
class Finding:
    """How predictions stand to guessing, and in which metric's terms.

    Attributes:
        level: see above.
        guessing: what guessing gives, in words.
    """

    level: Level
    guessing: str


@dataclass(frozen=True)
class Mixed:
    """Classes that are taken for one another.

    Attributes:
        order: for every class the one that is predicted for it; itself where it is not mixed up.
        accuracy: the share of predictions that would then be right.
        known_as: which known order that is, in words; empty where it is none.
    """

    order: tuple[int, ...]
    accuracy: float
    known_as: str

    @property
    def moved(self) -> list[int]:
        """The classes that are mixed up."""
        return [label for label, other in enumerate(self.order) if label != other]

    def describe(self, class_names: Sequence[str]) -> str:
        """Return in words what would be right, and which classes change places; several are cut."""
        moved = self.moved
        pairs = ", ".join(
            f"{class_names[label]} as {class_names[self.order[label]]}" for label in moved[:SHOWN_CLASSES]
        )
        more = f" and {len(moved) - SHOWN_CLASSES} more" if len(moved) > SHOWN_CLASSES else ""
        known = f" That is their {self.known_as}." if self.known_as else ""
        return f"{self.accuracy:.4f} where {len(moved)} of the {len(class_names)} change places ({pairs}{more}).{known}"


def judge_classes(
    guesses: NDArray[np.int64], targets: NDArray[np.int64], scores: NDArray[np.float32] | None = None
) -> Finding:
    """Compare the number of hits with that of guesses of the same frequencies that know nothing of the labels.

    Where they are no more, the ``scores`` may still tell: of classes of very different sizes the likeliest is nearly
    always the largest one, though samples of the others have higher probabilities of theirs.

    Args:
        guesses: (n,) predicted classes.
        targets: (n,) true classes, at least one.
        scores: (n, C) probabilities.
    """
    finding = _judge_hits(guesses, targets)
    if finding.level != "near" or scores is None:
        return finding
    truth = targets[:, None] == np.arange(scores.shape[1])
    return replace(finding, level="above") if judge_scores(scores, truth).level == "above" else finding


def _judge_hits(guesses: NDArray[np.int64], targets: NDArray[np.int64]) -> Finding:
    size = int(max(guesses.max(), targets.max())) + 1
    shares = [np.bincount(labels, minlength=size) / len(labels) for labels in (guesses, targets)]
    by_chance = float(shares[0] @ shares[1])
    guessing = f"an accuracy of {by_chance:.4f}"
    if np.ptp(guesses) == 0:  # of the samples of other classes none is found
        most = 1 - _LEVEL ** (1 / max(int((targets != guesses[0]).sum()), 1))
        return Finding("near" if most < _USEFUL else "unsure", guessing)
    from scipy.stats import binomtest

    hits = int((guesses == targets).sum())
    if binomtest(hits, len(targets), by_chance, alternative="greater").pvalue < _LEVEL:
        return Finding("above", guessing)
    most = binomtest(hits, len(targets)).proportion_ci(1 - 2 * _LEVEL).high
    return Finding("near" if (most - by_chance) / (1 - by_chance) < _USEFUL else "unsure", guessing)


def judge_pixels(guesses: NDArray[np.int64], targets: NDArray[np.int64]) -> Finding:
    """Compare the agreement of classes of pixels with that of guesses as frequent as these, by Cohen's kappa.

    Pixels of an image are alike, so that even the smallest gain of some thousands of them would be sure: a model that
    takes nearly all for one class, or that guesses, has a kappa below a twentieth, and is near.

    Args:
        guesses: (n,) predicted classes.
        targets: (n,) true classes, at least one.

    Returns:
        With the mean IoU of the most frequent class everywhere in words.
    """
    size = int(max(guesses.max(), targets.max())) + 1
    shares = [np.bincount(labels, minlength=size) / len(labels) for labels in (guesses, targets)]
    guessing = (
        f"a mean IoU of {shares[1].max() / np.count_nonzero(shares[1]):.4f}, with the most frequent class everywhere"
    )
    by_chance = float(shares[0] @ shares[1])
    if by_chance == 1:  # there is one class, and nothing to tell apart
        return Finding("unsure", guessing)
    kappa = (float((guesses == targets).mean()) - by_chance) / (1 - by_chance)
    return Finding("above" if kappa >= _LEAST_KAPPA else "near", guessing)


def judge_scores(scores: NDArray[np.floating], targets: NDArray[np.floating | np.bool_]) -> Finding:
    """Compare the mean area under the ROC curve over classes with that of scores that know nothing of the labels.

    Args:
        scores: (n, C).
        targets: (n, C), 0 or 1.
    """
    from scipy.stats import rankdata

    areas, spreads = [], []
    for column, truth in zip(scores.T, targets.T > 0, strict=True):
        positive, negative = int(truth.sum()), int((~truth).sum())
        if positive and negative:
            ranks = rankdata(column)[truth].sum() - positive * (positive + 1) / 2
            areas.append(ranks / (positive * negative))
            spreads.append(math.sqrt((positive + negative + 1) / (12 * positive * negative)))
    guessing = "a mean area under the ROC curve of 0.5"
    if not areas:
        return Finding("unsure", guessing)
    # The classes share their samples: the spread of the mean is at most the mean of the spreads.
    return Finding(_judge(2 * float(np.mean(areas)) - 1, 2 * float(np.mean(spreads))), guessing)


def judge_numbers(guesses: NDArray[np.float64], targets: NDArray[np.float64]) -> Finding:
    """Compare Pearson's correlation with 0, by Fisher's transform.

    Args:
        guesses: (n,).
        targets: (n,).
    """
    guessing = "a correlation of 0"
    if len(targets) < 5 or np.ptp(targets) == 0:
        return Finding("unsure", guessing)
    if np.ptp(guesses) == 0 or not np.isfinite(guesses).all():
        return Finding("near", guessing)
    correlation = float(np.corrcoef(guesses, targets)[0, 1])
    spread = 1 / math.sqrt(len(targets) - 3)
    return Finding(_judge(math.atanh(min(max(correlation, -0.999999), 0.999999)), spread), guessing)


def judge_depth(correlations: NDArray[np.float64]) -> Finding:
    """Compare the mean over images of the correlation of predicted with measured depth with 0.

    Pixels of an image are no samples of their own: images are.

    Args:
        correlations: (n,) of each image, over its measured pixels; NaN where either is constant.
    """
    guessing = "a correlation of 0 in an image"
    known = np.nan_to_num(np.asarray(correlations, dtype=np.float64))
    if len(known) < 3 or not np.isfinite(correlations).any():
        return Finding("unsure", guessing)
    spread = max(float(known.std(ddof=1)), 0.01) / math.sqrt(len(known))
    return Finding(_judge(float(known.mean()), spread), guessing)


def judge_boxes(score: float) -> Finding:
    """Judge a detector by its mean average precision, which is about 0 of guesses."""
    return Finding("above" if score >= _LEVEL else "near", f"a mean average precision below {_LEVEL}")


def _judge(value: float, spread: float) -> Level:
    """Judge a value that is 0 for guesses and 1 (or more) at best."""
    if value > _NORMAL_99 * spread:
        return "above"
    return "near" if value + _NORMAL_99 * spread < _USEFUL else "unsure"


def judge_tokens(loss: float, vocabulary: int) -> Finding:
    """Compare a mean loss in nats with that of an even guess over ``vocabulary`` tokens; within 1 % of it is near."""
    even = math.log(vocabulary)
    return Finding("above" if loss < 0.99 * even else "near", f"a loss of {even:.4f}")


def find_mixed(
    guesses: NDArray[np.int64], targets: NDArray[np.int64], class_names: Sequence[str], *, are_independent: bool = True
) -> Mixed | None:
    """Return which classes are predicted for one another, where that is beyond doubt.

    Orders are looked for in one half of every class's samples and judged by the other, so that none is found in noise.
    One counts where it brings the mean accuracy of the classes that it moves to more than twice what it is, and is
    right where the guesses are wrong far oftener than the other way round. Natural and string order need no search.

    Args:
        guesses: (n,) predicted classes.
        targets: (n,) true classes.
        class_names: C names.
        are_independent: whether the samples are; no order is searched for in those that are not, as the pixels of an
            image: a model that has learnt little takes whole classes of them for another one.
    """
    known = _known_orders(class_names)
    for order, known_as in known.items():
        if _holds(order, guesses, targets):
            return Mixed(order, _accuracy(order, guesses, targets), known_as)
    size = len(class_names)
    if not are_independent or not 2 <= size <= _MOST_SEARCHED:
        return None
    first = _first_of_two(targets)
    counts = np.zeros((size, size))
    np.add.at(counts, (targets[first], guesses[first]), 1)
    from scipy.optimize import linear_sum_assignment

    _, best = linear_sum_assignment(counts + np.eye(size) / 2, maximize=True)
    order = _without_doubtful(best, guesses[first], targets[first])
    if not _holds(order, guesses[~first], targets[~first]):
        return None
    return Mixed(order, _accuracy(order, guesses, targets), "")


def _known_orders(class_names: Sequence[str]) -> dict[tuple[int, ...], str]:
    """Return the orders in which the names stand when they are sorted, but for the one in which they are."""
    names = list(class_names)
    keys = {"natural order (2 before 10)": natural_key, "string order (10 before 2)": lambda name: name}
    orders: dict[tuple[int, ...], str] = {}
    for known_as, key in keys.items():
        place = {name: number for number, name in enumerate(sorted(names, key=key))}
        order = tuple(place[name] for name in names)
        if order != tuple(range(len(names))):
            orders[order] = known_as
    return orders


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts names as a person does: runs of digits as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _first_of_two(targets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which samples are the first, third, fifth, ... of their class."""
    order = np.argsort(targets, kind="stable")
    _, starts, counts = np.unique(targets[order], return_index=True, return_counts=True)
    place = np.arange(len(targets)) - np.repeat(starts, counts)
    first = np.empty(len(targets), dtype=bool)
    first[order] = place % 2 == 0
    return first


def _without_doubtful(
    order: NDArray[np.int64], guesses: NDArray[np.int64], targets: NDArray[np.int64]
) -> tuple[int, ...]:
    """Return ``order`` with the classes at their own place whose cycle the samples don't bear out."""
    kept, seen = np.arange(len(order)), set[int]()
    for start in range(len(order)):
        cycle, label = [], start
        while label not in seen:
            seen.add(label)
            cycle.append(label)
            label = int(order[label])
        if len(cycle) > 1 and _is_better(order, cycle, guesses, targets):
            kept[cycle] = order[cycle]
    return tuple(kept.tolist())


def _is_better(
    order: NDArray[np.int64], labels: Sequence[int], guesses: NDArray[np.int64], targets: NDArray[np.int64]
) -> bool:
    """Whether the mean accuracy of these classes is more than twice as high in ``order`` as it is."""
    present = [label for label in labels if (targets == label).any()]
    accuracies = np.array(
        [[np.mean(guesses[targets == label] == place) for place in (order[label], label)] for label in present]
    )
    return bool(present) and bool(accuracies[:, 0].mean() > 2 * accuracies[:, 1].mean())


def _holds(order: Sequence[int], guesses: NDArray[np.int64], targets: NDArray[np.int64]) -> bool:
    """Whether the guesses are in ``order`` beyond doubt."""
    places = np.array(order)
    moved = np.flatnonzero(places != np.arange(len(places))).tolist()
    if not moved or not _is_better(places, moved, guesses, targets):
        return False
    from scipy.stats import binomtest

    gained = int(((guesses == places[targets]) & (guesses != targets)).sum())
    lost = int(((guesses == targets) & (guesses != places[targets])).sum())
    return bool(binomtest(gained, gained + lost, alternative="greater").pvalue < _SWAPPED_LEVEL)


def _accuracy(order: Sequence[int], guesses: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    return float((np.array(order)[targets] == guesses).mean())
