import json
import math
import os

import pytest
import torch
from safetensors.torch import save_file

from kdcli.base.errors import UserError
from kdcli.base.result import Result
from kdcli.config.parse import parse_config
from kdcli.plan.plan import Decision, Plan
from kdcli.runs.folder import RunFolder
from kdcli.runs.places import check_new_folder, free_folder


def test_a_result_is_read_as_it_was_written(tmp_path):
    """Nothing is lost: the teacher's metrics, keys of later versions; NaN is null in the file, which strict JSON has."""
    metrics = {"validation": {"pearson": 0.5, "loss": 1.5}, "test": {"pearson": math.nan}}
    result = Result(
        validation={"epoch": 2.0, "pearson": math.nan}, test={"loss": 0.25}, steps=7, seconds=1.5, skipped=1,
        embedding={"ncm_accuracy": 0.5}, teacher=metrics,
    )  # fmt: skip
    folder = RunFolder(tmp_path)
    folder.write_result(result.model_copy(update={"later": {"sum": "abc"}}))
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["teacher"]["test"] == {"pearson": None}
    read = folder.read_result()
    assert read.teacher["validation"] == metrics["validation"]
    assert math.isnan(read.teacher["test"]["pearson"])
    assert math.isnan(read.validation["pearson"])
    assert read.to_json() == json.loads(text)
    assert read.to_json()["later"] == {"sum": "abc"}


def test_a_result_that_lacks_something_is_a_user_error(tmp_path):
    (tmp_path / "result.json").write_text('{"validation": {}, "test": {}, "steps": 1, "skipped": 0}')
    with pytest.raises(UserError, match="damaged: seconds: Field required"):
        RunFolder(tmp_path).read_result()


def test_folders_in_use_are_refused(tmp_path):
    check_new_folder(tmp_path / "new")
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="not an empty folder"):
            check_new_folder(taken)
    run = tmp_path / "run"
    run.mkdir()
    check_new_folder(run)
    (run / "config.yaml").write_text("")
    with pytest.raises(UserError, match="another run"):
        RunFolder.create(run)
    for name in ("remains", "thesis"):
        (tmp_path / name / ".kdcli-1a2b").mkdir(parents=True)
        (tmp_path / name / ".lock").write_text("")
        (tmp_path / name / "plan.json").write_text("{")
    check_new_folder(tmp_path / "remains")
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        check_new_folder(tmp_path / "thesis")
    assert free_folder(run) == tmp_path / "run-2"
    assert free_folder(tmp_path / "other") == tmp_path / "other"


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Can't write"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_discarded_run_takes_the_folders_made_for_it_along(tmp_path):
    (tmp_path / "mine").mkdir()
    RunFolder.create(tmp_path / "mine" / "runs" / "first").discard_if_empty()
    assert list((tmp_path / "mine").iterdir()) == []
    kept, saved, discarded = (RunFolder.create(tmp_path / "runs" / name) for name in ("kept", "saved", "discarded"))
    (kept.path / "student").mkdir()
    (kept.path / "student" / "config.json").write_text("{}")
    (saved.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    for run in (discarded, saved, kept):
        run.discard_if_empty()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["kept", "saved"]


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.yaml").write_text("teacher: none\nstudent: test_vit\ndata: demo:digits\n")
    with pytest.raises(UserError, match="no student"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "student/config.json", "checkpoints/step-00000001/state.json"])
def test_a_pipe_in_a_run_is_refused_before_it_is_read(tmp_path, name):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is a pipe, socket or device"):
        RunFolder.started(tmp_path)


def test_tensors_round_trip_and_damage_is_named(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_tensors("spectra.safetensors") == {}
    values = torch.arange(6.0).view(2, 3).T
    run.write_tensors("spectra.safetensors", {"a": values})
    assert torch.equal(run.read_tensors("spectra.safetensors")["a"], values)
    (tmp_path / "spectra.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        run.read_tensors("spectra.safetensors")


def test_metrics_are_read_back_by_event(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_metrics("train") == []
    run.add_metrics("train", {"loss": 1.5})
    run.add_metrics("validation", {"accuracy": 0.5})
    assert run.read_metrics("validation") == [{"event": "validation", "accuracy": 0.5}]


def test_an_option_that_is_switched_off_stays_off_in_the_config(tmp_path):
    config = parse_config(
        {"teacher": "none", "student": "resnet18", "data": "demo:digits", "optim": {"clip_grad": None}}, source="t"
    )
    run = RunFolder(tmp_path)
    run.write_config(config)
    assert run.read_config() == config


def test_files_have_the_permissions_of_new_files(tmp_path):
    """safetensors itself writes files that nobody else may read."""
    before = os.umask(0o022)
    try:
        run = RunFolder.create(tmp_path / "run")
        run.write_tensors("projector.safetensors", {"w": torch.ones(2)})
        run.write_student(lambda folder: save_file({"w": torch.ones(2)}, folder / "model.safetensors"))
    finally:
        os.umask(before)
    for name in ("projector.safetensors", "student/model.safetensors"):
        assert (run.path / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_run_that_goes_on_says_how_the_teacher_s_outputs_are_come_by(tmp_path, before, after):
    """Another number of epochs can decide that anew."""

    def plan(epochs, is_told):
        rows = [Decision("relation", "same", "Because."), Decision("training", f"{epochs} epochs", "So.")]
        rows += [Decision("teacher outputs", f"stored, {epochs} epochs", "Hence.")] * is_told
        return Plan("same", None, (), None, tuple(rows))

    folder = RunFolder(tmp_path)
    folder.write_plan(plan(1, before), command="kdcli distill")
    folder.update_plan(plan(3, after))
    rows = {row["name"]: row["value"] for row in json.loads((tmp_path / "plan.json").read_text())["decisions"]}
    told = {"teacher outputs": "stored, 3 epochs"} if after else {}
    assert rows == {"relation": "same", "training": "3 epochs", **told}
