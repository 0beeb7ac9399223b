"""``kdcli bench``: the parts of a step, the loop beside it, memory; nothing is left behind."""

from __future__ import annotations

import json

import pytest

from kdcli.config.models import TeacherConfig
from kdcli.experiments.bench import measure
from kdcli.machine import memory
from kdcli.models import load_teacher

PAIR = ("bench", "--teacher", "random:cifar:resnet20", "--student", "cifar:resnet8")
FEW = ("--steps", "1", "--repeats", "2", "--batch-size", "8", "--device", "cpu")
pytestmark = pytest.mark.usefixtures("few_digits")


def test_what_is_measured_is_told_whole(run_cli, tmp_path):
    outcome = run_cli(*PAIR, *FEW, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert [*found["parts"]] == [
        "data", "teacher", "student forward", "projector and losses", "backward", "optimiser", "other",
    ]  # fmt: skip
    assert sum(part["wall"] for part in found["parts"].values()) == pytest.approx(found["whole_step"]["wall"])
    assert found["throughput"] == pytest.approx(8 / found["whole_step"]["wall"])
    macs = {
        name: load_teacher(TeacherConfig(name=f"random:cifar:{name}"), seed=0, task="image-classification").facts.macs
        for name in ("resnet20", "resnet8")
    }
    # The student's head has ten classes in place of a hundred.
    assert found["macs"] == 8 * (macs["resnet20"] + 3 * (macs["resnet8"] - 64 * 90))
    rate = found["macs"] / found["ready_step"]["cpu"] / found["matmul_macs_per_second"]
    assert found["matmul_share"] == pytest.approx(rate)
    ratio = found["hand_written"]["times_ours"]
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert found["teacher_at_hand_step"]["cpu"] > 0
    assert found["peak_bytes"] > 2**20
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_what_a_cache_would_save(run_cli):
    outcome = run_cli(*PAIR, *FEW, "--no-largest")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.startswith("No --data: taking demo:digits")
    for words in ("written by hand", "A cache of the teacher's outputs would save", "not looked for"):
        assert words in outcome.stdout


def test_a_task_with_batches_of_its_own_has_no_loop_written_by_hand(run_cli):
    outcome = run_cli(
        *("bench", "--task", "semantic-segmentation", "--teacher", "none", "--data", "demo:scenes", "--json"),
        *("--student", "smp:unet/mobilenetv3_small_050", "--set", "student.image_size=32", *FEW, "--no-largest"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["hand_written"]["step"] is None
    assert "semantic-segmentation has a loss and batches of its own" in found["hand_written"]["why_not"]
    assert found["teacher_at_hand_step"] is None
    assert "teacher" not in found["parts"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0"), "--steps 0 is less than 1"),
        (("--set", "episodes.ways=2", "--set", "episodes.shots=2"), "Episodes train many small students"),
        (("--teacher", "random:nothing"), "nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused(run_cli, arguments, message):
    outcome = run_cli(*PAIR, *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


@pytest.mark.parametrize(
    ("limit", "most", "expected"), [(100, 1000, (94, 100)), (5, 1000, (5, 5)), (10**6, 50, (50, 50)), (0, 9, None)]
)
def test_a_batch_is_tried_until_memory_runs_out(monkeypatch, limit, most, expected):
    """Found to a sixteenth, and never one that does not fit."""
    from types import SimpleNamespace

    import torch

    tried = []

    def train_at(trainer, size):
        def work():
            tried.append(size)
            if size > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return work

    monkeypatch.setattr(measure, "_train_at", train_at)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    config = SimpleNamespace(train=SimpleNamespace(batch_size=8))
    trainer = SimpleNamespace(
        job=SimpleNamespace(config=config),
        team=SimpleNamespace(device=torch.device("cpu")),
        objective=SimpleNamespace(zero_grad=lambda **_: None),
    )
    found, _ = measure._largest_by_trying(trainer, most)
    if expected is None:
        assert found is None
    else:
        assert expected[0] <= found <= expected[1]
    assert len(tried) < 20


def test_the_peak_is_that_of_the_work_alone():
    import torch

    device = torch.device("cpu")
    if not memory.forgets_peaks(device):
        pytest.skip("this system does not forget earlier peaks")
    before = memory.peak_memory(lambda: None, device)
    large = memory.peak_memory(lambda: torch.ones(64 * 2**20 // 4), device)
    after = memory.peak_memory(lambda: None, device)
    assert large - before == pytest.approx(64 * 2**20, rel=0.1)
    assert after - before < 16 * 2**20
