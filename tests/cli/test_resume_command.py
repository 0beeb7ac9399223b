"""Runs that are killed, stopped and taken up again end as if nothing had happened."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"
_spec = importlib.util.spec_from_file_location("kill_and_resume", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
kill_and_resume = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kill_and_resume)

SHORT = (
    *("--teacher", "random:test_efficientnet", "--student", "test_resnet", "--data", "demo:digits"),
    *("--batch-size", "8", "--device", "cpu", "--set", "train.ema=0.99", "--set", "augment.mixup=0.2"),
    *("--set", "data.train_images=160"),  # 20 steps an epoch
    *("--set", "student.image_size=32", "--set", "teacher.image_size=32", "--set", "data.workers=0"),
)
EPOCHS = ("--epochs", "2", "--checkpoint-every", "3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run_cli_in):
    """The run that nobody disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run_cli_in("distill", *SHORT, *EPOCHS, "--output", "run", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    return folder / "run"


class Interrupt(Exception):
    """Stands for a process that dies: nothing after it runs but what Python itself unwinds."""


def interrupted(run_cli, monkeypatch, at, *arguments):
    """Run until step ``at`` is computed, then fall dead before anything of it is written."""
    import kdcli.training.trainer

    original = kdcli.training.trainer.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == at:
            raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, "train_step", train_step)
        with pytest.raises(Interrupt):
            run_cli(*arguments)


@pytest.mark.parametrize("steps", [(2,), (7, 20, 21), (39,)])
def test_a_run_cut_short_goes_on_bit_for_bit(run_cli, tmp_path, monkeypatch, whole, steps):
    """Before the first checkpoint; mid-epoch, before and after a validation; at the last step."""
    command = ["distill", *SHORT, *EPOCHS, "--output", "run"]
    for step in steps:
        interrupted(run_cli, monkeypatch, step, *command)
        command = ["distill", "--resume", "run"]
    outcome = run_cli(*command)
    assert outcome.exit_code == 0, outcome.stderr
    assert kill_and_resume.differences(whole, tmp_path / "run") == []
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(p.name for p in whole.iterdir())


def test_a_killed_process_goes_on_bit_for_bit(tmp_path, whole):
    """Real processes, killed by the system at random moments; tests/benchmarks/kill_and_resume.py does more of it."""
    draw = random.Random(1)
    kill_and_resume.killed_run([*SHORT, *EPOCHS], tmp_path / "run", draw, 20.0, most=1)
    assert kill_and_resume.differences(whole, tmp_path / "run") == []


SIGNALLED = """
import os, sys
from kdcli.cli.app import main
from kdcli.training.trainer import Trainer
number, step, original = int(sys.argv[1]), int(sys.argv[2]), Trainer.train_step

def train_step(self, batch, epoch):
    original(self, batch, epoch)
    if self.step == step:
        os.kill(os.getpid(), number)

Trainer.train_step = train_step
sys.argv[1:] = ["distill", *sys.argv[3:]]
main()
"""


def test_a_signal_saves_and_says_how_to_go_on(run_cli, forked, tmp_path, whole):
    """One run, stopped by each signal in turn, ends as the run that nothing stopped."""
    run = tmp_path / "run"
    options = (*SHORT, *EPOCHS, "--checkpoint-every", "1h", "--output", run)
    for number, code, step in ((signal.SIGTERM, 143, 12), (signal.SIGINT, 130, 25), (signal.SIGHUP, 129, 33)):
        ((exit_code, output),) = forked((SIGNALLED, [str(int(number)), str(step), *options], {}))
        assert exit_code == code, output
        assert "Traceback" not in output
        (line,) = [line for line in output.splitlines() if "Go on with: kdcli distill --resume" in line]
        assert str(run) in line
        assert f"step-{step:08}" in {path.name for path in (run / "checkpoints").iterdir()}
        assert not (run / "result.json").exists()
        options = ("--resume", run)
    assert run_cli("distill", "--resume", run).exit_code == 0
    assert kill_and_resume.differences(whole, run) == []


def test_more_epochs_extend_a_finished_run(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    outcome = run_cli("distill", "--resume", "run", "--epochs", "3")
    assert outcome.exit_code == 0, outcome.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "validation"] == [1, 2, 3]
    assert [line["event"] for line in lines].count("test") == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["epochs"] == 3
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 60
    decisions = {d["name"]: d for d in json.loads((tmp_path / "run" / "plan.json").read_text())["decisions"]}
    assert decisions["training"]["value"].startswith("3 epochs")
    assert "Learning to Project" in decisions["loss: projection"]["reason"], "the reasons of the plan are kept"


