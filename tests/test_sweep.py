"""What a sweep gives its worker processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from kdcli import sweep as module
from kdcli.config import parse_config
from kdcli.sweep import Sweep
from kdcli.variants import Variant


def make_sweep(*devices: str) -> Sweep:
    values = {"teacher": "none", "student": "test_resnet", "data": "demo:digits"}
    variants = [
        Variant(f"v{number}", "v", parse_config(values | {"train": {"device": device}}, source="t"))
        for number, device in enumerate(devices)
    ]
    return Sweep(Path("out"), tuple(variants), (0, 1))


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        (("auto", "cuda"), None, ["0", "1"]),
        (("auto",), "5,GPU-abc", ["5", "GPU-abc"]),
        (("auto", "cuda:1"), None, []),
        (("cpu",), None, []),
    ],
)
def test_gpus_are_shared_unless_a_run_names_its_device(monkeypatch, devices, visible, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = module._gpus(make_sweep(*devices))
    assert gpus == expected
    assert module._num_jobs(None, gpus) == max(len(expected), 1)


def test_each_worker_sees_one_gpu_and_has_its_share_of_the_cores(monkeypatch):
    seen = []

    class Context:
        def Pipe(self):
            return object(), type("End", (), {"close": lambda self: None})()

        def Process(self, **_):
            names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
            start = lambda self: seen.append([os.environ.get(name) for name in names])  # noqa: E731
            return type("Process", (), {"start": start})()

    monkeypatch.setattr(module.multiprocessing, "get_context", lambda _: Context())
    monkeypatch.setattr(module, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    workers = module._Workers(3, ["5", "7"], command="", verbose=False)
    for number in range(3):
        workers._start(number)
    assert seen == [["5", "2"], ["7", "2"], ["5", "2"]]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    module._Workers(2, [], command="", verbose=False)._start(0)
    assert seen[-1] == ["5,7", "3"]


def test_runs_go_seed_by_seed():
    assert [run.label for run in make_sweep("cpu", "auto").runs] == ["v0 seed 0", "v1 seed 0", "v0 seed 1", "v1 seed 1"]
