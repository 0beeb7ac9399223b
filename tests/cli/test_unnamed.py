"""Without --data the task's demo data are taken, and without a run the newest finished one; both are said."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from kdcli.base.tasks import TASKS
from kdcli.cli.newest import run_and_inputs

MODELS = ("--teacher", "random:test_vit", "--student", "test_resnet")


def test_the_demo_data_are_taken_and_the_first_line_says_so(run_cli, few_digits):
    small = ("--set", "student.image_size=32", "--set", "teacher.image_size=32", "--device", "cpu", "--dry-run")
    outcome = run_cli("distill", *MODELS, *small)
    assert outcome.exit_code == 0, outcome.stderr
    first = outcome.stdout.splitlines()[0]
    assert first == "No --data: taking demo:digits, the demo data of image-classification. Name yours with --data."
    as_json = run_cli("distill", *MODELS, *small, "--log-format", "json").stdout.splitlines()
    assert [json.loads(line)["event"] for line in as_json] == ["demo", "plan"]


@pytest.mark.parametrize(
    "arguments",
    [
        (*MODELS, "--classes", "0-4"),
        (*MODELS, "--set", "data.validation_fraction=0.2"),
        (*MODELS, "--set", "datta.name=photos"),
        (*MODELS, "--task", "text-classification"),
        (*MODELS, "--data", ""),
        (*MODELS, "photos"),
        MODELS[:2],
    ],
)
def test_nothing_is_taken_where_other_data_could_be_meant(run_cli, arguments):
    exit_code, stdout, stderr = run_cli("distill", *arguments, "--dry-run")
    assert exit_code == 2
    assert "demo:" not in stdout + stderr


def test_a_recipe_without_data_gets_none(run_cli, tmp_path):
    (tmp_path / "mine.yaml").write_text("teacher: random:test_vit\nstudent: test_resnet\n")
    outcome = run_cli("distill", "--recipe", "mine.yaml", "--dry-run")
    assert "data: missing" in outcome.stderr


def test_tasks_name_data_that_need_no_download():
    assert {row.demo.partition(":")[0] for row in TASKS.values()} <= {"", "demo"}
    assert sum(bool(row.demo) for row in TASKS.values()) >= 8


@pytest.fixture
def two_runs(same_run, alone_run, tmp_path):
    """A run that was finished last, an earlier one whose folder is newer, and a part of a run that is newer still."""
    for name, source, when in (
        ("first", alone_run, 2000),
        ("last", same_run, 3000),
        ("last/baseline", alone_run, 4000),
    ):
        folder = tmp_path / "runs" / name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints", "baseline"))
        os.utime(folder / "result.json", (when, when))
    return tmp_path / "runs"


def test_the_newest_finished_run_is_taken_and_named(run_cli, two_runs, photos):
    said = "No run is named: taking runs/last, the newest finished one."
    exported = run_cli("export")
    assert exported.exit_code == 0, exported.stderr
    assert said in exported.stderr
    for command in ("analyze-projector", "evaluate"):  # refused once the run is known, so that it takes no time
        outcome = run_cli(command, "--device", "cpu", "--split", "nonsense")
        assert outcome.exit_code == 2
        assert outcome.stderr.startswith(said)
    image = next(photos.rglob("*.jpg"))
    outcome = run_cli("predict", image, "--json", "--device", "cpu")
    assert said in outcome.stderr
    assert json.loads(outcome.stdout)["predictions"]


def test_no_finished_run_is_told(run_cli, tmp_path):
    outcome = run_cli("export")
    assert outcome.exit_code == 2
    assert "No run is named, and there is no finished one under runs/." in outcome.stderr


def test_what_is_asked_and_about_what(two_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    (tmp_path / "model.pth").touch()
    assert run_and_inputs(["a.png", "b.png"]) == ("runs/last", ["a.png", "b.png"])
    assert run_and_inputs([]) == ("runs/last", [])
    assert run_and_inputs(["-"]) == ("runs/last", ["-"])
    for model in ("runs/first", "resnet18", "model.pth", "missing.png"):
        assert run_and_inputs([model, "a.png"]) == (model, ["a.png"])
