"""Costs, against published numbers and against counting by hand."""

import time

import pytest
import torch
from torch import nn

from kdcli.config import StudentConfig
from kdcli.models import build_student
from kdcli.models.measure import measure, time_passes


@pytest.mark.parametrize(
    ("name", "published"),
    [("deit_tiny_patch16_224", 1.26e9), ("resnet50", 4.1e9), ("mobilenetv3_small_100", 56e6)],
)
def test_macs_are_those_published(name, published):
    model = build_student(StudentConfig(name=name), label_names=[str(i) for i in range(1000)], seed=0)
    assert model.facts.macs == pytest.approx(published, rel=0.03)


def test_a_small_network_by_hand():
    """conv 3->4, 3x3 on 8x8 without padding: 6*6 places * 4 * 27; linear 144 -> 5.

    Kept for backward: the image (3*8*8), the input of the ReLU's backward (its result, 4*6*6) which is also, flattened,
    the linear layer's input: one storage.
    """
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    image = torch.randn(1, 3, 8, 8)
    found = measure(network, lambda: network(image))
    assert found.macs == 36 * 4 * 27 + 144 * 5
    assert found.activation_bytes == 4 * (3 * 8 * 8 + 4 * 6 * 6)
    torch.testing.assert_close(found.result, network(image))


def test_experts_by_hand():
    """Six rows, four for the first expert and two for the second: each is multiplied by one matrix, 8 -> 16."""
    experts = nn.Module()
    experts.weight = nn.Parameter(torch.randn(2, 8, 16))
    rows = torch.randn(6, 8)
    ends = torch.tensor([4, 6], dtype=torch.int32)
    found = measure(experts, lambda: torch.nn.functional.grouped_mm(rows, experts.weight, offs=ends))
    assert found.macs == 6 * 8 * 16
    torch.testing.assert_close(found.result[4:], rows[4:] @ experts.weight[1])


def test_nothing_is_disturbed():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    network[0].requires_grad_(False)
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    measure(network, lambda: network(torch.randn(1, 3, 8, 8)))
    assert torch.equal(torch.get_rng_state(), state)
    assert (network.training, network[1].training, network[2].training) == (True, False, True)
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_frozen_models_cost_the_same():
    network = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    image = torch.randn(1, 8)
    first = measure(network, lambda: network(image)).activation_bytes
    network.requires_grad_(False)
    assert measure(network, lambda: network(image)).activation_bytes == first > 0


def test_timed_passes_are_counted_and_bounded():
    calls = []

    def forward():
        assert torch.is_inference_mode_enabled()
        calls.append(None)
        if len(calls) == 4:
            time.sleep(0.2)

    cpu = torch.device("cpu")
    times = time_passes(forward, device=cpu, most=9, seconds=0.1, warm_up=2)
    assert len(calls) == 4, "two to warm up, a quick one, and the one that used up the time"
    assert len(times) == 2
    assert times[1] >= 0.2 > times[0]
    calls.clear()
    assert len(time_passes(lambda: calls.append(None), device=cpu, most=5, seconds=60)) == 5
    assert len(calls) == 6
    calls.clear()
    assert len(time_passes(forward, device=cpu, most=9, seconds=0.1, fewest=6)) == 6
