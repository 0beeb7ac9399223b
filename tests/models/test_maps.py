"""Maps of taps against what hooks of our own see, and their means against the pooled features."""

import copy

import pytest
import torch
import transformers

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import build_student, load_teacher
from kdcli.models.taps import LayerTap, grid_of, map_of_places


def load(name, **options):
    return load_teacher(TeacherConfig(name=name, **options), seed=0)


def images_for(model, count=2):
    return torch.randn(count, 3, *model.facts.preprocessing.image_size, generator=torch.Generator().manual_seed(1))


def seen_at(model, layer, images):
    """What ``layer`` returns, taken by a hook of our own."""
    seen = []
    handle = model.module.get_submodule(layer).register_forward_hook(lambda m, i, output: seen.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def as_is(x, rows, columns):
    return x


def channels_last(x, rows, columns):
    return x.permute(0, 3, 1, 2)


def without_class_token(x, rows, columns):
    """Token by token: token 1 + r * columns + c is the position (r, c)."""
    out = torch.empty(len(x), x.shape[2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            out[:, :, row, column] = x[:, 1 + row * columns + column]
    return out


@pytest.fixture(scope="module")
def hf_vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def hf_resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 1, 1], layer_type="basic", num_labels=3
    )
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "layer", "by_hand"),
    [
        ("random:test_resnet", "layer2", as_is),
        ("random:test_vit", "blocks.1", without_class_token),
        ("random:swin_tiny_patch4_window7_224", "layers.1", channels_last),
        ("hf_vit", "layers.0", without_class_token),
        ("hf_resnet", "encoder.stages.1", as_is),
    ],
)
def test_a_layers_map_is_what_the_layer_returns(name, layer, by_hand, request):
    model = load(request.getfixturevalue(name) if name.startswith("hf") else name)
    (layer,) = [name for name, _ in model.module.named_modules() if name == layer or name.endswith(f".{layer}")]
    model.open_taps([layer])
    images = images_for(model)
    rows, columns = model.facts.grids[layer]
    expected = by_hand(seen_at(model, layer, images), rows, columns)
    with torch.no_grad():
        alone = model(images, Reads(maps=(layer,)))
        both = model(images, Reads((layer, "pooled"), maps=(layer,), heads=("logits",)))
    torch.testing.assert_close(alone.maps[layer], expected)
    torch.testing.assert_close(both.maps[layer], expected)
    torch.testing.assert_close(both.features[layer], expected.mean((2, 3)))
    assert expected.shape == (2, model.facts.feature_dims[layer], rows, columns)
    assert (alone.features, alone.logits, set(alone.maps)) == ({}, None, {layer})
    assert set(both.features) == {layer, "pooled"}
    assert both.logits is not None


@pytest.mark.parametrize(
    "name",
    [
        "random:test_resnet", "random:test_vit", "random:test_efficientnet", "random:pit_ti_distilled_224",
        "random:mixer_s32_224", "hf_vit", "hf_resnet",
    ],
)  # fmt: skip
def test_pooled_is_the_mean_of_its_map(name, request):
    model = load(request.getfixturevalue(name) if name.startswith("hf") else name)
    with torch.no_grad():
        images = images_for(model, 1)
        both = model(images, Reads(("pooled",), maps=("pooled",), heads=("logits",)))
        alone = model(images, Reads(maps=("pooled",)))
    assert both.maps["pooled"].shape == (1, model.facts.feature_dims["pooled"], *model.facts.grids["pooled"])
    torch.testing.assert_close(both.maps["pooled"].mean((2, 3)), both.features["pooled"])
    torch.testing.assert_close(alone.maps["pooled"], both.maps["pooled"])
    assert (alone.features, alone.logits) == ({}, None)


