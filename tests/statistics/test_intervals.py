"""The bootstrap against exact references, its coverage in a simulation, and metrics from sums against scikit-learn's."""

import numpy as np
import pytest
from scipy.stats import binom, pearsonr
from sklearn.metrics import f1_score

from kdcli.statistics import intervals
from kdcli.statistics.intervals import bootstrap_differences, metric_of


def shares(values):
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)


def answers(both, ours, theirs, neither):
    """Right and wrong answers of two models: so many samples that both, one or none of them gets right."""
    own = np.repeat([1, 1, 0, 0], [both, ours, theirs, neither])
    other = np.repeat([1, 0, 1, 0], [both, ours, theirs, neither])
    return {"accuracy": shares(own)}, {"accuracy": shares(other)}


def exact_interval(count, gained, lost):
    """The percentiles of (G - L) / n where (G, L) are multinomial, by adding up every outcome."""
    totals = np.zeros(2 * count + 1)
    for gain in range(count + 1):
        weight = binom.pmf(gain, count, gained / count)
        if weight < 1e-12:
            continue
        for loss in range(count - gain + 1):
            totals[gain - loss + count] += weight * binom.pmf(loss, count - gain, lost / (count - gained))
    cumulative = totals.cumsum()
    return tuple((int(np.searchsorted(cumulative, p)) - count) / count for p in (0.025, 0.975))


@pytest.mark.parametrize(("count", "gained", "lost"), [(60, 12, 4), (100, 10, 9), (200, 0, 30)])
def test_right_and_wrong_answers_against_the_exact_distribution(count, gained, lost):
    ours, theirs = answers(count // 4, gained, lost, count - count // 4 - gained - lost)
    low, high = bootstrap_differences(ours, theirs, seed=0)["accuracy"]
    assert (low, high) == pytest.approx(exact_interval(count, gained, lost), abs=1.01 / count)


def test_against_alone_that_is_never_right_it_is_the_binomial():
    """The difference is then the student's own accuracy, whose resamples are binomial."""
    ours, theirs = answers(0, 70, 0, 130)
    found = bootstrap_differences(ours, theirs, seed=1)["accuracy"]
    assert found == pytest.approx(binom.ppf([0.025, 0.975], 200, 0.35) / 200, abs=0.006)


def test_it_is_the_seeds_and_pairs_the_samples():
    ours, theirs = answers(400, 20, 5, 100)
    assert bootstrap_differences(ours, theirs, seed=3) == bootstrap_differences(ours, theirs, seed=3)
    assert bootstrap_differences(ours, ours, seed=3)["accuracy"] == (0, 0), "the same answers differ in no resample"
    shuffled = {"accuracy": theirs["accuracy"][np.random.default_rng(0).permutation(525)]}
    width, unpaired = (np.ptp(bootstrap_differences(ours, side, seed=3)["accuracy"]) for side in (theirs, shuffled))
    assert width < 0.6 * unpaired, "what is hard for both drops out"


def test_coverage():
    """Of 300 test sets of 150 samples about 95 % of the intervals hold the true difference of 8 points."""
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        both, ours, theirs, neither = generator.multinomial(150, [0.5, 0.18, 0.1, 0.22])
        low, high = bootstrap_differences(*answers(both, ours, theirs, neither), seed=seed)["accuracy"]
        held += low <= 0.08 <= high
    assert 0.92 <= held / 300 <= 0.98


def test_many_values_are_resampled_in_groups(monkeypatch):
    """A mean of 3,000 numbers: its interval is the normal one, whether in groups or not."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=3000)
    ours, theirs = {"mean": shares(noise + 0.1)}, {"mean": shares(np.zeros(3000))}
    expected = noise.mean() + 0.1 + np.array([-1, 1]) * 1.96 * noise.std() / np.sqrt(3000)
    grouped = bootstrap_differences(ours, theirs, seed=0)["mean"]
    assert grouped == pytest.approx(expected, abs=0.006)
    monkeypatch.setattr(intervals, "_MOST_ROWS", 3000)
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)
    assert bootstrap_differences(ours, theirs, seed=0)["mean"] == pytest.approx(grouped, abs=0.008)


def test_metrics_of_sums():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 50)) + 3
    moments = np.stack([np.ones(50), x, y, x * x, y * y, x * y], axis=1)
    assert metric_of("pearson", moments.sum(axis=0)) == pytest.approx(pearsonr(x, y).statistic)
    constant = np.stack([np.ones(50), 0 * x, y, 0 * x, y * y, 0 * x], axis=1)
    assert np.isnan(metric_of("pearson", constant.sum(axis=0)))
    truth, guess = generator.integers(0, 2, (2, 30, 4))
    f1 = np.stack([2 * (truth * guess).sum(axis=1), truth.sum(axis=1) + guess.sum(axis=1)], axis=1)
    assert metric_of("micro_f1", f1.sum(axis=0)) == pytest.approx(f1_score(truth, guess, average="micro"))
    assert metric_of("perplexity", np.array([30.0, 10.0])) == pytest.approx(np.exp(3))
    assert metric_of("entity_f1", np.zeros(2)) == 0, "no entities at all"


def test_a_metric_that_is_no_number_has_no_interval():
    ours = {"pearson": np.stack([np.ones(9), np.zeros(9), np.arange(9.0), *3 * [np.zeros(9)]], axis=1)}
    assert bootstrap_differences(ours, ours, seed=0) == {}
