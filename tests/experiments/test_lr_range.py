"""The learning-rate range test: its rule on made-up losses, and a real job of a few steps."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.experiments.lr_range import judge, smooth

RATES = [10 ** (number / 20 - 5) for number in range(100)]


def test_running_means_have_no_bias_at_the_start():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 2.0])[1] == pytest.approx((0.9 * 1 + 2) / 1.9)


def curve(*, height=1.0, start=0.0):
    """A loss that falls around step 50 and grows from step 80 on; and at the start, at any rate, by ``start``."""
    return [
        height / (1 + math.exp((number - 50) / 5)) + (number > 80) * (number - 80) * 0.2 + start * math.exp(-number / 3)
        for number in range(100)
    ]


def with_noise(losses, size, seed):
    noise = torch.randn(len(losses), generator=torch.Generator().manual_seed(seed)).tolist()
    return [loss + size * one for loss, one in zip(losses, noise, strict=True)]


def test_the_suggestion_is_where_the_loss_falls_steepest():
    found = judge(RATES, curve(), steps=100)
    smoothed = smooth(curve()[:10]) + smooth(curve()[10:])
    assert found.smoothed == smoothed
    falls = [smoothed[place - 5] - smoothed[place + 5] for place in range(100 - 5)]
    assert found.suggestion == RATES[falls.index(max(falls[25:80]))]
    assert RATES[50] < found.suggestion < RATES[60]  # the running mean lags
    assert found.least == RATES[smoothed.index(min(smoothed))]
    assert (found.diverged, found.skipped, found.accumulation, found.warnings) == (False, 20, 1, ())


def test_the_first_steps_play_no_part():
    """There a new student's loss falls at any rate, and more steeply than anywhere."""
    plain = judge(RATES, curve(), steps=100).suggestion
    assert abs(RATES.index(judge(RATES, curve(start=3.0), steps=100).suggestion) - RATES.index(plain)) <= 1


def test_noise_moves_the_suggestion_little_and_gets_none_where_it_is_all_there_is():
    places = [RATES.index(judge(RATES, with_noise(curve(), 0.1, seed), steps=100).suggestion) for seed in range(30)]
    assert min(places) > 45
    assert max(places) < 65
    flat = [judge(RATES, with_noise([1.0] * 100, 0.1, seed), steps=100) for seed in range(30)]
    assert sum(found.suggestion is not None for found in flat) <= 2
    said = [found for found in flat if found.warnings]
    assert len(said) >= 20  # of the others the lowest is at their start
    assert "Too few steps to tell" in said[0].warnings[0]
    assert statistics.median(found.noise for found in flat) == pytest.approx(0.1 * math.sqrt(0.1 / 1.9), rel=0.2)


def test_a_test_of_few_steps_says_that_it_is_rough():
    found = judge(RATES[::5], curve()[::5], steps=20)
    assert found.warnings[-1].startswith("20 steps are few: the rate grows by 1.8 times in each")


def test_losses_that_never_fall_or_end_soon():
    assert judge(RATES, [1.0 + number for number in range(100)], steps=100).suggestion is None
    found = judge(RATES[:50], [*[1 - number / 100 for number in range(49)], math.nan], steps=100)
    assert found.diverged
    assert len(found.losses) == 49
    with pytest.raises(UserError, match="lost after 3 steps"):
        judge(RATES[:4], [1.0, 1, 1, math.inf], steps=100)


def test_a_real_job_leaves_nothing_but_the_picture(run_cli, few_digits, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "teacher: none\nstudent: cifar:resnet8\ndata: demo:digits\ntrain: {batch_size: 8, device: cpu}\nmethod: none\n"
    )
    before = {file.name for file in tmp_path.iterdir()}
    options = ("--steps", "20", "--low", "1e-5", "--high", "0.1", "--json")
    outcome = run_cli("lr-range", "mine.yaml", *options, "--output", "rates.png")
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["rates"][0] == 1e-5
    assert found["rates"][-1] <= 0.1 * (1 + 1e-9)
    assert found["smoothed"] == pytest.approx(smooth(found["losses"][:2]) + smooth(found["losses"][2:]))
    assert {file.name for file in tmp_path.iterdir()} - before == {"rates.png"}
    assert json.loads(run_cli("lr-range", "mine.yaml", *options).stdout) == found
    refused = run_cli("lr-range", "mine.yaml", "--low", "1", "--high", "0.1")
    assert (refused.exit_code, "don't grow" in refused.stderr) == (2, True)


def test_steps_are_of_as_many_batches_as_those_of_the_run(run_cli, few_digits, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "teacher: none\nstudent: cifar:resnet8\ndata: demo:digits\ntrain: {batch_size: 8, device: cpu}\nmethod: none\n"
        "optim: {optimizer: sgd}\n"
    )
    still = ("--low", "1e-12", "--high", "1e-11", "--json")  # so that steps change nothing
    one = json.loads(run_cli("lr-range", "mine.yaml", "--steps", "40", *still).stdout)["losses"]
    accumulated = ("--set", "train.accumulation=2", "--steps", "20")
    two = json.loads(run_cli("lr-range", "mine.yaml", *accumulated, *still).stdout)
    assert two["accumulation"] == 2
    assert two["losses"] == pytest.approx([sum(one[place : place + 2]) / 2 for place in range(0, 40, 2)], rel=1e-4)
    outcome = run_cli("lr-range", "mine.yaml", *accumulated, "--high", "0.3")
    assert "20 steps are few" in outcome.stdout
    assert "steps of 2 batches" in outcome.stdout or "Too few steps" in outcome.stdout
