"""Runs as jobs of this machine, by submitit: what is printed, what a failing and a killed job come to, what is refused."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.experiments.cluster import Cluster, Jobs

RECIPE = """
teacher: none
student: {name: "cifar:resnet8", image_size: 16}
data: {name: demo:digits, workers: 0, train_images: 64}
train: {epochs: 1, batch_size: 32, device: cpu}
"""


@dataclass
class Killed:
    """Stands for a run whose machine fails."""

    path: Path

    @property
    def callback(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_sweep_of_jobs_ends_as_one_without(tmp_path, run_cli, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "empty").mkdir()
    arguments = ("sweep", "mine.yaml", "--seeds", "1", "--vary", "data.name=demo:digits,empty", "--output", "runs")
    outcome = run_cli(*arguments, "--cluster", "local", "--cluster-set", "timeout_min=5")
    assert outcome.exit_code == 2, outcome
    assert "mine-data.name=empty seed 0: failed: empty has no class folders." in outcome.stdout
    assert "1 of 2 runs failed" in outcome.stderr
    assert len(list((tmp_path / "runs").glob("mine-data.name=demo*/seed-0/result.json"))) == 1


def test_a_job_that_is_killed_is_told_with_its_log(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}")
    jobs = Jobs(Cluster("local"), None, tmp_path, command="kdcli sweep")
    ((run, ending, seconds),) = jobs.run(iter([Killed(tmp_path)]))
    assert run == Killed(tmp_path)
    assert seconds > 0
    assert "ended without a result" in ending.error.message
    assert Path(ending.error.hint.removeprefix("It says why: ")).is_file()


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("slum", [], "--cluster slum is not known"),
        (None, ["mem_gb=3"], "--cluster-set is for --cluster"),
        ("local", ["mem_gb"], "'mem_gb' is not KEY=VALUE"),
    ],
)
def test_what_is_no_cluster_is_refused(name, settings, told, monkeypatch):
    monkeypatch.setattr("kdcli.experiments.cluster.find_spec", lambda name: name)
    with pytest.raises(UserError, match=told):
        Cluster.parse(name, settings)


def test_without_submitit_and_with_settings_that_it_has_not_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kdcli.experiments.cluster.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs submitit") as caught:
        Cluster.parse("slurm", [])
    assert caught.value.hint == "pip install 'kdcli[slurm]'"
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match=r"--cluster local: .*memory"):
        Jobs(Cluster("local", {"memory": 3}), None, tmp_path, command="")
