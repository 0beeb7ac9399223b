"""A teacher of some classes, and students of these or of others: ``--classes`` and run folders as models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

TEACHER = Path("runs/t")
STUDENT = ("--student", "test_convnext")
DIGITS = ("--data", "demo:digits", "--set", "data.train_images=100")


def plan_of(run: Path) -> tuple[dict, dict[str, dict]]:
    plan = json.loads((run / "plan.json").read_text())
    return plan, {entry["name"]: entry for entry in plan["decisions"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_cli_in, tiny):
    """A folder with ``runs/t``, trained on the first half of the digits."""
    cwd = tmp_path_factory.mktemp("class-splits")
    outcome = run_cli_in(
        *("distill", "--teacher", "none", "--student", "test_resnet", *tiny, *DIGITS),
        *("--classes", "part:1/2", "--output", TEACHER),
        cwd=cwd,
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "demo:digits: 5 classes" in outcome.stdout
    assert "Classes: 5 of 10 taken: 0 to 4." in outcome.stdout
    assert yaml.safe_load((cwd / TEACHER / "config.yaml").read_text())["data"]["classes"] == ["part:1/2"]
    return cwd


@pytest.fixture(scope="module")
def other_half(folder, run_cli_in, tiny):
    """A student of the other classes."""
    outcome = run_cli_in(
        *("distill", "--teacher", TEACHER, *STUDENT, *tiny, *DIGITS),
        *("--classes", "part:2/2+20%", "--output", "runs/cross"),
        cwd=folder,
    )
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "runs" / "cross"


def test_a_student_of_the_same_classes(folder, run_cli_in, tiny):
    outcome = run_cli_in(
        *("distill", "--teacher", TEACHER, *STUDENT, *tiny, *DIGITS),
        *("--classes", "part:1/2", "--output", "runs/same"),
        cwd=folder,
    )
    assert outcome.exit_code == 0, outcome.stderr
    plan, decisions = plan_of(folder / "runs" / "same")
    assert (plan["relation"], plan["label_map"]) == ("same", [0, 1, 2, 3, 4])
    assert decisions["relation"]["reason"] == "Both have the same 5 labels."
    assert "logit_kd" in {options["method"] for options in plan["methods"]}
    assert decisions["teacher"]["reason"] == f"trained by kdcli: the best student of the run {TEACHER}"


def test_a_student_of_other_classes(other_half):
    plan, decisions = plan_of(other_half)
    assert (plan["relation"], plan["label_map"]) == ("cross", None)
    assert decisions["relation"]["reason"].startswith("Both have 5 classes, but the teacher has no label '5'. ")
    assert "logit_kd" not in {options["method"] for options in plan["methods"]}
    assert "Classes: 5 of 10 taken: 4 to 8." in decisions["data"]["reason"]
    labels = json.loads((other_half / "student" / "config.json").read_text())["label_names"]
    assert labels == ["4", "5", "6", "7", "8"]


def test_resume_works_from_anywhere_and_keeps_the_classes(folder, other_half, run_cli_in, tmp_path):
    config = yaml.safe_load((other_half / "config.yaml").read_text())
    steps = json.loads((other_half / "result.json").read_text())["steps"]
    assert config["teacher"]["name"] == str(folder / TEACHER)
    outcome = run_cli_in("distill", "--resume", other_half, "--classes", "part:2/2", cwd=tmp_path)
    assert outcome.exit_code == 2
    assert "data.classes.0 'part:2/2+20%' -> 'part:2/2'" in outcome.stderr
    outcome = run_cli_in("distill", "--resume", other_half, "--epochs", "2", cwd=tmp_path)
    assert outcome.exit_code == 0, outcome.stderr
    assert "Warning" not in outcome.stderr
    assert json.loads((other_half / "result.json").read_text())["steps"] == 2 * steps
    config["output"] = str(tmp_path / "again")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    outcome = run_cli_in("distill", "--recipe", "again.yaml", "--dry-run", cwd=tmp_path)
    assert outcome.exit_code == 0, outcome.stderr
    assert "Classes: 5 of 10 taken: 4 to 8." in outcome.stdout


def test_evaluate_takes_the_classes_of_the_run_or_others(folder, other_half, run_cli_in, make_photos):
    def evaluate(*arguments: str | Path) -> dict:
        outcome = run_cli_in("evaluate", *arguments, "--json", "--device", "cpu", cwd=folder)
        assert outcome.exit_code == 0, outcome.stderr
        return json.loads(outcome.stdout)

    own = evaluate(other_half)
    assert own["class_names"] == ["4", "5", "6", "7", "8"]
    assert own["models"]["teacher"]["top1"] is None
    assert Path(own["models"]["teacher"]["name"].removeprefix("timm:")) == folder / TEACHER
    by_name = evaluate(other_half / "student", "--data", "demo:digits", "--classes", "4-8")
    assert by_name["models"]["model"]["top1"] == own["models"]["student"]["top1"]
    assert by_name["num_images"] == own["num_images"]
    assert "Classes: 5 of 10 taken: 4 to 8." in by_name["data_notes"]
    photos = make_photos(dict.fromkeys("45678", 4))  # other data, of which all classes are taken
    assert evaluate(other_half, "--data", photos)["num_images"] == 5
    outcome = run_cli_in("evaluate", other_half, "--classes", "0-4", cwd=folder)
    assert outcome.exit_code == 2
    assert "the model has no label '0'" in outcome.stderr


def test_compare_shows_the_classes(folder, other_half, run_cli_in):
    outcome = run_cli_in("compare", TEACHER, other_half, "--json", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    assert "part:2/2+20%" in outcome.stdout
    assert "data.classes" in outcome.stderr + outcome.stdout


def test_a_student_goes_on_from_a_run(folder, run_cli_in, tiny):
    outcome = run_cli_in(
        *("distill", "--teacher", "none", "--student", TEACHER, "--student-pretrained", *tiny, *DIGITS, "--dry-run"),
        cwd=folder,
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert f"the best student of the run {TEACHER}" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "0-10"), "data.classes: demo:digits has no '0-10'. It has 10 classes, numbered 0 to 9."),
        (("--classes", ""), "data.classes: demo:digits has no ''."),
        (("--classes", "part:1/2+20%"), "has no part before it"),
        (("--set", "data.classes=5"), "takes 1 class of demo:digits (5)"),
        (("--set", "data.classes=[]"), "data.classes:"),
        (("--teacher", "runs"), "Model 'runs': runs is neither a model (no config.json) nor a run folder"),
    ],
)
def test_errors(folder, run_cli_in, arguments, message):
    outcome = run_cli_in(
        *("distill", "--teacher", "none", *STUDENT, "--data", "demo:digits", "--output", "wrong", *arguments),
        cwd=folder,
    )
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert not (folder / "wrong").exists()
