"""95 % intervals: Student's t of means over seeds or episodes, the bootstrap of differences over samples. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 4000
_MOST_ROWS = 1000
"""More distinct rows than these are added up in so many groups, drawn at random, which are then resampled."""

_ROUNDING = 1e-12
"""A variance of this share of the mean square is rounding: float32 has seven digits."""

Sums = NDArray[np.float64]


def confidence_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return the ends of the 95 % t-interval of the mean; one value has none.

    With n values of mean m and sample standard deviation s it is m ± t(0.975, n - 1) s / √n.
    """
    from scipy.stats import t

    if len(values) < 2:
        return None, None
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return mean - half, mean + half


def metric_of(name: str, sums: Sums) -> Sums:
    """Return a metric from sums over samples.

    Args:
        name: of the metric.
        sums: (..., 2), numerator and denominator of a ratio, 0 where both are 0; of ``perplexity`` likewise, of its
            logarithm; of ``pearson`` (..., 6), of 1, x, y, x², y² and xy; of ``mean_iou`` (..., 3 C), of right, true
            and predicted pixels by class: the mean over the classes with any.

    Returns:
        (...), NaN for the correlation of what is constant but for rounding, and for overlaps of nothing.
    """
    if name == "pearson":
        count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            x_spread, y_spread = count * xx - x * x, count * yy - y * y
            varies = (x_spread > _ROUNDING * count * xx) & (y_spread > _ROUNDING * count * yy)
            return np.where(varies, (count * xy - x * y) / np.sqrt(x_spread * y_spread), np.nan)
    if name == "mean_iou":
        right, true, guessed = np.split(sums, 3, axis=-1)
        union = true + guessed - right
        overlaps, occurs = right / np.where(union == 0, 1.0, union), (union > 0).sum(axis=-1)
        return np.where(occurs > 0, overlaps.sum(axis=-1) / np.maximum(occurs, 1), np.nan)
    ratio = sums[..., 0] / np.where(sums[..., 1] == 0, 1.0, sums[..., 1])
    return np.exp(np.minimum(ratio, 700.0)) if name == "perplexity" else ratio


def bootstrap_differences(
    ours: Mapping[str, Sums], theirs: Mapping[str, Sums], *, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval of the difference of every metric, ours - theirs, over resampled samples.

    Both are measured on the same resamples, so what the samples have in common drops out. Samples that add the same to
    all sums are drawn together, by how many there are: of right and wrong answers that is exact, however many samples.

    Args:
        ours: of every metric what each sample adds to the sums of :func:`metric_of`, (n, k).
        theirs: likewise of the same n samples and the same metrics.
        seed: of the resamples.

    Returns:
        The ends of the interval by metric; a metric is left out where it is no number in more than a few resamples.
    """
    names = list(ours)
    widths = [side[name].shape[1] for name in names for side in (ours, theirs)]
    rows = np.concatenate([side[name] for name in names for side in (ours, theirs)], axis=1)
    generator = np.random.default_rng(seed)
    rows, counts = _distinct(rows, generator)
    weights = generator.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    parts = np.split(weights @ rows, np.cumsum(widths)[:-1], axis=1)
    ends = 50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)
    found = {}
    for name, own, other in zip(names, parts[::2], parts[1::2], strict=True):
        difference = metric_of(name, own) - metric_of(name, other)
        finite = difference[np.isfinite(difference)]
        if len(finite) >= CONFIDENCE * len(difference):
            low, high = np.percentile(finite, ends)
            found[name] = float(low), float(high)
    return found


def _distinct(rows: Sums, generator: np.random.Generator) -> tuple[Sums, NDArray[np.int64]]:
    """Return distinct rows and how many there are of each; of too many the sums of groups of equal size, once each."""
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    if len(distinct) <= _MOST_ROWS:
        return distinct, counts
    groups = np.zeros((_MOST_ROWS, rows.shape[1]))
    np.add.at(groups, generator.permutation(len(rows)) % _MOST_ROWS, rows)
    return groups, np.ones(_MOST_ROWS, dtype=np.int64)
