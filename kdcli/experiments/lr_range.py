"""A learning-rate range test: some steps of the real job at rates that grow exponentially. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from kdcli.base.errors import UserError
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch
from kdcli.experiments.distill import planned_job
from kdcli.machine.seeding import stable_seed
from kdcli.machine.team import Team
from kdcli.terminal.console import show_note
from kdcli.training.job import Job
from kdcli.training.phases import Phases
from kdcli.training.teachers.outputs import open_teacher

_SMOOTHING = 0.9
"""Of the exponential running mean of the losses."""
_SKIPPED = 0.1
"""The share of the steps at the start that says nothing: a new student's loss falls there at any rate. The running mean
begins anew after them, and settles over as many more."""
_REACH = 0.05
"""A slope is measured over so large a share of the steps on either side: between neighbours it would be noise."""
_CLEAR, _STEEP = 5.0, 4.0
"""A fall of fewer standard errors of the running mean, or a slope of fewer, is within noise: the lowest of many values
that are noise alone is as far down."""
_FEW = 50
"""Fewer steps are a rough test."""
_DIVERGED = 4.0
"""A smoothed loss above so many times the least one ends the test."""
_FEWEST = 10
"""Steps that a suggestion takes."""


@dataclass(frozen=True)
class RangeTest:
    """What came of a test.

    Attributes:
        rates: of every step of the optimiser.
        losses: of every step, before it; the mean over its batches.
        smoothed: exponential running means of the losses, without the start's bias; begun anew after the first tenth.
        skipped: so many steps at the start play no part in what follows: that tenth and another.
        suggestion: where the smoothed loss falls steepest over the logarithm of the rate, before its least value; None
            where it never falls by more than noise.
        least: the rate of the least smoothed loss.
        fall: by how much it fell to there.
        noise: the standard error of a smoothed loss, from the differences of successive losses.
        diverged: whether the test ended early, the loss having grown to four times its least value or beyond numbers.
        accumulation: batches of each step.
        warnings: why the suggestion is rough, or there is none; a sentence each.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    skipped: int
    suggestion: float | None
    least: float
    fall: float
    noise: float
    diverged: bool
    accumulation: int
    warnings: tuple[str, ...]


def run_range_test(
    config: RunConfig, *, low: float, high: float, steps: int, progress: Callable[[int, int], None]
) -> RangeTest:
    """Train the job of ``config`` for a few steps, from ``low`` to ``high``, and forget the student.

    Smith, *Cyclical Learning Rates for Training Neural Networks*, WACV 2017, arXiv 1506.01186, section 3.3; the growth
    is exponential. All else is the run's: teacher, losses, augmentation, optimiser, batch and accumulation, without
    which the rate would be another; projectors keep their rates relative to the student's.

    Args:
        config: of the run; its learning rate and schedule play no part.
        low: the first rate.
        high: the last one.
        steps: of the optimiser.
        progress: told of the steps that are done, and of all.

    Raises:
        UserError: the job can't be had, or has parts that the test has no rates for.
    """
    if not 0 < low < high:
        raise UserError(f"Rates from {low:g} to {high:g} don't grow.", "Give a --low below --high.")
    if config.episodes is not None:
        raise UserError("The config is of episodes, with a student each.", "Test the range of a plain run.")
    if config.embedding is not None:
        raise UserError("The config has an embedding stage before its own.", "Test it without: drop the key embedding.")
    update = {"num_processes": 1, "epochs": max(config.train.epochs, 1)}
    train = config.train.model_copy(update=update)
    job, accelerator = planned_job(config.model_copy(update={"train": train}))
    methods = [method for _, method in job.distiller.each_method()]
    if job.distiller.adversaries() or any(method.looks_ahead for method in methods):
        raise UserError(
            "This job has more than one optimiser, or looks at all samples before it begins: one rate says little.",
            "Try rates by kdcli tune or kdcli sweep --vary optim.lr=0.001,0.003.",
        )
    team = Team.of(accelerator)
    teacher, mix, objective = open_teacher(job, team, show_note), job.mix(), job.distiller.to(team.device)
    if teacher is not None:
        teacher.begin(lambda: None)
    phases = Phases(objective, job.config, steps, accelerator)
    objective.train()
    rates, losses, parts = list[float](), list[float](), list[float]()
    accumulation = config.train.accumulation
    try:
        for number, (epoch, batch) in zip(range(steps * accumulation), _batches(job, team), strict=False):
            step, part = divmod(number, accumulation)
            rate = low * (high / low) ** (step / max(steps - 1, 1))
            phases.set_rate(rate)
            set_seed(stable_seed("step", config.seed, number, 0) % 2**32)
            batch = mix(batch.to(team.device), epoch, number)
            with team.autocast():
                outputs = None if teacher is None else teacher(batch)
            objective.step = number
            parts.append(float(phases.step(batch, outputs, number)["loss"].detach()))
            if part + 1 < accumulation:
                continue
            rates.append(rate)
            losses.append(sum(parts) / accumulation)
            parts.clear()
            progress(step + 1, steps)
            smoothed = smooth(losses)
            if not math.isfinite(losses[-1]) or smoothed[-1] > _DIVERGED * min(smoothed):
                break
    finally:
        if teacher is not None:
            teacher.end()
    return judge(rates, losses, steps=steps, accumulation=accumulation)


