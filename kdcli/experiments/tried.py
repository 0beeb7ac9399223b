"""What came of ``kdcli tune``: all that was tried, the best recipe, and whether distillation helped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from kdcli.base.files import write_atomically
from kdcli.base.text import redact_all
from kdcli.config.keys import written_out
from kdcli.config.parse import parse_config
from kdcli.config.recipes import set_key
from kdcli.experiments.study import open_study
from kdcli.experiments.tune import ALONE, ALONE_BEST, Tuning, reached, told_space
from kdcli.runs.folder import RunFolder
from kdcli.runs.places import TRIALS

BEST = "best.yaml"
_TOLD = "tune.json"


@dataclass(frozen=True)
class Tried:
    """A run that was tried.

    Attributes:
        name: the trial's number, or ``alone`` and ``alone-best`` for the student alone.
        state: ``complete``, ``given up``, ``failed`` or ``unfinished``.
        value: the best validation metric, of one that was given up the last; None without any.
        epoch: at which that was.
        settings: the values by key; of the student alone none.
        folder: of the run.
        error: why it failed.
    """

    name: str
    state: str
    value: float | None
    epoch: int | None
    settings: Mapping[str, Any]
    folder: str
    error: str = ""


def list_tried(tuning: Tuning) -> list[Tried]:
    """Return all that was tried: the student alone, then the trials, the best one first."""
    from optuna.trial import TrialState

    tried = []
    for name in (ALONE, ALONE_BEST):
        path = tuning.folder / TRIALS / name
        value, epoch = reached(tuning, path)
        if value is not None:
            tried.append(Tried(name, "complete", value, epoch, {}, str(path)))
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "given up", TrialState.FAIL: "failed"}
    trials = []
    for trial in open_study(tuning.folder, warm_up=tuning.warm_up).get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:
            continue
        path = tuning.folder / TRIALS / f"{trial.number:04d}"
        epoch = reached(tuning, path)[1] if trial.state == TrialState.COMPLETE else trial.last_step
        trials.append(
            Tried(
                str(trial.number),
                states.get(trial.state, "unfinished"),
                trial.value,
                epoch,
                tuning.space.values_of(trial.params),
                str(path),
                trial.user_attrs.get("error", ""),
            )
        )
    order = {"complete": 0, "given up": 1}
    trials.sort(key=lambda one: (order.get(one.state, 2), -(one.value if one.value is not None else -math.inf)))
    return [*tried, *trials]


def write_best(tuning: Tuning, best: Tried) -> Path:
    """Write the recipe with the settings of the best trial and its methods written out, and return the file.

    Raises:
        UserError: it can't be written.
    """
    chosen = tuning.space.config_of(best.settings)
    values = {key: value for key, value in tuning.values.items() if key not in written_out() - {"relation"}}
    for key, value in best.settings.items():
        if not key.startswith("methods.") and key not in written_out():
            values = set_key(values, key.split("."), value)
    values["methods"] = [_written(options) for options in chosen.methods or ()]
    if chosen.embedding is not None and tuning.values.get("embedding") is None:  # the plan's
        stage = chosen.embedding
        epochs = parse_config(dict(tuning.values), source=tuning.name).train.epochs
        values["embedding"] = {"epochs": epochs, "methods": [_written(options) for options in stage.methods]}
    told = f"{tuning.metric} {best.value:.4f} on validation after trials of {tuning.config.train.epochs} epochs"
    text = f"# kdcli tune of {tuning.name}: trial {best.name} of {tuning.trials}, {told}.\n"
    text += yaml.safe_dump(redact_all(values), sort_keys=False, allow_unicode=True, width=120)
    file = tuning.folder / BEST
    write_atomically(file, lambda new: new.write_text(text, encoding="utf-8"))
    return file


def _written(options: Any) -> dict[str, Any]:
    """Return a method's options as recipes have them: those that are not its defaults."""
    return {"method": options.method, **options.model_dump(mode="json", exclude_defaults=True, exclude={"method"})}


def heading(tuning: Tuning) -> list[str]:
    """Return what is going to be tried."""
    return [
        f"Trials of {tuning.config.train.epochs} epochs, chosen by {tuning.metric} on validation; the test split is not"
        " touched. What is tuned:",
        *(f"  {tuned.key}: {tuned.space}" for tuned in tuning.space.tuned),
        *tuning.space.left_out,
    ]


def to_json(tuning: Tuning, tried: list[Tried], best: Tried | None) -> dict[str, Any]:
    """Return what was tried and what came of it."""
    return {
        "folder": str(tuning.folder),
        "recipe": tuning.name,
        "metric": tuning.metric,
        "epochs": tuning.config.train.epochs,
        "seed": tuning.config.seed,
        "space": told_space(tuning.space),
        "tried": [asdict(one) for one in tried],
        "best": None if best is None else best.name,
        "best_recipe": None if best is None else str(tuning.folder / BEST),
        "conclusion": conclusion(tuning, tried),
    }


def write_told(tuning: Tuning, told: Mapping[str, Any]) -> Path:
    """Write all that :func:`to_json` returns, and return the file."""
    RunFolder(tuning.folder).write_text(_TOLD, json.dumps(told, indent=2) + "\n")
    return tuning.folder / _TOLD


def best_of(tried: list[Tried]) -> Tried | None:
    """Return the best trial that was finished; None without one."""
    found = [one for one in tried if one.state == "complete" and one.settings]
    return found[0] if found else None


def conclusion(tuning: Tuning, tried: list[Tried]) -> list[str]:
    """Return what came of it, a sentence each."""
    best = best_of(tried)
    if best is None or best.value is None:
        return [f"None of {sum(bool(one.settings) for one in tried)} trials was finished: there is nothing to choose."]
    told = [f"Best: trial {best.name} with {tuning.metric} {best.value:.4f} on validation, at epoch {best.epoch}."]
    own = next((one for one in tried if one.name == "0" and one.state == "complete"), None)
    space = tuning.space
    is_own = all(tuned.own is not None for tuned in space.tuned)
    if own is not None and is_own and own.value is not None and own is not best:
        told.append(f"The recipe as it is, trial 0: {own.value:.4f}, so {best.value - own.value:+.4f}.")
    alone = [one for one in tried if one.name in (ALONE, ALONE_BEST)]
    if alone:
        better = max(alone, key=lambda one: one.value or -math.inf)
        assert better.value is not None
        with_best = " with the best trial's settings" if better.name == ALONE_BEST else ""
        lead = best.value - better.value
        helped = "helped" if lead > 0 else "did not help" if lead < 0 else "made no difference"
        told.append(
            f"The student alone{with_best}: {better.value:.4f}. On validation, in one run each, distillation {helped}:"
            f" {lead:+.4f}."
        )
    told.append("The best of many trials is flattered by the choice: several seeds tell for certain.")
    return told