def test_a_finished_run_is_only_reported(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 0
    assert "finished" in outcome.stdout
    assert "test accuracy" in outcome.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}


def test_the_baseline_of_a_run_goes_on_too(run_cli, tmp_path, monkeypatch):
    """The run is finished and its baseline cut short; then both are there as if nothing had been."""
    arguments = ("distill", *SHORT, "--epochs", "1", "--checkpoint-every", "3", "--baseline")
    assert run_cli(*arguments, "--output", "whole").exit_code == 0
    import kdcli.training.trainer

    original = kdcli.training.trainer.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.teacher is None and self.step == 11:
            raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, "train_step", train_step)
        with pytest.raises(Interrupt):
            run_cli(*arguments, "--output", "run")
    assert (tmp_path / "run" / "result.json").exists()
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "student alone" in outcome.stdout
    first, second = (load_file(tmp_path / name / "baseline/student/model.safetensors") for name in ("whole", "run"))
    assert all(first[key].equal(second[key]) for key in first)
    outcomes = [json.loads((tmp_path / name / "result.json").read_text())["outcome"] for name in ("whole", "run")]
    for outcome in outcomes:
        del outcome["tries"]  # they name the folder
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["samples"] > 0


@pytest.fixture
def at_step(monkeypatch):
    """``at_step(number, act)``: once, ``act(trainer)`` when a trainer has done step ``number``."""
    import kdcli.training.trainer

    original = kdcli.training.trainer.Trainer.train_step

    def arrange(number, act, alone=False):
        def train_step(self, batch, epoch):
            original(self, batch, epoch)
            if self.step == number and (self.teacher is None) == alone:
                monkeypatch.setattr(kdcli.training.trainer.Trainer, "train_step", original)
                act(self)

        monkeypatch.setattr(kdcli.training.trainer.Trainer, "train_step", train_step)

    return arrange


def die(trainer):
    raise Interrupt


def test_a_baseline_asked_for_later_is_not_forgotten(run_cli, tmp_path, whole, at_step):
    """A kill left a baseline that was no run yet; the next one is while it trains; then --resume alone ends it."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "baseline").mkdir()
    (tmp_path / "run" / "baseline" / "plan.json").write_text("{")
    at_step(5, die, alone=True)
    with pytest.raises(Interrupt):
        run_cli("distill", "--resume", "run", "--baseline")
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "student alone" in outcome.stdout
    assert json.loads((tmp_path / "run" / "baseline" / "result.json").read_text())["steps"] == 40


def test_a_baseline_in_use_is_not_resumed_on_its_own(run_cli, tmp_path, whole, at_step):
    shutil.copytree(whole, tmp_path / "run")
    outcomes = []
    at_step(4, lambda _: outcomes.append(run_cli("distill", "--resume", "run/baseline")), alone=True)
    assert run_cli("distill", "--resume", "run", "--baseline").exit_code == 0
    (outcome,) = outcomes
    assert outcome.exit_code == 2
    assert "baseline is in use by process" in outcome.stderr


def test_a_baseline_of_no_teacher_is_refused_when_resumed_too(run_cli, tmp_path, alone_run):
    shutil.copytree(alone_run, tmp_path / "run")
    outcome = run_cli("distill", "--resume", "run", "--baseline")
    assert outcome.exit_code == 2
    assert "trains it alone already" in outcome.stderr
    assert not (tmp_path / "run" / "baseline").exists()


def test_an_error_on_resume_loses_nothing(run_cli, tmp_path, whole, at_step):
    """There is neither a checkpoint nor a student yet, and the run goes on where memory is short."""

    def no_memory(trainer):
        raise torch.OutOfMemoryError

    at_step(2, die)
    with pytest.raises(Interrupt):
        run_cli("distill", *SHORT, *EPOCHS, "--output", "run")
    at_step(1, no_memory)
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 2
    assert "memory of the GPU ran out" in outcome.stderr
    assert run_cli("distill", "--resume", "run").exit_code == 0
    assert kill_and_resume.differences(whole, tmp_path / "run") == []


def test_killed_while_it_starts_a_run_can_be_resumed(run_cli, tmp_path, monkeypatch, whole):
    """Before the first step: data are looked through, models go to their device."""
    import kdcli.experiments.distill

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.experiments.distill, "take_record", die_at_last)
        with pytest.raises(Interrupt):
            run_cli("distill", *SHORT, *EPOCHS, "--output", "run")
    assert run_cli("distill", "--resume", "run").exit_code == 0
    assert kill_and_resume.differences(whole, tmp_path / "run") == []


def test_a_run_is_finished_when_all_of_it_is_there(run_cli, tmp_path, monkeypatch, whole):
    """Killed before the model card is written; and what killed processes left is swept away."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("kdcli.experiments.distill.model_card", die_at_last)
        with pytest.raises(Interrupt):
            run_cli("distill", "--resume", "run")
    (tmp_path / "run" / "README.md").unlink(missing_ok=True)
    (tmp_path / "run" / ".kdcli-1a2b" / "new").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / ".kdcli-3c4d").mkdir()
    assert run_cli("distill", "--resume", "run").exit_code == 0
    for folder in (".", "checkpoints"):
        assert sorted(p.name for p in (tmp_path / "run" / folder).iterdir()) == sorted(
            p.name for p in (whole / folder).iterdir()
        )