def test_sequences_are_grids_of_the_image_or_columns():
    """12 = 3 x 4 patches of 8 in an image of 24 x 32; 11 tokens are no grid; 5 x 5 patches of 7 pad an image of 32."""
    tokens = torch.randn(2, 13, 5)
    assert grid_of(tokens, "NLC", 1, (24, 32)) == (3, 4)
    assert grid_of(tokens[:, :11], "NLC", 0, (24, 32)) == (11, 1)
    assert grid_of(torch.zeros(1, 5, 25), "NCL", 0, (32, 32)) == (5, 5)
    assert grid_of(torch.zeros(1, 5), "vector", 0, (32, 32)) is None
    laid_out = map_of_places(tokens, "NLC", 1, (3, 4))
    torch.testing.assert_close(laid_out[:, :, 2, 1], tokens[:, 1 + 2 * 4 + 1])
    column = map_of_places(tokens[:, :11], "NLC", 0, (11, 1))
    assert column.shape == (2, 5, 11, 1)
    torch.testing.assert_close(column[:, :, 7, 0], tokens[:, 7])
    sequence = torch.randn(2, 5, 6)
    torch.testing.assert_close(map_of_places(sequence, "NCL", 0, (2, 3))[:, :, 1, 2], sequence[:, :, 5])


def test_vectors_have_no_map():
    model = load("random:test_vit")
    model.open_taps(["head"])
    assert {"head", "embedding"}.isdisjoint(model.facts.grids)
    for tap in ("head", "embedding", "blocks.9"):
        with pytest.raises(ValueError, match=f"no map '{tap}'; valid: pooled"):
            model(images_for(model), Reads(maps=(tap,)) | model.predictions)


def test_features_of_several_maps_have_none():
    assert load("random:crossvit_9_240").facts.grids == {}


def test_nothing_after_the_last_mapped_layer_runs_and_gradients_flow():
    model = load("random:test_resnet").requires_grad_(True)
    model.open_taps(["layer1", "layer2"])
    twin = copy.deepcopy(model)
    ran = []
    for name in ("layer1", "layer2", "layer3"):
        model.module.get_submodule(name).register_forward_pre_hook(lambda m, i, name=name: ran.append(name))
    output = model(images_for(model), Reads(("layer1",), maps=("layer2",)))
    assert ran == ["layer1", "layer2"]
    assert (set(output.features), set(output.maps)) == ({"layer1"}, {"layer2"})
    output.maps["layer2"].sum().backward()
    assert model.module.layer1[0].conv1.weight.grad is not None
    assert twin.module.layer1[0].conv1.weight.grad is None
    ran.clear()
    model(images_for(model), Reads(maps=("layer1", "pooled")))
    assert ran == ["layer1", "layer2", "layer3"]


@pytest.mark.parametrize(
    ("name", "stages", "grids"),
    [
        ("random:test_resnet", ("layer1", "layer2", "layer3", "layer4"), [40, 20, 10, 5]),
        ("random:test_vit", ("blocks.0", "blocks.2", "blocks.3", "blocks.5"), [10, 10, 10, 10]),
        ("random:pit_ti_distilled_224", tuple(f"transformers.{i}" for i in range(3)), [27, 14, 7]),
        ("hf_resnet", tuple(f"resnet.encoder.stages.{i}" for i in range(3)), [56, 28, 14]),
    ],
)
def test_stages_end_where_the_grid_changes_or_are_evenly_spaced(name, stages, grids, request):
    model = load(request.getfixturevalue(name) if name.startswith("hf") else name)
    model.open_stages()
    assert model.facts.stages == stages
    assert [model.facts.grids[stage] for stage in stages] == [(side, side) for side in grids]
    assert set(stages) <= set(model.facts.feature_dims)


def test_a_model_without_layers_in_a_list_says_so(monkeypatch):
    model = load("random:test_resnet")
    monkeypatch.setattr(type(model), "_layer_lists", lambda self: [["conv1"], ["layer1", "fc"], ["layer1", "nowhere"]])
    with pytest.raises(UserError, match="no stages that kdcli can find"):
        model.open_stages()


