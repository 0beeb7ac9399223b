"""What a sweep gives its worker processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from kdcli.base.result import Result
from kdcli.config.parse import parse_config
from kdcli.config.training import EmbeddingConfig
from kdcli.experiments import ranking
from kdcli.experiments import workers as workers_module
from kdcli.experiments.sweep import Sweep
from kdcli.experiments.variants import Variant
from kdcli.results.compare import Run, compare_runs
from kdcli.runs.folder import RunFolder


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
    gpus = workers_module.gpus_for([variant.config for variant in make_sweep(*devices).variants])
    assert gpus == expected
    assert workers_module.num_workers(None, gpus) == max(len(expected), 1)


def test_each_worker_sees_one_gpu_and_has_its_share_of_the_cores(monkeypatch):
    seen = []

    class Context:
        def Pipe(self):
            return object(), type("End", (), {"close": lambda self: None})()

        def Process(self, **_):
            names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
            start = lambda self: seen.append([os.environ.get(name) for name in names])  # noqa: E731
            return type("Process", (), {"start": start})()

    monkeypatch.setattr(workers_module.multiprocessing, "get_context", lambda _: Context())
    monkeypatch.setattr(workers_module, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    workers = workers_module.Workers(3, ["5", "7"], command="", verbose=False)
    for number in range(3):
        workers._start(number)
    assert seen == [["5", "2"], ["7", "2"], ["5", "2"]]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    workers_module.Workers(2, [], command="", verbose=False)._start(0)
    assert seen[-1] == ["5,7", "3"]


def test_runs_go_seed_by_seed():
    assert [run.label for run in make_sweep("cpu", "auto").runs] == ["v0 seed 0", "v1 seed 0", "v0 seed 1", "v1 seed 1"]


def test_a_run_in_two_stages_with_a_baseline_is_finished(tmp_path):
    """Its recipe leaves the first stage's epochs to the plan, and the baseline has those of both."""
    values = {"teacher": "test_vit", "student": "test_resnet", "data": "demo:digits", "baseline": True}
    recipe = parse_config(values | {"method": "refilled", "train": {"epochs": 2}}, source="t")
    resolved = recipe.model_copy(update={"method": None, "embedding": EmbeddingConfig(epochs=3)})
    (run,) = Sweep(tmp_path, (Variant("v", "v", recipe),), (0,)).runs
    result = Result(validation={}, test={}, steps=1, seconds=1.0, skipped=0)
    for path, config in ((run.path, resolved), (run.path / "baseline", resolved.alone())):
        assert not run.is_finished
        path.mkdir(parents=True)
        folder = RunFolder(path)
        folder.write_config(config)
        folder.write_result(result)
    assert run.is_finished


def test_variants_with_other_metrics_are_not_ranked_among_one_another():
    sweep = make_sweep("cpu", "cpu", "cpu")
    metrics = [{"accuracy": 0.5, "loss": 1.0}, {"ncm_accuracy": 0.9}, {"accuracy": 0.75, "loss": 2.0}]
    runs = [
        Run(
            run.path, run.label, run.seed, {"task": "image-classification", "variant": run.variant.name},
            {f"validation {name}": value for name, value in metrics[sweep.variants.index(run.variant)].items()},
            {}, True, run.variant.name,
        )
        for run in sweep.runs
    ]  # fmt: skip
    _, rows, best = ranking.rank_variants(sweep, compare_runs(runs))
    assert [row[1:4] for row in rows] == [
        ["1", "v2", "validation accuracy"],
        ["2", "v0", "validation accuracy"],
        ["-", "v1", "validation ncm_accuracy: not to be compared"],
    ]
    assert best == ["Best variant of v: v2 (validation accuracy 0.7500, 2 seeds)"]


def test_features_alone_are_ranked_by_nearest_class_means():
    sweep = make_sweep("cpu", "cpu")
    runs = [
        Run(
            run.path, run.label, run.seed, {"task": "image-classification", "variant": run.variant.name},
            {"validation ncm_accuracy": 0.5 + 0.25 * sweep.variants.index(run.variant)}, {}, True, run.variant.name,
        )
        for run in sweep.runs
    ]  # fmt: skip
    _, rows, _ = ranking.rank_variants(sweep, compare_runs(runs))
    assert [(row[2], row[5]) for row in rows] == [("v1", "-"), ("v0", "-")], "there is no loss"
