"""Help is quick because it imports nothing heavy, and every command shows how it is used."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import kdcli
from kdcli.base.tasks import TASKS
from kdcli.cli.app import app

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "datasets",
    "sklearn",
    "matplotlib",
    "numpy",
    "PIL",
)
COMMANDS = [
    ("distill",),
    ("export",),
    ("evaluate",),
    ("predict",),
    ("generate",),
    ("calibrate",),
    ("report",),
    ("guide",),
    ("analyze-projector",),
    ("compare",),
    ("sweep",),
    ("tune",),
    ("lr-range",),
    ("cache",),
    ("extensions",),
    ("doctor",),
    ("bench",),
    ("recipes", "list"),
    ("recipes", "show"),
    ("recipes", "copy"),
    ("models", "layers"),
    ("models", "probe"),
    ("models", "search"),
    ("config", "keys"),
    ("config", "check"),
    ("config", "schema"),
]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["distill", "--help"],
        ["export", "-h"],
        ["--version"],
        ["extensions"],
        ["recipes", "list"],
        ["recipes", "show", "quickstart"],
        ["config", "keys", "learning_rate"],
        ["config", "check", "quickstart"],
    ],
)
def test_imports_nothing_heavy(arguments, tmp_path):
    code = f"""
import sys
sys.argv = ["kdcli", *{arguments!r}]
from kdcli.cli.app import main
try:
    main()
except SystemExit as stop:
    assert stop.code in (None, 0), stop.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_a_wrong_key_is_told_without_importing_anything_heavy(tmp_path):
    code = f"""
import sys
sys.argv = ["kdcli", "distill", "--recipe", "quickstart", "--set", "train.epoch=1"]
from kdcli.cli.app import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 2, stop.code
assert not [name for name in {HEAVY!r} if name in sys.modules]
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train.epoch: unknown key" in result.stderr


def test_help_lists_the_commands(run_cli):
    exit_code, stdout, _ = run_cli("--help")
    assert exit_code == 0
    for command in ("distill", "export", "evaluate", "analyze-projector", "recipes"):
        assert command in stdout


def test_no_arguments_show_the_help(run_cli):
    _, stdout, stderr = run_cli()
    assert "distill" in stdout + stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_an_example(run_cli, command):
    exit_code, stdout, stderr = run_cli(*command, "--help")
    assert exit_code == 0, stderr
    assert "Example" in stdout
    shown = " ".join(stdout.replace("│", " ").split())
    assert f"kdcli {' '.join(command)} " in shown.partition("Example")[2], "an example of this very command"


LISTS = [
    *[("guide",), ("extensions",), ("doctor",), ("compare",), ("evaluate",), ("predict",), ("analyze-projector",)],
    *[("recipes", "list"), ("models", "layers"), ("models", "probe"), ("models", "search"), ("config", "keys")],
    *[("bench",), ("calibrate",), ("lr-range",), ("tune",)],
]


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_what_prints_a_table_prints_json_too(command):
    assert "--json" in options_of(command)


def test_all_others_print_no_table_or_write_it_to_a_file():
    """distill and sweep train and leave ``result.json``, export ``quantization.json``."""
    others = {command[0] for command in COMMANDS if command not in LISTS and "--json" not in options_of(command)}
    modules = {
        name: inspect.getsource(inspect.getmodule(inspect.unwrap(get_command(app).commands[name].callback)))
        for name in others - {"recipes", "models", "config"}
    }
    assert {name for name, text in modules.items() if "show_table" in text} == {"export", "sweep"}


def options_of(command):
    found = get_command(app)
    for word in command:
        found = found.commands[word]
    return {option for parameter in found.params for option in parameter.opts}


def test_help_of_distill_shows_first_what_most_need(run_cli):
    first, _, rest = run_cli("distill", "--help").stdout.partition("Teacher and student")
    for option in ("--teacher", "--student", "--data", "--task", "--recipe", "--epochs", "--output", "--dry-run"):
        assert f" {option} " in first
    for option in ("--teacher-weights", "--projector", "--log-format", "--ways", "More examples"):
        assert option not in first
        assert option in rest


def test_every_task_is_in_the_help_of_distill(run_cli):
    told = re.sub(r"[\s│]+", "", run_cli("distill", "--help").stdout)  # names are broken at the ends of lines
    assert [name for name in TASKS if name not in told] == []


def test_no_command_is_forgotten_here():
    from kdcli.cli.app import app
    from kdcli.cli.config import config_app
    from kdcli.cli.models import models_app
    from kdcli.cli.recipes import recipes_app

    def names(typer_app):
        return {
            command.name or command.callback.__name__.replace("_", "-") for command in typer_app.registered_commands
        }

    found = {(name,) for name in names(app)} | {
        ("recipes", name.removeprefix("recipes-")) for name in names(recipes_app)
    }
    found |= {("models", name.removeprefix("models-")) for name in names(models_app)}
    found |= {("config", name.removeprefix("config-")) for name in names(config_app)}
    assert found == set(COMMANDS)


def test_python_m_kdcli(tmp_path):
    result = python("-m", "kdcli", "--version", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"kdcli {kdcli.__version__}"


def test_python_m_kdcli_passes_the_exit_code_on(tmp_path):
    result = python("-m", "kdcli", "recipes", "show", "quikstart", cwd=tmp_path)
    assert result.returncode == 2
    assert "quickstart" in result.stderr
    assert "Traceback" not in result.stderr


def test_show_prints_the_recipe_as_it_is(run_cli):
    from kdcli.config.recipes import find_recipe

    assert run_cli("recipes", "show", "quickstart").stdout == find_recipe("quickstart").read_text()


def test_list_shows_every_recipe_with_what_it_is_for(run_cli):
    from kdcli.config.recipes import list_recipes

    stdout = run_cli("recipes", "list").stdout
    for recipe in list_recipes():
        (row,) = (line for line in stdout.splitlines() if f" {recipe.name} " in line)
        assert recipe.description in row
    listed = json.loads(run_cli("recipes", "list", "--json").stdout)["recipes"]
    assert listed == [{"name": recipe.name, "description": recipe.description} for recipe in list_recipes()]


def test_copy_writes_the_recipe_as_it_is(run_cli, tmp_path):
    from kdcli.config.recipes import find_recipe

    outcome = run_cli("recipes", "copy", "quickstart", "mine.yaml")
    assert outcome.exit_code == 0, outcome.stderr
    assert "mine.yaml" in outcome.stdout
    assert (tmp_path / "mine.yaml").read_bytes() == find_recipe("quickstart").read_bytes()