def _batches(job: Job, team: Team) -> Iterator[tuple[int, AnyBatch]]:
    loader, epoch = job.train_loader(team), 0
    while True:
        for batch in loader.epoch(epoch):
            yield epoch, batch
        epoch += 1


def smooth(losses: list[float]) -> list[float]:
    """Return running means of losses, divided by the weight that they have so far."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append(mean / (1 - _SMOOTHING**number))
    return found


def judge(rates: list[float], losses: list[float], *, steps: int, accumulation: int = 1) -> RangeTest:
    """Return the test with its suggestion: after the first fifth of the steps, where the smoothed loss falls steepest.

    Args:
        rates: of the steps that were made, ascending.
        losses: likewise; the last may be no number.
        steps: that were to be made.
        accumulation: batches of each.

    Raises:
        UserError: they are too few.
    """
    diverged = len(losses) < steps or not math.isfinite(losses[-1])
    if losses and not math.isfinite(losses[-1]):
        rates, losses = rates[:-1], losses[:-1]
    if len(losses) < _FEWEST:
        raise UserError(
            f"The loss was lost after {len(losses)} steps, at a rate of {rates[-1] if rates else 0:g}.",
            "Begin at a lower rate: --low.",
        )
    start, reach = min(round(_SKIPPED * steps), len(losses) // 4), max(round(_REACH * steps), 1)
    smoothed, skipped = smooth(losses[:start]) + smooth(losses[start:]), 2 * start
    least = min(range(skipped, len(losses)), key=lambda place: smoothed[place])
    fall = max(smoothed[skipped : least + 1]) - smoothed[least]
    noise = _noise(losses[skipped : least + 1])
    falls = {
        place: smoothed[place - reach] - smoothed[place + reach] for place in range(skipped + reach, least - reach + 1)
    }  # the rates grow evenly by their logarithm, so that these are slopes
    steepest = max(falls, key=lambda place: falls[place], default=None)
    suggestion, warnings = None, list[str]()
    if steepest is not None and falls[steepest] > 0:
        if fall > _CLEAR * noise and falls[steepest] > _STEEP * noise:
            suggestion = rates[steepest]
        else:
            warnings.append(
                f"Too few steps to tell: where the loss falls steepest is within its noise (it fell by {fall:.2g}, the"
                f" standard error of its running mean is {noise:.2g}). Give more --steps, or a larger batch."
            )
    if steps < _FEW:
        factor = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
        warnings.append(
            f"{steps} steps are few: the rate grows by {factor:.2g} times in each, and the loss follows later. Take"
            " what is said here as rough."
        )
    return RangeTest(
        rates,
        losses,
        smoothed,
        skipped,
        suggestion,
        least=rates[least],
        fall=fall,
        noise=noise,
        diverged=diverged,
        accumulation=accumulation,
        warnings=tuple(warnings),
    )


def _noise(losses: list[float]) -> float:
    """Return the standard error of a running mean: its trend plays no part in the differences of neighbours."""
    steps = [(after - before) ** 2 / 2 for before, after in pairwise(losses)]
    variance = sum(steps) / len(steps) if steps else 0.0
    return math.sqrt(variance * (1 - _SMOOTHING) / (1 + _SMOOTHING))


def plot_range(path: Path, test: RangeTest, *, title: str) -> Path:
    """Draw losses, their running mean and the suggestion over the rate, as a PNG."""
    from kdcli.results.pictures.style import BLUE, GREY, drawable, new_figure, save_figure, style_axes

    figure = new_figure(8.0, 4.5)
    axes: Any = figure.subplots()
    style_axes(axes)
    axes.set_xscale("log")
    axes.plot(test.rates, test.losses, color=GREY, linewidth=0.8, alpha=0.6, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color=BLUE, linewidth=2, label="running mean")
    if test.suggestion is not None:
        axes.axvline(test.suggestion, color=BLUE, linestyle="--", label=f"steepest: {test.suggestion:.2g}")
    lowest, highest = min(test.smoothed), max(test.smoothed)
    axes.set_ylim(lowest - 0.1 * (highest - lowest), highest + 0.1 * (highest - lowest))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(drawable(title), loc="left")
    axes.legend(frameon=False)
    return save_figure(figure, path)
