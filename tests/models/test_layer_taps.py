"""Layers as taps: their pooled outputs against what a pass by hand gives, and no more computed than they need."""

import copy

import pytest
import torch
import transformers

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.models import TeacherConfig
from kdcli.models import load_teacher
from kdcli.models.taps import last_of


def load(name):
    return load_teacher(TeacherConfig(name=name), seed=0)


def output_of(model, layer, images):
    """What ``layer`` returns, taken by a hook of our own."""
    seen = []
    handle = model.module.get_submodule(layer).register_forward_hook(lambda m, i, output: seen.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def images_for(model):
    return torch.randn(2, 3, *model.facts.preprocessing.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "layer", "pool"),
    [
        ("random:test_resnet", "layer2", lambda x: x.flatten(2).mean(2)),
        ("random:tf_efficientnet_lite0", "blocks.4", lambda x: x.flatten(2).mean(2)),
        ("random:test_vit", "blocks.1", lambda x: x[:, 1:].mean(1)),  # without the class token
        ("random:test_vit", "head", lambda x: x),
        ("random:swin_tiny_patch4_window7_224", "layers.1", lambda x: x.flatten(1, 2).mean(1)),  # channels last
    ],
)
def test_a_timm_layer_is_pooled_over_its_positions(name, layer, pool):
    model = load(name)
    model.open_taps([layer])
    images = images_for(model)
    expected = pool(output_of(model, layer, images))
    with torch.no_grad():
        got = model(images, Reads((layer, "pooled"), heads=("logits",)))
        alone = model(images, Reads((layer,)))
    assert model.facts.feature_dims[layer] == expected.shape[1]
    torch.testing.assert_close(got.features[layer], expected)
    torch.testing.assert_close(alone.features[layer], expected)
    assert set(got.features) == {layer, "pooled"}
    assert alone.logits is None
    assert set(alone.features) == {layer}


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_transformers_layer_is_pooled_over_its_patches(vit_folder):
    model = load(str(vit_folder))
    (layer,) = [name for name, module in model.module.named_modules() if name.endswith("layers.0")]
    model.open_taps([layer])
    images = images_for(model)
    expected = output_of(model, layer, images)[:, 1:].mean(1)
    with torch.no_grad():
        torch.testing.assert_close(model(images, Reads((layer,))).features[layer], expected)
        both = model(images, Reads((layer, "embedding"), heads=("logits",)))
    torch.testing.assert_close(both.features[layer], expected)
    assert set(both.features) == {layer, "embedding"}
    assert both.logits.shape == (2, 3)


def test_nothing_after_the_last_tapped_layer_runs():
    model = load("random:test_resnet")
    model.open_taps(["layer1", "layer2"])
    ran = []
    for name in ("layer1", "layer2", "layer3"):
        model.module.get_submodule(name).register_forward_pre_hook(lambda m, i, name=name: ran.append(name))
    images = images_for(model)
    model(images, Reads(("layer1",)))
    assert ran == ["layer1"]
    ran.clear()
    model(images, Reads(("layer2", "layer1")))
    assert ran == ["layer1", "layer2"]
    ran.clear()
    model(images, Reads(("layer1",), heads=("logits",)))
    assert ran == ["layer1", "layer2", "layer3"]


def test_gradients_flow_through_a_tap_and_a_copy_has_taps_of_its_own():
    model = load("random:test_resnet").requires_grad_(True)
    model.open_taps(["layer2"])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    images = images_for(model)
    first = model(images, Reads(("layer2",), heads=("logits",))).features["layer2"]
    second = twin(images, Reads(("layer2",), heads=("logits",))).features["layer2"]
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first, model(images, Reads(("layer2",))).features["layer2"])
    first.sum().backward()
    assert model.module.layer1[0].conv1.weight.grad is not None
    assert model.module.layer4[0].conv1.weight.grad is None
    assert set(model.state_dict()) == set(twin.state_dict())
    assert not any("tap" in name for name in model.state_dict())


def test_opening_twice_or_opening_a_built_in_tap_changes_nothing():
    model = load("random:test_resnet")
    model.open_taps(["layer2", "pooled"])
    hooks = len(last_of(model.module.layer2)._forward_hooks)
    dims = dict(model.facts.feature_dims)
    model.open_taps(["layer2", "embedding", "layer2"])
    assert dict(model.facts.feature_dims) == dims
    assert len(last_of(model.module.layer2)._forward_hooks) == hooks == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [("layr2", "no layer 'layr2'. Did you mean"), ("blocks.99", "no layer 'blocks.99'")],
)
def test_an_unknown_layer_is_refused(layer, message):
    with pytest.raises(UserError, match=message) as caught:
        load("random:test_resnet").open_taps([layer])
    assert "layer1" in caught.value.hint


def test_a_layer_that_runs_twice_is_refused():
    model = load("random:test_resnet")
    block = model.module.layer1[0]
    block.act2 = block.act1  # one module in two places
    with pytest.raises(UserError, match=r"'layer1.0.act1' runs 2 times"):
        model.open_taps(["layer1.0.act1"])
    assert "layer1.0.act1" not in model.facts.feature_dims


def test_a_layer_without_features_of_the_image_is_refused():
    with pytest.raises(UserError, match=r"returns a tensor of shape .*, not features of the image"):
        load("random:test_vit").open_taps(["blocks.0.attn.q_norm"])  # (1, heads, tokens, width of a head)
