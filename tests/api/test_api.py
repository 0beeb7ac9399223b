"""kdcli from Python: the same runs as the command line makes, as objects."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kdcli
from kdcli.api.options import OPTIONS
from kdcli.cli.distill import distill as command
from kdcli.cli.sets import keys_of
from kdcli.terminal.callbacks import BarReporter
from tests.results.test_push import Hub

SMALL = {"device": "cpu", "settings": {"student.image_size": 32, "data.workers": 0}}


@pytest.fixture(scope="module")
def events():
    return []


@pytest.fixture(scope="module")
def run(photos, trained_teacher, tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("api")
    return kdcli.distill(
        teacher=trained_teacher,
        student="test_resnet",
        data=photos,
        epochs=1,
        batch_size=16,
        optim={"weight_decay": 0},
        output=folder / "run",
        callbacks=[lambda event, values: events.append((event, values))],
        show=False,
        **SMALL,
    )


def test_importing_kdcli_imports_nothing_heavy():
    code = "import sys, kdcli; kdcli.__version__, dir(kdcli); sys.exit(bool({'torch', 'pydantic', 'typer'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert (Path(kdcli.__file__).parent / "py.typed").is_file()
    for name in kdcli.__all__:
        assert getattr(kdcli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        kdcli.distil  # noqa: B018


def test_keywords_are_the_options_of_the_command_line():
    ours = keys_of(command)
    given = {name: key for name, key in ours.items() if name not in ("teacher", "student", "data")}
    of_episodes = {name for name, key in given.items() if key.startswith("episodes.")}
    assert {name: key for name, key in given.items() if name not in of_episodes} == OPTIONS


def test_a_run_is_made_and_read(run, capsys):
    assert run.is_finished
    assert set(run.metrics) == {"validation", "test"}
    assert run.metrics["test"]["accuracy"] == run.result.test["accuracy"]
    assert run.config.optim.weight_decay == 0
    assert run.plan["relation"] == "same"
    assert "kdcli.distill(teacher=" in run.plan["command"]
    assert type(run.student).__module__.startswith("timm.")
    with torch.inference_mode():
        assert run.student(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert kdcli.load(run.path).path == run.path
    assert "<td>accuracy</td>" in run._repr_html_()
    assert "data:image/png;base64," in run._repr_html_()


def test_callbacks_are_told(run, events):
    names = [name for name, _ in events]
    assert names[0] in ("started", "measured")
    assert {"started", "logged", "validated", "saved", "measured"} <= set(names)
    validated = next(values for name, values in events if name == "validated")
    assert validated["best"]
    assert validated["accuracy"] == run.metrics["validation"]["accuracy"]


def test_what_commands_print_is_returned(run, photos, tmp_path):
    found = run.evaluate(split="validation", teacher=False, device="cpu")
    assert found["models"]["student"]["top1"] == pytest.approx(run.metrics["validation"]["accuracy"])
    image = next(photos.rglob("*.jpg"))
    assert kdcli.predict(run, image, device="cpu")["predictions"][0]["input"] == str(image)
    assert kdcli.compare([run])["groups"]
    assert run.export(tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "model.safetensors").is_file()
    ranked = kdcli.probe([run, "random:test_resnet"], data=photos, samples=24, device="cpu")
    assert len(ranked["teachers"]) == 2


def test_an_export_is_uploaded_as_by_the_command(run, tmp_path, monkeypatch):
    from kdcli.results import push

    hub = Hub()
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    monkeypatch.setattr(push, "get_token", lambda: "token")
    monkeypatch.setattr(push.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(kdcli.UserError, match="names no repository"):
        run.export(tmp_path / "out", push_to="me/digits")
    with pytest.raises(kdcli.UserError, match="nothing is uploaded"):
        run.export(tmp_path / "out", public=True)
    assert not (tmp_path / "out").exists()
    assert run.export(tmp_path / "out", push_to="hf:me/digits") == tmp_path / "out"
    (_, repo, made), (_, uploaded, options) = hub.calls
    assert (repo, uploaded, made["private"], options["folder_path"]) == (
        "me/digits",
        "me/digits",
        True,
        tmp_path / "out",
    )


def test_the_other_commands_on_finished_runs(run, run_cli, tmp_path):
    assert kdcli.report(run, tmp_path / "page.html").read_text().lower().startswith("<!doctype html>")
    calibrated = kdcli.calibrate(run, device="cpu")
    assert (calibrated["temperature"], calibrated["gain"]) == (1, None)  # of so few samples
    (run.path / "calibration.json").unlink()
    analysis = kdcli.analyze_projector(run, device="cpu")
    outcome = run_cli("analyze-projector", run.path, "--device", "cpu", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["runs"][str(run.path)]["projectors"].keys() == analysis["projectors"].keys()


def test_a_plan_is_made_without_a_run(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = kdcli.plan(teacher="none", student="test_resnet", data=photos, **SMALL)
    assert plan.decisions[0].reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": 1}, "There is no option 'learning_rate'. Did you mean lr?"),
        ({"wd": 1}, "Did you mean optim.weight_decay?"),
        ({"epochs": "ten"}, "train.epochs: a whole number is wanted, got 'ten'."),
        ({"settings": {"optim.lrr": 1}}, "optim.lrr: unknown key. Did you mean lr?"),
        ({"ways": 5}, "There is no option 'ways'"),
        ({"episodes": {"ways": 2, "shots": 1}}, "Episodes are many students"),
        ({"data": "nowhere"}, "no data set or folder 'nowhere'"),
    ],
)
def test_errors_are_user_errors(options, told, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kdcli.UserError) as error:
        kdcli.distill(**{"teacher": "none", "student": "test_resnet", "data": photos, "device": "cpu", **options})
    assert told in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_more_errors(run, tmp_path):
    with pytest.raises(kdcli.UserError, match="not a run folder"):
        kdcli.load(tmp_path)
    with pytest.raises(kdcli.UserError, match=r"no format 'onx'\. Did you mean onnx"):
        run.export(format="onx")
    with pytest.raises(kdcli.UserError, match="Callbacks are called in this process"):
        kdcli.distill(teacher="none", student="test_resnet", num_processes=2, callbacks=[print], show=False)


def test_the_demo_data_are_taken_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kdcli.UserError, match="no model 'test_resnett'"):
        kdcli.distill(teacher="none", student="test_resnett", device="cpu")
    assert capsys.readouterr().out.startswith("No data: taking demo:digits")


def test_two_processes_start_from_the_function(photos, tmp_path):
    """Not from the words of this process's own command line; and it leaves this process as it was."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run = kdcli.distill(
        teacher="none", student="test_resnet", data=photos, epochs=1, batch_size=16, num_processes=2, show=False,
        test=False, output=tmp_path / "run", **SMALL,
    )  # fmt: skip
    assert run.is_finished
    assert run.config.train.num_processes == 2
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_bar(capsys):
    with BarReporter("distil") as bar:
        bar.started(total_steps=4, steps_per_epoch=2, step=0)
        for step in (1, 2):
            bar.stepped(step)
        bar.logged({"loss": 0.5, "epoch": 1})
        bar.validated({"accuracy": 0.25, "epoch": 1, "step": 2}, best=True)
        bar.warned("slow")
    shown = capsys.readouterr()
    assert "accuracy=0.2500" in shown.err
    assert "loss=0.5000" in shown.err
    assert "2/4" in shown.err
    assert "Warning: slow" in shown.out
