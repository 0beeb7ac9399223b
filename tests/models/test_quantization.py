"""Teachers in 8 and 4 bits: what they give, what they weigh and what is refused."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.models import TeacherConfig
from kdcli.models import load_teacher
from kdcli.models.measure import measure
from kdcli.models.quantization import follow
from kdcli.training.provenance import weights_digest


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=8,
        num_labels=3, initializer_range=0.2,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def load(folder, quantization=None):
    return load_teacher(TeacherConfig(name=str(folder), quantization=quantization), seed=0)


@pytest.mark.parametrize(("quantization", "error", "bits"), [("int8", 0.03, 8), ("int4", 0.3, 4)])
def test_a_quantised_teacher_says_nearly_the_same(vit_folder, quantization, error, bits):
    pytest.importorskip("bitsandbytes")
    plain, packed = load(vit_folder), load(vit_folder, quantization)
    images = plain.example(8)
    reads = Reads(("pooled",), heads=("logits",))
    with torch.no_grad():
        expected, got = plain(images, reads), packed(images, reads)
        for name in ("pooled", "embedding"):
            assert packed.facts.feature_dims[name] == plain.facts.feature_dims[name]
        for value, wanted in ((got.features["pooled"], expected.features["pooled"]), (got.logits, expected.logits)):
            assert value.dtype == torch.float32
            assert 0 < (value - wanted).norm() / wanted.norm() < error
        torch.testing.assert_close(copy.deepcopy(packed)(images).logits, got.logits, rtol=0, atol=0)
        torch.testing.assert_close(packed.to("cpu")(images).logits, got.logits, rtol=0, atol=0)
    assert packed.facts.num_parameters == plain.facts.num_parameters
    assert packed.facts.macs == plain.facts.macs == measure(plain.module, lambda: plain(images[:1])).macs
    layers = [m for m in plain.module.vit.layers.modules() if isinstance(m, torch.nn.Linear)]
    saved = sum(layer.weight.numel() for layer in layers) * (32 - bits) // 8
    assert packed.facts.weight_bytes == pytest.approx(4 * plain.facts.num_parameters - saved, rel=0.1)
    assert packed.facts.weights.endswith(f", in {quantization}")
    digest = weights_digest(packed)
    assert digest == weights_digest(load(vit_folder, quantization)) != weights_digest(plain)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_resnet", "it is a model of timm, and transformers' quantisation is for its own"),
        ("random:FOLDER", "it is untrained"),
    ],
)
def test_what_cannot_be_quantised_is_refused(name, why, vit_folder):
    with pytest.raises(UserError, match=f"teacher.quantization is set, and .* can't have it: {why}"):
        load(name.replace("FOLDER", str(vit_folder)), "int8")


def test_all_of_a_layer_is_where_its_weight_is():
    """What moves between devices is told by a stand-in: the tests have one device."""
    parts = {"CB": torch.zeros(2), "SCB": torch.ones(2)}
    weight = SimpleNamespace(device=torch.device("meta"), CB=None, SCB=torch.ones(2))
    layer = SimpleNamespace(weight=weight, state=SimpleNamespace(**parts))
    follow(layer, ())
    assert layer.state.CB.device == layer.state.SCB.device == weight.SCB.device == torch.device("meta")
    assert weight.CB is None


def test_without_the_package_it_is_refused_with_how_to_get_it(vit_folder, monkeypatch):
    monkeypatch.setattr("kdcli.models.quantization.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="needs bitsandbytes") as error:
        load(vit_folder, "int4")
    assert error.value.hint == "pip install 'kdcli[quantization]'"