def test_killed_while_it_is_taken_back_a_run_is_not_finished(run_cli, tmp_path, monkeypatch, whole):
    """It was to be made longer: its test is gone from the records, and is made again when the run is resumed."""
    shutil.copytree(whole, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("kdcli.runs.folder.RunFolder.restore_best", die_at_last)
        with pytest.raises(Interrupt):
            run_cli("distill", "--resume", "run", "--epochs", "3")
    assert run_cli("distill", "--resume", "run").exit_code == 0
    assert kill_and_resume.differences(whole, tmp_path / "run") == []


def die_at_last(*_, **options):
    raise Interrupt


@pytest.mark.parametrize("quiet", [True, False])
def test_a_signal_during_the_test_stops_before_the_baseline(run_cli, tmp_path, monkeypatch, whole, quiet):
    import kdcli.training.trainer

    original = kdcli.training.trainer.Trainer._test

    def test(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    options = ("--log-format", "json", *(("--quiet",) if quiet else ()))
    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, "_test", test)
        outcome = run_cli("distill", *SHORT, *EPOCHS, "--baseline", "--output", "run", *options)
    assert outcome.exit_code == 143
    events = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [event["resume"] for event in events if event["event"] == "stopped"] == (
        [] if quiet else ["kdcli distill --resume run"]
    )
    assert bool(events) == (not quiet)
    assert not (tmp_path / "run" / "baseline").exists()
    assert run_cli("distill", "--resume", "run", "--no-baseline").exit_code == 0
    assert kill_and_resume.differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--lr", "0.5"), "optim.lr 0.001 -> 0.5"),
        (("--student", "test_vit"), "student.name 'test_resnet' -> 'test_vit'"),
        (("--set", "methods.1.weight=7"), "methods.1.weight"),
        (("--seed", "3"), "seed 0 -> 3"),
    ],
)
def test_other_settings_are_refused_by_name(run_cli, tmp_path, whole, options, what):
    shutil.copytree(whole, tmp_path / "run")
    outcome = run_cli("distill", "--resume", "run", *options)
    assert outcome.exit_code == 2
    assert what in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(run_cli, tmp_path, whole):
    other = run_cli("distill", *SHORT, "--epochs", "1", "--lr", "0.5", "--output", "other")
    assert other.exit_code == 0
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 2
    assert "optim.lr 0.5 -> 0.001" in outcome.stderr


