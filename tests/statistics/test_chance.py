"""What is no better than guessing is found, what is merely weak is not, and mixed-up classes are named."""

import numpy as np
import pytest

from kdcli.statistics.chance import (
    find_mixed,
    judge_classes,
    judge_numbers,
    judge_pixels,
    judge_scores,
    judge_tokens,
    natural_key,
)

NAMES = sorted(str(number) for number in range(12))


def guesses_of(targets, accuracy, size, seed):
    generator = np.random.default_rng(seed)
    guesses = generator.integers(0, size, len(targets))
    right = generator.random(len(targets)) < accuracy
    return np.where(right, targets, guesses)


def balanced(count, size):
    return np.arange(count) % size


@pytest.mark.parametrize(("count", "size"), [(30, 2), (60, 10), (400, 2), (1000, 10), (2000, 100)])
def test_a_weak_teacher_is_no_false_alarm(count, size):
    """At 30 % above guessing none of a hundred is called near chance, nor its classes mixed up."""
    names = [f"c{label:03}" for label in range(size)]
    for seed in range(100 if count < 1000 else 20):
        targets = balanced(count, size)
        guesses = guesses_of(targets, 0.3, size, seed)
        assert judge_classes(guesses, targets).level != "near"
        assert find_mixed(guesses, targets, names) is None


@pytest.mark.parametrize(("count", "size"), [(400, 2), (200, 10), (2000, 100)])
def test_guessing_is_found_where_there_are_enough_samples(count, size):
    levels = [judge_classes(guesses_of(balanced(count, size), 0, size, seed), balanced(count, size)).level
              for seed in range(20)]  # fmt: skip
    assert levels.count("near") >= 19


def test_few_samples_tell_nothing():
    targets = balanced(8, 2)
    assert judge_classes(targets.repeat(2)[:8], targets).level == "unsure", "4 of 8 right"
    assert judge_numbers(np.array([1.0, 2.0, 4.0, 3.0]), np.arange(4.0)).level == "unsure"


def test_one_class_for_everything_is_guessing_whatever_its_share():
    """95 of 100 samples are of the class that is always predicted: 95 % right, and nothing known."""
    targets = np.repeat([0, 1], [950, 50])
    finding = judge_classes(np.zeros(1000, dtype=np.int64), targets)
    assert (finding.level, finding.guessing) == ("near", "an accuracy of 0.9500")


def test_of_pixels_one_class_for_nearly_everything_is_guessing():
    """1,000 pixels, 80 % of them of class 0 and 10 % each of 1 and 2: 0 everywhere has an IoU of 0.8, 0 and 0."""
    targets = np.repeat([0, 1, 2], [800, 100, 100])
    everywhere = np.zeros(1000, dtype=np.int64)
    finding = judge_pixels(everywhere, targets)
    assert (finding.level, "a mean IoU of 0.2667" in finding.guessing) == ("near", True)
    few = everywhere.copy()
    few[800:802] = 1  # right, and surely so by their number, but 2 of 200
    assert judge_pixels(few, targets).level == "near"
    assert judge_pixels(np.random.default_rng(0).permutation(targets), targets).level == "near"
    much = np.repeat([0, 1, 2], [600, 300, 100])  # a mean IoU of 0.69 that finds everything, and too much of it
    assert judge_pixels(much, targets).level == "above"
    assert judge_pixels(everywhere, everywhere).level == "unsure"


@pytest.mark.parametrize(("level", "shift"), [("above", 1.5), ("near", 0.0)])
def test_a_rare_class_that_is_never_the_likeliest_may_be_told_all_the_same(level, shift):
    targets = np.repeat([0, 1], [4750, 250])
    rare = np.clip(0.05 + 0.1 * (np.random.default_rng(0).normal(size=5000) + shift * targets), 0, 0.45)
    scores = np.stack([1 - rare, rare], axis=1)
    guesses = scores.argmax(axis=1)
    assert not guesses.any()
    assert judge_classes(guesses, targets).level == "near"
    assert judge_classes(guesses, targets, scores).level == level


@pytest.mark.parametrize(("level", "share"), [("above", 0.4), ("near", 0.0)])
def test_scores_and_numbers(level, share):
    generator = np.random.default_rng(0)
    targets = (generator.random((600, 4)) < 0.3).astype(float)
    assert judge_scores(share * targets + generator.normal(size=(600, 4)) * 0.5, targets).level == level
    truth = generator.normal(size=600)
    assert judge_numbers(share * truth + generator.normal(size=600) * 0.5, truth).level == level
    assert judge_numbers(np.ones(600), truth).level == "near"


def test_tokens_are_compared_with_an_even_guess():
    assert judge_tokens(4.59, 100).level == "near"
    assert judge_tokens(4.2, 100).level == "above"


@pytest.mark.parametrize(("count", "accuracy"), [(24, 1.0), (60, 0.8), (240, 0.4)])
def test_natural_order_for_string_order_is_named(count, accuracy):
    """The teacher's class k is the folder k; the data's classes are 0, 1, 10, 11, 2, ..., 9."""
    natural = sorted(NAMES, key=natural_key)
    assert sorted(["x²", "②", "①", "٣", "2"], key=natural_key) == ["2", "٣", "x²", "①", "②"]
    assert natural == [str(number) for number in range(12)]
    order = np.array([natural.index(name) for name in NAMES])
    targets = balanced(count, 12)
    mixed = find_mixed(order[guesses_of(targets, accuracy, 12, 0)], targets, NAMES)
    assert mixed.order == tuple(order)
    assert "natural order" in mixed.known_as
    assert [NAMES[label] for label in mixed.moved] == ["10", "11", *"23456789"]
    assert mixed.accuracy == pytest.approx((order[guesses_of(targets, accuracy, 12, 0)] == order[targets]).mean())


def test_two_swapped_classes_are_found_and_others_left():
    targets = balanced(400, 10)
    swap = np.arange(10)
    swap[[3, 7]] = [7, 3]
    mixed = find_mixed(swap[guesses_of(targets, 0.8, 10, 0)], targets, [f"c{label}" for label in range(10)])
    assert mixed.order == tuple(swap)
    assert (mixed.moved, mixed.known_as) == ([3, 7], "")


def test_a_class_that_is_taken_for_another_is_not_mixed_up():
    """Everything of the large class 2 is called 5, and so is what is 5: nothing changed places."""
    targets = np.concatenate([balanced(400, 10), np.full(300, 2)])
    assert find_mixed(np.where(targets == 2, 5, targets), targets, [f"c{label}" for label in range(10)]) is None
