"""Several training processes: the same result as one, one message where one of them fails, and no orphan."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import kdcli.machine.launch
from kdcli.base.errors import UserError
from kdcli.machine.launch import _leave, _raise_first_error

# A student without batch statistics: on a CPU there is no batch normalisation over all processes.
OPTIONS = (
    *("--teacher", "random:test_efficientnet", "--student", "test_vit", "--data", "demo:digits", "--device", "cpu"),
    *("--batch-size", "32", "--epochs", "2", "--set", "data.workers=0"),
    *("--set", "data.labels_per_class=20", "--set", "data.train_images=320"),
    *("--set", "student.image_size=32", "--set", "teacher.image_size=32"),
    *("--set", "augment.mixup=0.2", "--set", "augment.cutmix=1.0"),
)
METHODS = {
    "inverted": (),
    "orthogonal-whitened": (
        "--set",
        "methods=[{method: supervised}, {method: projection, projector: orthogonal, normalize: whiten,"
        " normalize_student: standardize, lr_scale: 0.1}, {method: spectral_regularization}]",
    ),
    "maps-and-memory": (
        *("--set", "augment.mixup=0", "--set", "augment.cutmix=0", "--set", "optim.lr=1e-4"),
        "--set",
        "methods=[{method: supervised}, {method: projection, projector: inverted}, {method: review_kd},"
        " {method: crd, negatives: 64}, {method: vid, projector: orthogonal, layers: ['blocks.3:blocks.3']}]",
    ),
}


def start(*arguments: str | Path, launcher: tuple[str, ...] = ("-m", "kdcli")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
    )  # fmt: skip


def finish(*arguments: str | Path) -> str:
    process = start("distill", *arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def assert_close(first: Path, second: Path) -> None:
    """Compare student, projectors and their spectra by root mean squares: AdamW turns rounding into single larger steps."""
    for name in ("student/model.safetensors", "projector.safetensors", "spectra.safetensors"):
        one, two = load_file(first / name), load_file(second / name)
        assert one.keys() == two.keys()
        for key, value in one.items():
            difference, size = (values.double().square().mean().sqrt() for values in (value - two[key], value))
            assert difference <= 3e-4 + 1e-3 * size, f"{name} {key}: {difference:.2e} apart, {size:.2e} in size"


def events(run: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["event"], line["step"]) for line in lines]


def metrics(run: Path, event: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, run_cli_in):
    """The run of one process; not to be changed."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_cli_in("distill", *OPTIONS, "--output", "run", cwd=folder).exit_code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def broken_photos(tmp_path_factory, make_photos_in):
    """In each split the first and the last file are broken: with batches of two, other processes meet them."""
    splits = {f"{split}/{name}": 8 for split in ("train", "val", "test") for name in ("apple", "sky")}
    photos = make_photos_in(tmp_path_factory.mktemp("broken") / "photos", splits)
    broken = [photos / split / name for split in ("train", "val", "test") for name in ("apple/00.jpg", "sky/07.png")]
    for file in broken:
        file.write_bytes(b"no image")
    return photos, broken


@pytest.fixture(scope="module")
def in_two(tmp_path_factory, run_in_two_processes, broken_photos):
    """The runs of this module that two processes bring to their end: their folder, and what was printed."""
    folder = tmp_path_factory.mktemp("in-two")
    commands = {name: (*OPTIONS, *METHODS[name]) for name in METHODS}
    commands["baseline"] = (*OPTIONS, "--epochs", "1", "--baseline", "--checkpoint-every", "1")
    commands["broken"] = (
        *("--teacher", "none", "--student", "test_vit", "--data", broken_photos[0], "--device", "cpu"),
        *("--set", "student.image_size=32", "--set", "data.workers=0", "--epochs", "1", "--batch-size", "2"),
    )
    runs = [("distill", *options, "--output", folder / name) for name, options in commands.items()]
    return folder, dict(zip(commands, run_in_two_processes(runs), strict=True))


@pytest.mark.parametrize("methods", METHODS)
def test_two_processes_train_as_one(run_cli, tmp_path, alone, in_two, methods):
    """20 steps on few labels with mixing, losses over batch statistics: as in one process, up to rounding."""
    one = alone
    if METHODS[methods]:
        assert run_cli("distill", *OPTIONS, *METHODS[methods], "--output", "one").exit_code == 0
        one = tmp_path / "one"
    folder, outputs = in_two
    two, output = folder / methods, outputs[methods]
    assert output.count("Plan:") == output.count("Result") == 1, "only the main process prints"
    assert_close(one, two)
    assert events(one) == events(two)
    assert metrics(one, "validation")[-1]["step"] >= 20
    for event in ("train", "validation", "test"):
        for first, second in zip(metrics(one, event), metrics(two, event), strict=True):
            for key in first.keys() - {"event", "images_per_second", "data_wait"}:
                assert first[key] == pytest.approx(second[key], rel=2e-3, abs=1e-4), (event, key)
    assert (two / "result.json").exists()


def test_two_processes_train_the_baseline_too(in_two):
    """With a checkpoint of the very last step as well, which only one of them writes."""
    folder, outputs = in_two
    assert "student alone" in outputs["baseline"]
    runs = ("baseline", "baseline/baseline")
    steps = [json.loads((folder / name / "result.json").read_text())["steps"] for name in runs]
    assert steps[0] == steps[1] > 0


