"""A teacher of edges for a student of classes: the plan calls it what it is, and everything after the training works."""

import json

import pytest

from kdcli.config.models import TeacherConfig
from kdcli.models import load_teacher

pytestmark = pytest.mark.usefixtures("few_points")


@pytest.fixture(scope="module")
def edges_run(photos, tmp_path_factory, run_cli_in):
    """A finished run, stopped once on its way; the teacher is a saved folder, which counts as pretrained."""
    folder = tmp_path_factory.mktemp("edges")
    load_teacher(TeacherConfig(name="random:package:hed", image_size=32), seed=0).save(folder / "hed")
    options = ("--student", "cifar:resnet8", "--data", photos, "--batch-size", "16", "--device", "cpu", "--epochs", "2")
    outcome = run_cli_in(
        *("distill", "--teacher", folder / "hed", *options, "--set", "data.workers=0", "--output", "run"), cwd=folder
    )
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "run", outcome.stdout


def test_the_plan_says_what_the_teacher_is_for(edges_run):
    folder, stdout = edges_run
    assert "cross: other task (edge detection)" in stdout
    plan = json.loads((folder / "plan.json").read_text())
    told = {decision["name"]: decision for decision in plan["decisions"]}
    assert plan["relation"] == "cross"
    assert told["relation"]["reason"].startswith("The teacher is for edge detection, the data are for image classif")
    assert told["teacher"]["value"].endswith("edge detection at every position")
    assert "projector inverted" in told["loss: projection"]["value"]
    assert told["logit KD"]["value"] == "off"
    assert "teacher measured" not in told
    card = (folder / "README.md").read_text()
    assert "| Student's first weights | untrained |" in card
    assert f"| Teacher's weights | {told['teacher']['reason']} |" in card


def test_its_projector_is_analyzed_and_its_student_exported(edges_run, run_cli):
    folder, _ = edges_run
    for command in (("analyze-projector", folder), ("evaluate", folder), ("export", folder, "--output", "out")):
        outcome = run_cli(*command, "--device", "cpu") if command[0] == "evaluate" else run_cli(*command)
        assert outcome.exit_code == 0, (command, outcome.stderr)


def test_logits_of_edges_are_no_classes(edges_run, photos, run_cli):
    folder, _ = edges_run
    shared = (
        "distill",
        "--teacher",
        folder.parent / "hed",
        "--student",
        "cifar:resnet8",
        "--data",
        photos,
        "--dry-run",
    )
    for method, told in (("logit_kd", "labels"), ("dist", "labels")):
        outcome = run_cli(*shared, "--method", method)
        assert outcome.exit_code == 2
        assert told in outcome.stderr


def test_its_layers_are_listed(run_cli):
    outcome = run_cli("models", "layers", "random:package:craft")
    assert outcome.exit_code == 0, outcome.stderr
    assert "upconv4" in outcome.stdout
