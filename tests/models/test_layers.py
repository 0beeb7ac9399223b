"""The list of layers: what each entry says against the tap itself, order, numbers."""

from __future__ import annotations

import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.config.models import TeacherConfig
from kdcli.models import load_teacher
from kdcli.models.layers import list_layers, resolve_indices


def load(name, size=None):
    return load_teacher(TeacherConfig(name=f"random:{name}", image_size=size), seed=0)


def test_stages_and_blocks_of_a_cifar_network():
    layers = list_layers(load("cifar:wrn_16_2"))
    stages = [
        (name, width, (side, side))
        for stage, width, side in ((1, 32, 32), (2, 64, 16), (3, 128, 8))
        for name in (f"block{stage}.0", f"block{stage}.1", f"block{stage}")
    ]
    expected = [("conv1", 16, (32, 32)), *stages, ("bn1", 128, (8, 8))]
    assert [(layer.name, layer.width, layer.grid) for layer in layers] == expected
    assert layers[0].kind == "Conv2d"


def test_tokens_are_counted_without_the_class_token():
    layers = list_layers(load("test_vit"))
    assert [layer.name for layer in layers] == ["patch_embed", *(f"blocks.{n}" for n in range(6)), "blocks", "norm"]
    assert {layer.grid for layer in layers} == {(10, 10)}


def test_blocks_of_transformers_models(hf_folder):
    layers = list_layers(load(hf_folder))
    names = [layer.name for layer in layers]
    assert [name for name in names if name.endswith((".0", ".1"))] == ["vit.layers.0", "vit.layers.1"]
    assert names[-1] == "vit"
    assert {(layer.width, layer.grid) for layer in layers} == {(32, (4, 4))}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_every_entry_is_a_tap_of_that_width_and_the_order_is_that_of_the_pass(name):
    model = load(name)
    every, default = list_layers(model, every=True), list_layers(model)
    assert len({layer.name for layer in every}) == len(every)
    assert [layer for layer in every if layer in default] == default
    assert len(default) < len(every)
    model.open_taps([layer.name for layer in every])
    assert {layer.name: layer.width for layer in every}.items() <= model.facts.feature_dims.items()
    done = []
    for layer in every:
        model.module.get_submodule(layer.name).register_forward_hook(lambda m, i, o, name=layer.name: done.append(name))
    model(torch.randn(1, 3, *model.facts.preprocessing.image_size))
    assert done == [layer.name for layer in every]


def test_what_is_left_out():
    model = load("test_resnet")
    every, default = (list_layers(model, every=flag) for flag in (True, False))
    vectors = {layer.name for layer in every if not layer.grid}
    assert {"global_pool", "fc"} <= vectors
    assert not vectors & {layer.name for layer in default}
    assert not [layer.name for layer in default if "downsample" in layer.name]
    assert [layer.name for layer in every if "downsample" in layer.name]


def test_the_grid_follows_the_image_size():
    last = [list_layers(load("cifar:resnet8", size))[-1] for size in (28, 32, 64)]
    assert [layer.grid for layer in last] == [(7, 7), (8, 8), (16, 16)]


def test_listing_leaves_the_model_as_it_was():
    model = load("cifar:resnet8").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list_layers(model, every=True)
    assert model.module.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_numbers_and_names_mixed():
    model = load("cifar:resnet8")
    names = [layer.name for layer in list_layers(model)]
    found = resolve_indices(model, ["0", "-1", "pooled", "layer2", f"{len(names) - 1}", f"-{len(names)}"])
    assert found == {
        "0": names[0],
        "-1": names[-1],
        "pooled": "pooled",
        "layer2": "layer2",
        f"{len(names) - 1}": names[-1],
        f"-{len(names)}": names[0],
    }


@pytest.mark.parametrize("index", ["99", "-99"])
def test_a_number_without_a_layer(index):
    with pytest.raises(UserError, match=f"no layer {index}: its layers are 0 to 7, or -1 to -8") as error:
        resolve_indices(load("cifar:resnet8"), ["pooled", index])
    assert "kdcli models layers" in error.value.hint