@pytest.fixture(scope="module")
def hf_distilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deit")
    config = transformers.DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "size", "heads"),
    [
        ("deit_tiny_distilled_patch16_224", 32, ("head", "head_dist")),
        ("levit_128s", 64, ("head", "head_dist")),
        ("repvit_m0_9.dist_300e_in1k", 64, ("head.head", "head.head_dist")),
        ("hf_distilled", None, ("cls_classifier", "distillation_classifier")),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_both_heads_apart_and_their_mean(name, size, heads, training, request):
    if name == "hf_distilled":
        model = load(request.getfixturevalue(name)).requires_grad_(True)
    else:
        model = build_student(StudentConfig(name=name, image_size=size), DataFacts.of_labels(("a", "b", "c")), seed=0)
    assert "distillation" in model.facts.heads
    images = images_for(model)
    state = copy.deepcopy(model.state_dict())
    seen = {}
    handles = [
        model.module.get_submodule(head).register_forward_hook(lambda m, i, o, head=head: seen.update({head: o}))
        for head in heads
    ]
    model.train(training)
    torch.manual_seed(0)
    apart = model(images, Reads(heads=("logits", "distillation")))
    for handle in handles:
        handle.remove()
    assert torch.equal(apart.logits, seen[heads[0]])
    assert torch.equal(apart.heads["distillation"], seen[heads[1]])
    apart.heads["distillation"].sum().backward()
    own, other = ([p.grad is not None for p in model.module.get_submodule(head).parameters()] for head in heads[::-1])
    assert all(own)
    assert not any(other)
    model.load_state_dict(state)
    torch.manual_seed(0)
    with torch.no_grad():
        mean = model(images)
    torch.testing.assert_close((apart.logits + apart.heads["distillation"]) / 2, mean.logits)
    assert "distillation" not in mean.heads


def test_models_without_a_distillation_token_say_so():
    model = load("random:test_vit")
    assert "distillation" not in model.facts.heads
    with pytest.raises(ValueError, match="no head 'distillation'"):
        model(images_for(model), Reads(heads=("logits", "distillation")))


@pytest.mark.parametrize("maps", [("layer1.0.bn1",), ("layer1.0.bn1", "pooled")])
def test_a_map_is_not_what_an_in_place_activation_makes_of_it(maps):
    model = load("random:cifar:resnet8")
    model.open_taps(["layer1.0.bn1"])
    images = images_for(model)
    net = model.module
    expected = net.layer1[0].bn1(net.layer1[0].conv1(net.relu(net.bn1(net.conv1(images)))))
    assert (expected < 0).any(), "an activation follows"
    output = model(images, Reads(("layer1.0.bn1",), maps=maps))
    torch.testing.assert_close(output.maps["layer1.0.bn1"], expected)
    torch.testing.assert_close(output.features["layer1.0.bn1"], expected.mean(dim=(2, 3)))


def test_a_vector_is_not_what_an_in_place_activation_makes_of_it():
    tap = LayerTap("vector", 0, None)
    tap.wants_mean = True
    features = torch.tensor([[-1.0, 2.0]])
    tap(torch.nn.Identity(), (), features)
    features.relu_()
    assert tap.take()[0].tolist() == [[-1.0, 2.0]]


def test_a_tap_on_a_batch_normalisation_outlives_its_exchange():
    model = load("random:cifar:resnet8")
    model.open_taps(["layer1.0.bn1", "layer2"])
    images, taps = images_for(model), ("layer1.0.bn1", "layer2")
    before = model(images, Reads(taps, maps=taps) | model.predictions)
    model.synchronize_batchnorm()
    assert isinstance(model.module.layer1[0].bn1, torch.nn.SyncBatchNorm)
    after = model(images, Reads(taps, maps=taps) | model.predictions)
    for tap in taps:
        torch.testing.assert_close(after.features[tap], before.features[tap])
        torch.testing.assert_close(after.maps[tap], before.maps[tap])