def test_a_damaged_checkpoint_falls_back_to_the_one_before(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    file = tmp_path / "run" / "checkpoints" / "step-00000040" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "step-00000040 is damaged" in outcome.stdout + outcome.stderr
    assert kill_and_resume.differences(whole, tmp_path / "run") == []


def test_a_run_in_use_is_not_touched(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from kdcli.runs.folder import RunFolder\n"
         "with RunFolder(Path(sys.argv[1])).locked():\n print('held', flush=True); sys.stdin.read()", tmp_path / "run"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    outcome = run_cli("distill", "--resume", "run", "--epochs", "3")
    assert outcome.exit_code == 2
    assert f"in use by process {holder.pid} on" in outcome.stderr
    holder.kill()  # the lock file stays behind and locks nothing
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    assert run_cli("distill", "--resume", "run").exit_code == 0


def test_changed_data_are_refused_or_told_of(run_cli, tmp_path, monkeypatch, make_photos):
    photos = make_photos({"train/apple": 30, "train/sky": 30, "test/apple": 5, "test/sky": 5})
    arguments = (
        *("distill", "--teacher", "none", "--student", "test_resnet", "--data", photos, "--device", "cpu"),
        *("--epochs", "2", "--batch-size", "16", "--set", "student.image_size=32", "--checkpoint-every", "1"),
    )
    interrupted(run_cli, monkeypatch, 4, *arguments, "--output", "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (photos / "test" / "sky" / "00.jpg").unlink()
    for name in ("01.png", "02.jpg"):
        (photos / "train" / "apple" / name).rename(photos / "train" / "sky" / f"moved-{name}")
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 2
    assert "test: 1 removed (test/sky/00.jpg)" in outcome.stderr
    assert "train/sky/moved-01.png" in outcome.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    outcome = run_cli("distill", "--resume", "run", "--force")
    assert outcome.exit_code == 0, outcome.stderr
    told = "Resumed at step 3 with --force although this had changed since the run began: "
    assert told in outcome.stdout + outcome.stderr
    (sentence,) = json.loads((tmp_path / "run" / "result.json").read_text())["forced"]
    assert sentence.startswith(told)
    assert f"| Forced | {sentence}" in (tmp_path / "run" / "README.md").read_text()
    assert run_cli("distill", "--resume", "run", "--epochs", "3").exit_code == 0, "it goes by the data as they are now"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["forced"] == [sentence]


def test_a_finished_run_without_checkpoints_is_not_begun_anew(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    outcome = run_cli("distill", "--resume", "run", "--epochs", "3")
    assert outcome.exit_code == 2
    assert "no checkpoint any more" in outcome.stderr
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()
    assert run_cli("distill", "--resume", "run").exit_code == 0


def test_a_card_that_was_edited_is_kept_when_the_run_goes_on(run_cli, tmp_path, whole):
    card = shutil.copytree(whole, tmp_path / "run") / "README.md"
    written = [card.read_text()]
    for epochs in ("3", "4"):
        with card.open("a") as file:
            file.write("My own words.\n")
        outcome = run_cli("distill", "--resume", "run", "--epochs", epochs)
        assert outcome.exit_code == 0, outcome.stderr
        assert "README.md had been changed since kdcli wrote it" in outcome.stdout
        written.append(card.read_text())
    assert run_cli("distill", "--resume", "run", "--epochs", "5").exit_code == 0
    kept = [(tmp_path / "run" / f"README-edited-{number}.md").read_text() for number in (1, 2)]
    assert kept == [f"{text}My own words.\n" for text in written[:2]]
    assert len(list((tmp_path / "run").glob("README*"))) == 3
    assert len({*written, card.read_text()}) == 4


@pytest.mark.parametrize("what", [(), ("--recipe", "quickstart"), ("--output", "new")])
def test_resume_has_nothing_to_resume_or_is_told_two_things(run_cli, tmp_path, what):
    outcome = run_cli("distill", "--resume", "nothing", *what)
    assert outcome.exit_code == 2
    assert "Error:" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_is_not_set_anew(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    outcome = run_cli("distill", "--resume", "run", "--set", "output=elsewhere")
    assert outcome.exit_code == 2
    assert "in its own folder" in outcome.stderr


@contextlib.contextmanager
def files_of_at_most(size):
    """The system allows this process no larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_message_and_keeps_what_there_is(run_cli, tmp_path):
    """The first checkpoint is larger than what the system allows, the run folder's other files are not."""
    with files_of_at_most(300_000):
        outcome = run_cli("distill", *SHORT, *EPOCHS, "--output", "run")
    assert outcome.exit_code == 2, outcome.stderr
    assert outcome.stderr.count("Error:") == 1
    assert "File too large" in outcome.stderr
    assert "TMPDIR" in outcome.stderr, "the student is saved to a temporary folder before it is trained"
    assert "Traceback" not in outcome.stderr


def test_a_checkpoint_that_does_not_fit_on_the_disk_keeps_the_earlier_ones(run_cli, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    with files_of_at_most(300_000):
        outcome = run_cli("distill", "--resume", "run", "--epochs", "3")
    assert outcome.exit_code == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000039", "step-00000040"]
    assert run_cli("distill", "--resume", "run", "--epochs", "3").exit_code == 0
