"""``kdcli tune``: short runs of a recipe with other settings, chosen by Optuna on validation alone."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors
from kdcli.base.text import check_argument, redact_all
from kdcli.config.keys import comparable
from kdcli.config.parse import parse_config
from kdcli.config.run import RunConfig
from kdcli.config.situation import Situation
from kdcli.experiments.distill import Output
from kdcli.experiments.space import SearchSpace, search_space
from kdcli.experiments.study import Watch, begin_with, check_optuna, draw, open_study, trial_of
from kdcli.experiments.sweep_runs import Ending, Run, Signalled, ended_by_signals, run_here
from kdcli.experiments.variants import Variant
from kdcli.experiments.workers import Workers, gpus_for, num_workers
from kdcli.machine.launch import is_launched
from kdcli.models.layers import open_taps
from kdcli.runs.folder import RunFolder
from kdcli.runs.places import TRIALS
from kdcli.terminal.console import show_lines
from kdcli.training.job import Job
from kdcli.training.prepare import prepare_job

if TYPE_CHECKING:
    from optuna import Study

_RECIPE, _SPACE = "recipe.yaml", "space.json"
ALONE, ALONE_BEST = "alone", "alone-best"
"""Folders of the student alone, among those of the trials."""
_SHARE, _FEWEST = 4, 5
"""A trial is a quarter as long as the recipe, but has so many epochs if the recipe has."""
_VALIDATIONS = 4
"""How often a trial is validated at least."""


@dataclass(frozen=True)
class Tuning:
    """What is tuned.

    Attributes:
        folder: of all that comes of it.
        name: of the recipe.
        values: the recipe's, with what ``--set`` says.
        config: of a trial: the recipe's, but shorter, without test and baseline, in one process.
        metric: that students are chosen by; higher is better.
        space: what is searched.
        trials: how many there are to be.
        force: go on with runs although data, teacher or files of theirs have changed.
    """

    folder: Path
    name: str
    values: Mapping[str, Any]
    config: RunConfig
    metric: str
    space: SearchSpace
    trials: int
    force: bool

    @property
    def warm_up(self) -> int:
        """Epochs after which a trial may be given up."""
        return max(self.config.train.epochs // 3, 1)

    @property
    def has_alone(self) -> bool:
        """Whether the student can also be trained alone."""
        return self.config.teacher.name != "none" and not self.config.task_facts.is_label_free

    def run(self, name: str, config: RunConfig, watch: Watch | None = None) -> Run:
        """Return a run in the folder of the trials."""
        path = self.folder / TRIALS / name
        return Run(Variant(name, self.name, config), self.config.seed, path, self.force, watch)

    def trial(self, number: int, drawn: Mapping[str, float | str]) -> Run:
        """Return the run of a trial.

        Raises:
            UserError: what was drawn can't be.
        """
        watch = Watch(self.folder, number, self.metric, self.warm_up)
        return self.run(f"{number:04d}", self.space.config_of(self.space.values_of(drawn)), watch)


def prepare_tuning(
    values: dict[str, Any],
    *,
    source: str,
    name: str,
    folder: Path,
    asked: list[str],
    trials: int,
    epochs: int | None,
    seed: int | None,
    force: bool,
) -> Tuning:
    """Load data and models once, and settle what is searched.

    Args:
        values: of the recipe, with what ``--set`` says.
        source: where they come from, for messages.
        name: of the recipe.
        folder: where all goes.
        asked: ``--tune``, see :func:`kdcli.experiments.space.search_space`.
        trials: how many there are to be.
        epochs: of a trial.
        seed: of all trials, and of what is drawn; by default the recipe's.
        force: go on with runs although data, teacher or files of theirs have changed.

    Raises:
        UserError: Optuna is missing, something can't be had or doesn't fit, or the folder is of something else.
    """
    check_optuna()
    if is_launched():
        raise UserError("kdcli tune starts its processes itself.", "Start it without a launcher; see --jobs.")
    check_argument("--output", folder)
    config = _short(parse_config(values, source=source), epochs, seed)
    _check_folder(folder, config)
    job = prepare_job(config)
    space = search_space(_settled(job), asked)
    if not space.tuned:
        raise UserError("Nothing of this recipe is tuned by itself.", "Name keys: --tune optim.lr=0.001..0.1:log")
    tuning = Tuning(folder, name, values, config, job.monitor, space, trials, force)
    _check_space(tuning)
    return tuning


def _short(config: RunConfig, epochs: int | None, seed: int | None) -> RunConfig:
    """Return the config of the trials."""
    if config.episodes is not None:
        raise UserError("kdcli tune is for one distillation, and this recipe has episodes.", "Use kdcli sweep --vary.")
    whole = config.train.epochs
    if not whole:
        raise UserError("This recipe trains for 0 epochs: there is nothing to tune.", "Set train.epochs.")
    epochs = min(whole, max(math.ceil(whole / _SHARE), _FEWEST)) if epochs is None else epochs
    every = min(config.train.validate_every, max(epochs // _VALIDATIONS, 1))
    changes = {"epochs": epochs, "validate_every": every, "num_processes": 1, "track": ()}
    stage = config.embedding
    if stage is not None:
        stage = stage.model_copy(update={"epochs": math.ceil(stage.epochs * epochs / whole)})
    return config.model_copy(
        update={
            "seed": config.seed if seed is None else seed,
            "output": None,
            "test": False,
            "baseline": False,
            "embedding": stage,
            "train": config.train.model_copy(update=changes),
        }
    )


def _settled(job: Job) -> SearchSpace:
    """Return the space of a job without keys."""
    if job.teacher is not None:
        with contextlib.suppress(UserError):  # it has no stages: then its layers are those that are open
            job.teacher.open_stages()
    assert job.situation is not None, "the job is new"

    def with_taps(config: RunConfig) -> tuple[RunConfig, Situation]:
        config = open_taps(config, job.teacher, job.student)
        assert job.situation is not None
        teacher = None if job.teacher is None else job.teacher.facts
        return config, replace(job.situation, student=job.student.facts, teacher=teacher)

    config, situation = with_taps(job.situation.config)
    return SearchSpace(replace(situation, config=config), job.plan, with_taps)


# --- folders ----------------------------------------------------------------------------------------------------------


def _check_folder(folder: Path, config: RunConfig) -> None:
    """Refuse a folder that is of something else, or of other trials."""
    other = "Give another --output, or remove that folder."
    if not folder.exists() or (folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {".lock"}):
        return
    if not (folder / _RECIPE).is_file():
        raise UserError(f"{folder} exists already and is of no kdcli tune: it has no {_RECIPE}.", other)
    old, new = (redact_all(comparable(one)) for one in (RunFolder(folder).read_config(_RECIPE), config))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if keys:
        told = "; ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in keys)
        raise UserError(f"{folder} holds trials of another config: {told}.", other)


def _check_space(tuning: Tuning) -> None:
    """Refuse to go on with trials of another space."""
    file, now = tuning.folder / _SPACE, told_space(tuning.space)
    if not file.is_file():
        return
    then = json.loads(file.read_text(encoding="utf-8"))
    if then != now:
        told = "; ".join(
            f"{key} {then.get(key)} -> {now.get(key)}" for key in {**then, **now} if then.get(key) != now.get(key)
        )
        raise UserError(
            f"{tuning.folder} holds trials of another space: {told}.", "Give another --output, or remove that folder."
        )


def told_space(space: SearchSpace) -> dict[str, str]:
    """Return what each key is searched in, as it is told."""
    return {tuned.key: str(tuned.space) for tuned in space.tuned}


# --- trials -----------------------------------------------------------------------------------------------------------


def run_trials(tuning: Tuning, *, jobs: int | None, command: str, verbose: bool) -> int:
    """Run what is not finished, and print a line a trial; then the student alone with the best one's settings.

    Args:
        tuning: what to run.
        jobs: worker processes; by default one for each of several GPUs, or none: all runs in this process.
        command: the command line, for the records.
        verbose: show the runs' own output.

    Returns:
        The exit code of the signal that stopped it, or 0.

    Raises:
        UserError: another process has the folder, or ``jobs`` can't be.
    """
    gpus = gpus_for([tuning.config])
    count = num_workers(jobs, gpus)
    with clear_os_errors(tuning.folder):
        (tuning.folder / TRIALS).mkdir(parents=True, exist_ok=True)
    folder = RunFolder(tuning.folder)
    try:
        with folder.locked(), ended_by_signals():
            folder.write_config(tuning.config, _RECIPE)
            folder.write_text(_SPACE, json.dumps(told_space(tuning.space), indent=2) + "\n")
            study = open_study(tuning.folder, warm_up=tuning.warm_up)
            begin_with(study, tuning.space.tuned)
            runs = _waiting(tuning, study)
            if count > 1:
                endings = Workers(count, gpus, command=command, verbose=verbose).run(runs)
            else:
                endings = run_here(runs, Output(quiet=not verbose), command)
            with contextlib.closing(endings):  # at a signal too, so that the workers end
                for run, ending, seconds in endings:
                    if ending.code:
                        return ending.code
                    _tell(tuning, study, run, ending, seconds)
            for run in _alone_of_best(tuning, study):
                for _, ending, seconds in run_here([run], Output(quiet=not verbose), command):
                    if ending.code:
                        return ending.code
                    _tell(tuning, study, run, ending, seconds)
    except Signalled as signalled:
        return signalled.code
    return 0


def _waiting(tuning: Tuning, study: Study) -> Iterator[Run]:
    """Yield the student alone, the trials that were stopped, then new ones, each drawn when it is taken."""
    from optuna.trial import TrialState

    if tuning.has_alone:
        alone = tuning.run(ALONE, tuning.space.plan.resolve(tuning.space.situation.config).alone())
        if not alone.is_finished:
            yield alone
    for frozen in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        yield from _possible(tuning, study, frozen.number, frozen.params)
    while _num_begun(study) < tuning.trials:
        yield from _possible(tuning, study, *draw(study, tuning.space.tuned, seed=tuning.config.seed))


def _num_begun(study: Study) -> int:
    from optuna.trial import TrialState

    return sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))


def _possible(tuning: Tuning, study: Study, number: int, drawn: Mapping[str, float | str]) -> Iterator[Run]:
    """Yield a trial's run, unless what was drawn can't be: that trial has failed."""
    try:
        yield tuning.trial(number, drawn)
    except UserError as error:
        _fail(study, number, error)
        show_lines([f"[{number + 1}/{tuning.trials}] {_settings(tuning, drawn)}: can't be: {error.message}"])


def _fail(study: Study, number: int, error: UserError) -> None:
    from optuna.trial import TrialState

    trial_of(study, number).set_user_attr("error", error.message)
    study.tell(number, state=TrialState.FAIL)


def _settings(tuning: Tuning, drawn: Mapping[str, float | str]) -> str:
    return ", ".join(f"{key} {show_setting(value)}" for key, value in tuning.space.values_of(drawn).items())


def show_setting(value: Any) -> str:
    """Return a value as tables have it."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _tell(tuning: Tuning, study: Study, run: Run, ending: Ending, seconds: float) -> None:
    """Record how a run ended, and print its line."""
    from optuna.trial import TrialState

    name = run.path.name
    is_trial = name not in (ALONE, ALONE_BEST)
    value, _ = reached(tuning, run.path)
    if ending.error is not None:
        told = f"failed: {ending.error.message}"
        if is_trial:
            _fail(study, int(name), ending.error)
    elif not run.is_finished:
        last = study.tell(int(name), state=TrialState.PRUNED).value
        told = f"given up with {tuning.metric} {'no number' if last is None else f'{last:.4f}'}"
    elif value is None or not math.isfinite(value):
        told = f"failed: {tuning.metric} is no number"
        if is_trial:
            _fail(study, int(name), UserError(f"{tuning.metric} is no number", ""))
    else:
        told = f"{tuning.metric} {value:.4f}"
        if is_trial:
            is_best = all(value > other.value for other in _completed(study))
            study.tell(int(name), value)
            told += ", the best so far" if is_best else ""
    if run.path.is_dir():  # nobody goes on with it
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    if is_trial:
        drawn = study.get_trials(deepcopy=False)[int(name)].params
        show_lines([f"[{int(name) + 1}/{tuning.trials}] {_settings(tuning, drawn)}: {told}, {seconds:.0f} s"])
    else:
        with_best = " with the best trial's settings" if name == ALONE_BEST else ""
        show_lines([f"The student alone{with_best}: {told}, {seconds:.0f} s"])


def _completed(study: Study) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def reached(tuning: Tuning, path: Path) -> tuple[float | None, int | None]:
    """Return a finished run's best validation metric and its epoch; None where it has none."""
    result = RunFolder(path, force=tuning.force).read_result() if path.is_dir() else None
    found = {} if result is None else result.validation
    return found.get(tuning.metric), int(found["epoch"]) if "epoch" in found else None


def _alone_of_best(tuning: Tuning, study: Study) -> Iterator[Run]:
    """Yield the student alone with the settings of the best trial, where they are others than the recipe's."""
    if not tuning.has_alone or not (completed := _completed(study)):
        return
    best = max(completed, key=lambda trial: (trial.value, -trial.number))
    run = tuning.run(ALONE_BEST, tuning.trial(best.number, best.params).config.alone())
    if (run.path / "config.yaml").is_file():  # of a best one that more trials have beaten
        stored = RunFolder(run.path).read_config()
        if comparable(stored.model_copy(update={"output": None})) != comparable(run.config):
            shutil.rmtree(run.path)
    own = RunFolder(tuning.folder / TRIALS / ALONE)
    if not own.is_finished or comparable(own.read_config()) == comparable(run.config) or run.is_finished:
        return
    yield run