def test_what_any_process_can_not_read_is_named_and_counted(in_two, broken_photos):
    folder, outputs = in_two
    _, broken = broken_photos
    assert json.loads((folder / "broken" / "result.json").read_text())["skipped"] == len(broken)
    for file in broken:
        assert outputs["broken"].count(f"Skipped an unreadable image: {file}") == 1


def test_a_run_goes_on_in_two_processes_and_then_in_one(tmp_path, alone):
    run = tmp_path / "run"
    for processes, steps in (("1", 1), ("2", 10)):
        command = ("--resume", run) if run.exists() else (*OPTIONS, "--output", run)
        process = start("distill", *command, "--num-processes", processes, "--checkpoint-every", "1")
        wait_for_step(run, steps, process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
        assert process.returncode == 143, output
        assert "Traceback" not in output
        assert output.count("Go on with: kdcli distill --resume") == 1, output
    finish("--resume", run, "--num-processes", "1")
    assert_close(alone, run)
    assert events(alone) == events(run)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    while max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Return the processes whose parent is ``pid``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text() if entry.name.isdigit() else ""
        except OSError:  # it has ended meanwhile
            continue
        if stat and int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    while any(map(is_alive, pids)):
        time.sleep(0.05)


@pytest.fixture
def training(tmp_path):
    """A launcher whose two workers are training; with their process ids, by rank."""
    run = tmp_path / "run"
    arguments = ("--epochs", "100", "--num-processes", "2", "--checkpoint-every", "1")
    process = start("distill", *OPTIONS, *arguments, "--output", run)
    wait_for_step(run, 2, process)
    workers = {}
    for pid in children(process.pid):
        variables = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(b"RANK="):
                workers[int(variable[5:])] = pid
    assert set(workers) == {0, 1}
    yield process, workers, run
    process.kill()


def test_a_worker_that_dies_ends_all_with_one_message(training):
    process, workers, run = training
    os.kill(workers[1], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert output.count("Error:") == 1
    assert "Training process 1 was ended by SIGKILL" in output
    assert "Traceback" not in output
    wait_until_gone(list(workers.values()))
    assert any((run / "checkpoints").iterdir())


def test_a_launcher_that_dies_leaves_no_orphans(training):
    process, workers, _ = training
    process.kill()
    wait_until_gone(list(workers.values()))


def test_a_lost_connection_is_the_word_where_there_is_no_better(tmp_path):
    """The other process was ended by the launcher and left no word."""
    (tmp_path / "1.json").write_text(json.dumps({"message": "lost", "hint": "h", "is_cause": False}))
    with pytest.raises(UserError, match="lost"):
        _raise_first_error(tmp_path, {0: -signal.SIGTERM, 1: 2})
    _raise_first_error(tmp_path, {0: 1, 1: 2})  # the first has printed its traceback


def test_an_error_that_is_being_written_is_not_read(tmp_path, monkeypatch):
    """The launcher looks in the middle of the writing: it finds no half file, and afterwards the whole one."""
    looks = []
    original = Path.write_text

    def write_text(self, text, **options):
        original(self, text[: len(text) // 2], **options)
        looks.append(_raise_first_error(tmp_path, {0: 2}))
        return original(self, text, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    _leave(tmp_path, UserError("no such data", "look"), is_cause=True)
    assert looks == [None]
    with pytest.raises(UserError, match="no such data"):
        _raise_first_error(tmp_path, {0: 2})


def test_an_error_that_can_not_be_left_is_said_by_the_worker_itself(tmp_path):
    with pytest.raises(UserError, match="no such data"):
        _leave(tmp_path / "gone", UserError("no such data", "look"), is_cause=True)


def test_a_users_error_in_the_workers_is_one_message(tmp_path):
    process = start(
        "distill", *OPTIONS, "--set", "optim.optimizer=adamm", "--num-processes", "2", "--output", tmp_path / "r"
    )
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert output.count("Error:") == 1
    assert "no optimiser 'adamm'" in output
    assert "Traceback" not in output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("launched", [False, True])
def test_a_batch_that_can_not_be_shared_is_said_before_anything_else(run_cli, tmp_path, monkeypatch, launched):
    processes = ("--num-processes", "2")
    if launched:
        monkeypatch.setattr(kdcli.machine.launch, "is_launched", lambda: True)
        monkeypatch.setenv("WORLD_SIZE", "2")
        processes = ()
    outcome = run_cli("distill", *OPTIONS, "--batch-size", "31", *processes, "--output", "r")
    assert outcome.exit_code == 2
    assert "A batch of 31 can't be shared evenly by 2 processes" in outcome.stderr
    assert "--batch-size 32" in outcome.stderr
    assert not (tmp_path / "r").exists()


def test_more_processes_than_cores_are_refused(run_cli, tmp_path):
    outcome = run_cli("distill", *OPTIONS, "--num-processes", "5000", "--output", "run")
    assert outcome.exit_code == 2
    assert "--num-processes 5000, and there are" in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_two_machines_of_accelerates_launcher(tmp_path, alone):
    """Two launchers on loopback, a process each, as on two machines."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2")
    where = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(port))
    nodes = [
        start("-m", "kdcli", "distill", *OPTIONS, "--output", tmp_path / "run",
              launcher=(*launcher, *where, "--machine_rank", str(number)))
        for number in range(2)
    ]  # fmt: skip
    outputs = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "Plan:" in outputs[0]
    assert "Plan:" not in outputs[1]
    assert_close(alone, tmp_path / "run")
