"""The trials of ``kdcli tune`` as Optuna keeps them: in a journal beside them, one trial drawn after another."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError, reading
from kdcli.experiments.space import Choices, Tuned
from kdcli.experiments.sweep_runs import GivenUp
from kdcli.machine.seeding import stable_seed

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

JOURNAL = "study.jsonl"
_NAME = "kdcli"
_BEFORE_PRUNING = 5
"""Trials that are finished before one is given up."""


def check_optuna() -> None:
    """Raise a UserError where Optuna is missing."""
    try:
        import optuna
    except ImportError:
        raise UserError("kdcli tune needs the package optuna.", "pip install 'kdcli[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Watch:
    """Tells the study what a trial's validations gave, and gives the trial up where others were better by then.

    Called in the process that trains, as a callback of :mod:`kdcli.terminal.callbacks`.

    Attributes:
        folder: of the study.
        number: of the trial.
        metric: that students are chosen by; higher is better.
        warm_up: epochs after which a trial may be given up.
    """

    folder: Path
    number: int
    metric: str
    warm_up: int

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """Hear of an event of the training.

        Raises:
            GivenUp: half of the other trials were better at this epoch than this one ever was.
        """
        if event != "validated" or self.metric not in values:
            return
        check_optuna()
        study = open_study(self.folder, warm_up=self.warm_up)
        frozen, epoch, value = study.get_trials(deepcopy=False)[self.number], int(values["epoch"]), values[self.metric]
        trial = trial_of(study, self.number)
        if epoch not in frozen.intermediate_values and math.isfinite(value):  # a resumed run comes by it again
            trial.report(value, epoch)
        if trial.should_prune():
            raise GivenUp


def open_study(folder: Path, *, warm_up: int) -> Study:
    """Open the study in ``folder``, which is made where there is none.

    Raises:
        UserError: its journal can't be read.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    file = folder / JOURNAL
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=warm_up)
    with reading(file):
        try:
            storage = JournalStorage(JournalFileBackend(str(file)))
            return optuna.create_study(
                storage=storage, study_name=_NAME, direction="maximize", pruner=pruner, load_if_exists=True
            )
        except (json.JSONDecodeError, KeyError, AssertionError) as error:
            raise UserError(f"{file} is damaged: {error}.", "Put it back from a copy, or remove its folder.") from None


def trial_of(study: Study, number: int) -> Trial:
    """Return a trial by its number, to be reported on."""
    import optuna

    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def draw(study: Study, space: Sequence[Tuned], *, seed: int) -> tuple[int, dict[str, float | str]]:
    """Begin the next trial.

    What is drawn depends on the seed, the trial's number and the trials before it alone, so that a study that is
    stopped and taken up again goes on as it would have.

    Returns:
        Its number, and what was drawn by key.
    """
    import optuna

    number = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=stable_seed("tune", seed, number) % 2**32)
    trial = study.ask({tuned.key: distribution(tuned) for tuned in space})
    return trial.number, dict(trial.params)


def distribution(tuned: Tuned) -> BaseDistribution:
    """Return a key's space as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = tuned.space
    if isinstance(space, Choices):
        return CategoricalDistribution(list(space.values))
    if space.is_whole:
        return IntDistribution(int(space.low), int(space.high), log=space.is_log)
    return FloatDistribution(space.low, space.high, log=space.is_log)


def begin_with(study: Study, space: Sequence[Tuned]) -> None:
    """Let the first trial be the recipe as it is, where that lies in the space."""
    own = {tuned.key: tuned.own for tuned in space}
    if not study.get_trials(deepcopy=False) and all(value is not None for value in own.values()):
        study.enqueue_trial(own)
