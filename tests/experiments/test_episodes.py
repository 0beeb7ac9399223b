"""Drawing episodes, the teacher's own arms, and what is made of their accuracies."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.config.parse import parse_config
from kdcli.config.recipes import set_key
from kdcli.config.training import EpisodesConfig
from kdcli.data import open_data
from kdcli.experiments.episode_arms import teacher_accuracies
from kdcli.experiments.episode_setting import ARMS, prepare_episodes
from kdcli.experiments.episodes import summarize_episodes
from kdcli.experiments.sampling import EpisodeSampler
from kdcli.statistics.intervals import confidence_interval

NAMES = tuple("abcdef")
TRAIN = [label for label in range(6) for _ in range(8)] + [UNLABELLED] * 10
QUERIES = [label for _ in range(5) for label in range(6)]


def sampler(*, seed=0, train=TRAIN, **options):
    config = EpisodesConfig(**{"ways": 3, "shots": 4, "queries": 2} | options)
    return EpisodeSampler(config, train=train, queries=QUERIES, class_names=NAMES, seed=seed)


def test_an_episode_has_its_classes_in_order_each_with_its_images():
    for number in range(1, 40):
        episode = sampler().draw(number)
        assert len(set(episode.classes)) == 3
        assert list(episode.classes) == sorted(episode.classes)
        assert [TRAIN[index] for index in episode.support] == [label for label in episode.classes for _ in range(4)]
        assert [QUERIES[index] for index in episode.queries] == [label for label in episode.classes for _ in range(2)]
        assert len(set(episode.support)) == 12
        assert len(set(episode.queries)) == 6


def test_an_episode_is_a_function_of_seed_and_number():
    drawn = [sampler().draw(number) for number in range(1, 30)]
    again = sampler()
    assert [again.draw(number) for number in reversed(range(1, 30))] == drawn[::-1]
    assert len(set(drawn)) == len(drawn), "each is another one"
    assert [sampler(seed=1).draw(number) for number in range(1, 30)] != drawn


def test_classes_and_images_are_drawn_evenly():
    count = 2000
    drawn = [sampler().draw(number) for number in range(count)]
    for what, each in (("classes", 3 / 6), ("support", 3 / 6 * 4 / 8), ("queries", 3 / 6 * 2 / 5)):
        counts = Counter(item for episode in drawn for item in getattr(episode, what))
        spread = math.sqrt(count * each * (1 - each))
        for item, times in counts.items():
            assert abs(times - count * each) < 5 * spread, (what, item)
    assert not any(TRAIN[index] == UNLABELLED for episode in drawn for index in episode.support)


def test_support_and_queries_of_real_data_share_no_image():
    data = open_data(DataConfig(name="demo:digits"), seed=0)
    config = EpisodesConfig(ways=4, shots=5, queries=15)
    names = data.facts.class_names
    labels = {"train": data.train.labels, "queries": data.test.labels}
    drawn = EpisodeSampler(config, **labels, class_names=names, seed=0).draw(1)
    support = {np.asarray(data.train.load(index).inputs).tobytes() for index in drawn.support}
    queries = {np.asarray(data.test.load(index).inputs).tobytes() for index in drawn.queries}
    assert (len(support), len(queries)) == (20, 60)
    assert support.isdisjoint(queries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 7}, "Episodes of 7 classes can't be drawn from 6 classes."),
        (
            {"shots": 9},
            "--shots is 9, and there are fewer training images with a label in a (8), b (8), c (8), d (8), e",
        ),
        ({"queries": 6}, "--queries is 6, and there are fewer test images in a (5)"),
        ({"queries": 6, "split": "validation"}, "fewer validation images in a (5)"),
        ({"train": TRAIN[8:]}, "fewer training images with a label in a (0)."),
    ],
)
def test_too_few(options, message):
    with pytest.raises(UserError) as error:
        sampler(**options)
    assert message in error.value.message


def blobs(seed):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 6)
    centres = generator.normal(0, 1, (4, 10))

    def draw():
        features = centres[labels] + generator.normal(0, 1.2, (24, 10))
        return features * generator.uniform(0.1, 10, (24, 1))  # lengths say nothing

    return draw(), labels, draw(), labels


@pytest.mark.parametrize("seed", range(5))
def test_the_teachers_arms_against_plain_ones(seed):
    support, support_labels, queries, query_labels = blobs(seed)
    found = teacher_accuracies(support, support_labels, queries, query_labels)
    a = support / np.linalg.norm(support, axis=1, keepdims=True)
    b = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    nearest = support_labels[((b[:, None] - a) ** 2).sum(axis=2).argmin(axis=1)]
    means = np.stack([a[support_labels == label].mean(axis=0) for label in range(4)])
    nearest_mean = ((b[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    linear = LogisticRegression(C=1.0, max_iter=1000).fit(a, support_labels).predict(b)
    assert found == {
        "nearest_neighbour": np.mean(nearest == query_labels),
        "nearest_class_mean": np.mean(nearest_mean == query_labels),
        "linear_classifier": np.mean(linear == query_labels),
    }
    raw = LogisticRegression(C=1.0, max_iter=1000).fit(support, support_labels).predict(queries)
    assert np.any(raw != linear), "normalisation makes a difference here"


def test_means_intervals_and_the_paired_difference():
    generator = np.random.default_rng(0)
    values = [{arm: float(value) for arm, value in zip(ARMS, generator.uniform(size=5), strict=True)} for _ in range(7)]
    result = summarize_episodes(values).to_json()
    assert result["episodes"] == 7
    for arm in ARMS:
        column = [line[arm] for line in values]
        low, high = stats.t.interval(0.95, 6, loc=np.mean(column), scale=stats.sem(column))
        assert result["accuracy"][arm] == pytest.approx({"mean": np.mean(column), "low": low, "high": high})
    test = stats.ttest_rel([line["distilled"] for line in values], [line["fine_tuned"] for line in values])
    interval = test.confidence_interval(0.95)
    difference = result["distilled_minus_fine_tuned"]
    assert (difference["low"], difference["high"]) == pytest.approx((interval.low, interval.high))
    means = result["accuracy"]
    assert difference["mean"] == pytest.approx(means["distilled"]["mean"] - means["fine_tuned"]["mean"])


def test_one_episode_has_no_interval():
    result = summarize_episodes([dict.fromkeys(ARMS, 0.5)]).to_json()
    assert result["accuracy"]["distilled"] == {"mean": 0.5, "low": None, "high": None}
    assert confidence_interval([0.5]) == (None, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.cache_teacher", "cache", "--cache-teacher is for one training set"),
        ("train.activation_checkpointing", True, "train.activation_checkpointing"),
        ("teacher.precision", "auto", "teacher.precision: auto"),
    ],
)
def test_what_would_be_dropped_in_episodes_is_refused(key, value, message):
    values = {
        "teacher": {"name": "random:cifar:resnet8"},
        "student": {"name": "cifar:resnet8"},
        "data": {"name": "demo:digits"},
        "episodes": {"ways": 3, "shots": 2},
    }
    with pytest.raises(UserError, match=message):
        prepare_episodes(parse_config(set_key(values, key.split("."), value), source="test"))
