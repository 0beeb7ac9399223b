"""``kdcli tune``: what is tried, on what it is chosen, what is written, and that it goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import yaml

from kdcli.config.parse import parse_config
from kdcli.config.recipes import load_recipe
from kdcli.experiments import study
from kdcli.runs.folder import RunFolder
from kdcli.runs.places import newest_run

RECIPE = {
    "teacher": "random:test_vit",
    "student": {"name": "test_resnet", "image_size": 32},
    "train": {"epochs": 2, "batch_size": 16, "device": "cpu", "validate_every": 2},
    "optim": {"warmup": 0},
}
ASKED = (
    *("--tune", "methods.projection.weight=0.03..3:log", "--tune", "projector=inverted,linear"),
    *("--tune", "optim.weight_decay=0..0.1", "--seed", "3"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("tune")
    values = RECIPE | {
        "data": {"name": str(photos), "workers": 0},
        "description": "to be tuned",
        "projector": "inverted",
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def tuned(folder, run_cli_in):
    """Four trials of two epochs, and what was printed. Not to be changed."""
    outcome = run_cli_in("tune", "mine.yaml", "--trials", "4", *ASKED, "--json", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "runs" / "tune" / "mine", json.loads(outcome.stdout)


def without_paths(tried: list[dict]) -> list[dict]:
    return [{key: value for key, value in one.items() if key != "folder"} for one in tried]


def test_all_is_told_in_order_of_the_validation_metric(tuned):
    root, told = tuned
    trials = [one for one in told["tried"] if one["settings"]]
    assert {one["name"] for one in told["tried"]} - {"alone-best"} == {"alone", "0", "1", "2", "3"}
    assert [one["value"] for one in trials] == sorted((one["value"] for one in trials), reverse=True)
    assert told["best"] == trials[0]["name"]
    assert told["metric"] == "accuracy"
    assert told["space"] == {
        "methods.projection.weight": "0.03..3:log",
        "projector": "inverted, linear",
        "optim.weight_decay": "0..0.1",
    }
    for one in told["tried"]:
        result = RunFolder(Path(root, "trials", Path(one["folder"]).name)).read_result()
        assert result is not None
        assert one["value"] == result.validation["accuracy"]
        assert result.test == {}
    assert json.loads((root / "tune.json").read_text()) == told
    first = next(one for one in trials if one["name"] == "0")  # the recipe as it is
    assert first["settings"] == {"methods.projection.weight": 0.1, "projector": "inverted", "optim.weight_decay": 0.05}
    assert RunFolder(root / "trials" / "alone").read_config().teacher.name == "none"


def test_a_trial_has_what_was_drawn_and_leaves_the_rest(tuned):
    root, told = tuned
    for one in told["tried"]:
        if not one["settings"]:
            continue
        config = RunFolder(root / "trials" / f"{int(one['name']):04d}").read_config()
        (projection,) = (options for options in config.methods or () if options.method == "projection")
        assert projection.weight == one["settings"]["methods.projection.weight"]
        assert projection.projector_name == one["settings"]["projector"]
        # what goes with a projector comes from the plan: its rate, and how features are normalised
        assert projection.lr_scale == {"inverted": 0.01, "linear": 1.0}[one["settings"]["projector"]]
        assert config.optim.weight_decay == one["settings"]["optim.weight_decay"]
        assert (config.test, config.baseline, config.seed, config.train.validate_every) == (False, False, 3, 1)
        assert not (root / "trials" / f"{int(one['name']):04d}" / "checkpoints").exists()


def test_the_best_recipe_is_the_users_with_the_settings_of_the_best_trial(tuned, folder, run_cli_in):
    root, told = tuned
    best, own = load_recipe(root / "best.yaml"), load_recipe(folder / "mine.yaml")
    assert "projector" not in best  # it is written out in the methods
    changed = {"methods", "optim"}
    assert {key: value for key, value in best.items() if key not in changed} == {
        key: value for key, value in own.items() if key not in changed | {"projector"}
    }
    config = parse_config(best, source="best.yaml")
    trial = RunFolder(root / "trials" / f"{int(told['best']):04d}").read_config()
    assert config.methods == trial.methods
    assert config.optim == trial.optim
    assert config.train.epochs == own["train"]["epochs"]
    outcome = run_cli_in("distill", "--recipe", root / "best.yaml", "--dry-run", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr


def test_a_signal_stops_after_saving_and_the_same_command_goes_on_to_the_same(tuned, folder, run_cli_in, monkeypatch):
    _, told = tuned
    arguments = ("tune", "mine.yaml", "--trials", "4", *ASKED, "--output", "again")
    heard = study.Watch.__call__

    def stop(self, event, values):
        heard(self, event, values)
        if event == "validated" and self.number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(study.Watch, "__call__", stop)
        outcome = run_cli_in(*arguments, cwd=folder)
    assert outcome.exit_code == 143
    assert "Go on with the same command" in outcome.stdout
    outcome = run_cli_in(*arguments, cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    assert re.findall(r"^\[(\d)/4\]", outcome.stdout, re.M) == ["3", "4"]
    again = json.loads((folder / "again" / "tune.json").read_text())
    assert without_paths(again["tried"]) == without_paths(told["tried"])
    # more trials go on with what there is
    outcome = run_cli_in(*(("5" if word == "4" else word) for word in arguments), cwd=folder)
    assert re.findall(r"^\[(\d)/5\]", outcome.stdout, re.M) == ["5"]
    # and no other config or space does
    for change, message in (
        (("--tune", "optim.lr=0.1,0.2"), "trials of another space"),
        (("--set", "optim.warmup=0.1"), "trials of another config: optim.warmup 0.0 -> 0.1"),
    ):
        outcome = run_cli_in(*arguments, *change, cwd=folder)
        assert outcome.exit_code == 2
        assert message in outcome.stderr


def test_a_trial_that_is_given_up_and_one_that_fails(folder, run_cli_in, monkeypatch):
    heard = study.Watch.__call__
    validated: list[int] = []

    def give_up(self, event, values):
        heard(self, event, values)
        validated.extend([self.number] * (event == "validated"))
        if validated and validated[0] == self.number:  # the first that comes so far
            raise study.GivenUp

    monkeypatch.setattr(study.Watch, "__call__", give_up)
    tune = ("--tune", "optim.lr=0.002,1e30", "--tune", "projector=inverted,linear")
    outcome = run_cli_in("tune", "mine.yaml", "--trials", "4", *tune, "--output", "few", "--seed", "1", cwd=folder)
    states = {one["name"]: one for one in json.loads((folder / "few" / "tune.json").read_text())["tried"]}
    given_up = states[str(validated[0])]
    assert (given_up["state"], given_up["epoch"]) == ("given up", 1)
    assert f"given up with accuracy {given_up['value']:.4f}" in outcome.stdout
    failed = [one for one in states.values() if one["state"] == "failed"]
    assert {one["settings"]["optim.lr"] for one in failed} == {1e30}
    assert all(one["error"] in outcome.stdout for one in failed)
    # the student alone: with the recipe's learning rate and with the best trial's
    own, best = (RunFolder(folder / "few" / "trials" / name).read_config() for name in ("alone", "alone-best"))
    assert own.teacher.name == best.teacher.name == "none"
    assert (own.optim.lr, best.optim.lr) == (0.001, 0.002)
    assert f"{states['alone-best']['value']:.4f}" in outcome.stdout


def test_trials_are_no_newest_run(tuned, folder):
    with pytest.raises(Exception, match="no finished one"):
        newest_run(folder / "runs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "train.epochs=0"), "there is nothing to tune"),
        (("--set", "episodes.ways=2", "--set", "episodes.shots=1"), "this recipe has episodes"),
        (("--set", "seed=1"), "seed is for the command to set"),
        (("--output", "."), "is of no kdcli tune"),
    ],
)
def test_refusals(folder, run_cli_in, arguments, message):
    outcome = run_cli_in("tune", "mine.yaml", *arguments, cwd=folder)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_without_optuna_it_is_told_how_to_get_it(folder, run_cli_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = run_cli_in("tune", "mine.yaml", cwd=folder)
    assert outcome.exit_code == 2
    assert "pip install 'kdcli[tune]'" in outcome.stderr
