"""The learning-rate range test: its rule on made-up losses, and a real job of a few steps."""

from __future__ import annotations

import json
import math

import pytest

from kdcli.base.errors import UserError
from kdcli.experiments.lr_range import judge, smooth

RATES = [10 ** (number / 20 - 5) for number in range(100)]


def test_running_means_have_no_bias_at_the_start():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 2.0])[1] == pytest.approx((0.9 * 1 + 2) / 1.9)


def test_the_suggestion_is_where_the_loss_falls_steepest():
    losses = [1 / (1 + math.exp(2 * (number - 50) / 10)) + (number > 80) * (number - 80) * 0.2 for number in range(100)]
    found = judge(RATES, losses, steps=100)
    smoothed = smooth(losses)
    falls = [smoothed[place + 1] - smoothed[place - 1] for place in range(1, 79)]
    assert found.suggestion == RATES[1 + falls.index(min(falls))]
    assert RATES[50] < found.suggestion < RATES[65]
    assert found.least == RATES[smoothed.index(min(smoothed))]
    assert not found.diverged


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
    assert found["smoothed"] == pytest.approx(smooth(found["losses"]))
    assert {file.name for file in tmp_path.iterdir()} - before == {"rates.png"}
    assert json.loads(run_cli("lr-range", "mine.yaml", *options).stdout) == found
    refused = run_cli("lr-range", "mine.yaml", "--low", "1", "--high", "0.1")
    assert (refused.exit_code, "don't grow" in refused.stderr) == (2, True)
