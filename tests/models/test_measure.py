"""Costs, against published numbers and against counting by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig
from kdcli.models import build_student
from kdcli.models.measure import measure, time_passes


@pytest.mark.parametrize(
    ("name", "published"),
    [("deit_tiny_patch16_224", 1.26e9), ("resnet50", 4.1e9), ("mobilenetv3_small_100", 56e6)],
)
def test_macs_are_those_published(name, published):
    model = build_student(StudentConfig(name=name), DataFacts.of_labels([str(i) for i in range(1000)]), seed=0)
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


Q, K, V = (2, 4, 10, 8), (2, 2, 10, 8), (2, 2, 10, 16)  # batch, heads, positions, width
ATTENTION = {  # the shapes, options, and multiply-accumulates by hand
    "plain": ((Q, Q, Q), {}, 2 * 4 * 10 * 10 * (8 + 8)),
    "causal": ((Q, Q, Q), {"is_causal": True}, 2 * 4 * 10 * 10 * (8 + 8)),
    "masked": ((Q, Q, Q), {"attn_mask": torch.zeros(10, 10)}, 2 * 4 * 10 * 10 * (8 + 8)),
    "learnt bias": ((Q, Q, Q), {"attn_mask": nn.Parameter(torch.ones(1, 4, 10, 10))}, 2 * 4 * 10 * 10 * (8 + 8)),
    "grouped queries": ((Q, K, K), {"enable_gqa": True}, 2 * 4 * 10 * 10 * (8 + 8)),
    "grouped queries, wide values": ((Q, K, V), {"enable_gqa": True}, 2 * 4 * 10 * 10 * (8 + 16)),
    "one query": (((2, 4, 1, 8), Q, Q), {}, 2 * 4 * 1 * 10 * (8 + 8)),
    "without a batch": ((Q[1:], Q[1:], Q[1:]), {}, 4 * 10 * 10 * (8 + 8)),
}


@pytest.mark.parametrize("kernel", ["fused", "math", "meta", "eager"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_by_hand(case, kernel):
    """Heads of queries x queries x keys x (width of keys + width of values), whichever kernel runs.

    Several heads of queries share the keys' heads where those are fewer. Masks save nothing.
    """
    shapes, options, expected = ATTENTION[case]
    device = "meta" if kernel == "meta" else "cpu"
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    query, key, value = (torch.ones(shape, device=device, requires_grad=True) for shape in shapes)

    def eager():
        keys, values = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        return (query @ keys.mT).softmax(-1) @ values

    def torchs_own():
        with sdpa_kernel([SDPBackend.MATH] if kernel == "math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            return nn.functional.scaled_dot_product_attention(query, key, value, **options)

    assert measure(nn.Module(), eager if kernel == "eager" else torchs_own).macs == expected


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("flash_attention", ()),
        ("efficient_attention", (None, False)),
        ("cudnn_attention", (None, False)),
        ("flash_attention_for_cpu", ()),
    ],
)
def test_kernels_of_other_devices_by_hand(name, more):
    """Two heads of keys for four of queries: as above."""
    kernel = getattr(torch.ops.aten, f"_scaled_dot_product_{name}")
    query, key = torch.ones(Q, device="meta"), torch.ones(K, device="meta")
    assert measure(nn.Module(), lambda: kernel(query, key, key, *more)).macs == 2 * 4 * 10 * 10 * (8 + 8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_small_vit_by_hand(hf_folder, attention):
    """Image 32, patches of 8: 16 and the class token, N = 17; width 32, MLP 48, two blocks, three classes.

    Patches 16 * 32 * (3*8*8) = 98,304. Each block: queries, keys, values and output 4 * 17 * 32 * 32 = 69,632,
    attention 2 * 17 * 17 * 32 = 18,496, MLP 2 * 17 * 32 * 48 = 52,224: 140,352. Classifier 32 * 3 = 96.
    """
    from transformers import ViTForImageClassification

    module = ViTForImageClassification.from_pretrained(hf_folder, attn_implementation=attention)
    found = measure(module, lambda: module(torch.zeros(1, 3, 32, 32)))
    assert found.macs == 98_304 + 2 * 140_352 + 96


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_by_hand(kind, gates, device):
    """Seven steps of two sequences; each gate multiplies the input, 16 wide, and the state, 32 wide."""
    layer = kind(16, 32, batch_first=True, device=device)
    inputs = torch.zeros(2, 7, 16, device=device)
    assert measure(layer, lambda: layer(inputs)).macs == 2 * 7 * gates * 32 * (16 + 32)


def test_a_matrix_and_a_vector_by_hand():
    matrices, vector = torch.zeros(2, 7, 16), torch.zeros(16)
    assert measure(nn.Module(), lambda: matrices @ vector).macs == 2 * 7 * 16


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


def test_timed_passes_are_counted_and_bounded(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr("kdcli.models.measure.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def forward():
        assert torch.is_inference_mode_enabled()
        calls.append(None)
        now[0] += 0.25 if len(calls) == 4 else 0.0625

    cpu = torch.device("cpu")
    times = time_passes(forward, device=cpu, most=9, seconds=0.1, warm_up=2)
    assert len(calls) == 4, "two to warm up, a quick one, and the one that used up the time"
    assert times.tolist() == [0.0625, 0.25]
    calls.clear()
    assert len(time_passes(lambda: calls.append(None), device=cpu, most=5, seconds=60)) == 5
    assert len(calls) == 6
    calls.clear()
    assert len(time_passes(forward, device=cpu, most=9, seconds=0.1, fewest=6)) == 6
