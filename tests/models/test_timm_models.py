"""timm's families, each against what timm itself computes."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models._hub import save_config_for_hf

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import fit, prepare
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.base import Model

LABELS = ("ant", "bee", "cat")


def tokens(num_prefix):
    """Mean over the sequence without its first tokens, one token at a time."""
    return lambda module, x: (
        sum(module.forward_features(x)[:, num_prefix:].unbind(1)) / (module.forward_features(x).shape[1] - num_prefix)
    )


def channels_first(module, x):
    return module.forward_features(x).flatten(2).mean(-1)


def channels_last(module, x):
    return module.forward_features(x).flatten(1, 2).mean(1)


def pit(module, x):
    return module.forward_intermediates(x, intermediates_only=True)[-1].flatten(2).mean(-1)


def crossvit(module, x):
    return torch.cat([branch[:, 1:].mean(1) for branch in module.forward_features(x)], dim=1)


def coat(module, x):
    return module.forward_features(x)[-1][:, 1:].mean(1)


def efficientvim(module, x):
    return torch.cat([stage.mean(-1) for stage in module.forward_features(x)], dim=1)


VIT = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}

# name -> image size, or the arguments that make the family's model small; its pooled features by hand
FAMILIES = {
    "resnet18": (64, channels_first),
    "resnetv2_18": (64, channels_first),
    "mobilenetv3_small_050": (64, channels_first),
    "tf_efficientnet_lite0": (64, channels_first),
    "convnext_atto": (64, channels_first),
    "mobilevit_xxs": (64, channels_first),
    "efficientvit_b0": (64, channels_first),
    "regnetx_002": (64, channels_first),
    "repvgg_a0": (64, channels_first),
    "densenet121": ({"block_config": [2, 2, 2, 2], "growth_rate": 8}, channels_first),
    "poolformer_s12": (64, channels_first),
    "shvit_s1": (128, channels_first),
    "efficientvit_m0": (None, channels_first),
    "dla46x_c": (64, channels_first),
    "efficientvim_m1": (128, efficientvim),
    "test_mambaout": (64, channels_last),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 56, "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 2]},
        channels_last,
    ),
    "vit_tiny_patch16_224": (VIT, tokens(1)),
    "deit_tiny_distilled_patch16_224": (VIT, tokens(2)),
    "vit_medium_patch16_reg4_gap_256": (VIT, tokens(4)),
    "eva02_tiny_patch14_224": (VIT | {"img_size": 56}, tokens(1)),
    "gmlp_ti16_224": (64, tokens(0)),
    "levit_128s": ({"img_size": 64, "embed_dim": [32, 48, 64], "depth": [1, 1, 1]}, tokens(0)),
    "hiera_tiny_224": ({"img_size": 64, "embed_dim": 16, "stages": [1, 1, 1, 1]}, tokens(0)),
    "pit_ti_distilled_224": ({"img_size": 64, "depth": [1, 1, 1]}, pit),
    "crossvit_9_240": ({"embed_dim": [32, 48], "num_heads": [2, 2], "depth": [[1, 1, 0]]}, crossvit),
    "coat_lite_tiny": ({"serial_depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64]}, tokens(1)),
    "coat_tiny": ({"serial_depths": [1, 1, 1, 1], "parallel_depth": 1, "embed_dims": [16] * 4}, coat),
    "volo_d1_224": (64, tokens(1)),
}


def small_student(name, folder):
    """An untrained student of the family, its weights away from the initialisation.

    There a classifier may be zero and a normalisation does nothing.
    """
    arguments = FAMILIES[name][0]
    if isinstance(arguments, dict):
        size = arguments.get("img_size", 240 if "crossvit" in name else 64)
        cfg = timm.get_pretrained_cfg(name).to_dict(remove_source=True) | {"input_size": [3, size, size]}
        if "coat" in name:
            arguments = arguments | {"img_size": size}
        content = {"architecture": cfg.pop("architecture"), "pretrained_cfg": cfg, "model_args": arguments}
        (folder / "config.json").write_text(json.dumps(content))
        config = StudentConfig(name=str(folder))
    else:
        config = StudentConfig(name=name, image_size=arguments)
    model = build_student(config, DataFacts.of_labels(LABELS), seed=3)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model.family = name
    return model.eval()


@pytest.fixture(params=FAMILIES, scope="module")
def student(request, tmp_path_factory):
    return small_student(request.param, tmp_path_factory.mktemp(request.param))


def images_for(model, count=2):
    height, width = model.facts.preprocessing.image_size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_outputs_are_those_of_the_native_model(student):
    images = images_for(student)
    taps = ("pooled", "embedding")
    with torch.no_grad():
        output = student(images, Reads(taps) | student.predictions)
        native = student.module(images)
        features = student.module.forward_features(images)
        embedding = student.module.forward_head(features, pre_logits=True)
        pooled = FAMILIES[student.family][1](student.module, images)
        alone = {tap: student(images, Reads((tap,))) for tap in taps}
        logits = student(images).logits
    torch.testing.assert_close(output.logits, native, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, native, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.features["embedding"], embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.features["pooled"], pooled, atol=1e-4, rtol=1e-4)
    for tap, single in alone.items():
        assert single.logits is None
        assert list(single.features) == [tap]
        assert single.features[tap].shape == (2, student.facts.feature_dims[tap])
        torch.testing.assert_close(single.features[tap], output.features[tap], atol=1e-4, rtol=1e-4)


def test_save_and_load(student, tmp_path):
    images = images_for(student)
    student.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    ours = load_saved(tmp_path)
    native = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        expected = student(images).logits
        torch.testing.assert_close(native(images), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(images).logits, expected, atol=1e-5, rtol=1e-5)
    assert tuple(native.pretrained_cfg["label_names"]) == LABELS
    assert native.pretrained_cfg["num_classes"] == 3
    config = timm.data.resolve_model_data_config(native)
    wanted = student.facts.preprocessing
    assert tuple(config["input_size"][1:]) == wanted.image_size
    assert (tuple(config["mean"]), tuple(config["std"])) == (wanted.mean, wanted.std)
    assert ours.facts.label_names == LABELS
    assert ours.facts.preprocessing == wanted
    assert ours.facts.feature_dims == student.facts.feature_dims


def test_a_copy_trains_and_leaves_the_original_alone(student):
    images = images_for(student)
    with torch.no_grad():
        before = student(images).logits
    twin = copy.deepcopy(student).train()
    output = twin(images, Reads(("pooled", "embedding")) | twin.predictions)
    assert output.logits.shape == (2, 3)
    (output.logits.square().sum() + sum(f.square().sum() for f in output.features.values())).backward()
    without = [name for name, parameter in twin.named_parameters() if parameter.grad is None]
    unused = ("aux_head",)  # VOLO's, for token labels
    assert [name for name in without if not any(part in name for part in unused)] == []
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
        torch.testing.assert_close(student(images).logits, before, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in student.parameters())


SMALL = StudentConfig(name="test_vit", image_size=64)


def weights_of(model: Model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_untrained_teacher_keeps_its_head_but_has_no_labels():
    first, second = (load_teacher(TeacherConfig(name="random:test_resnet"), seed=4) for _ in range(2))
    facts = first.facts
    assert (facts.name, facts.pretrained, facts.label_names) == ("random:timm:test_resnet", False, None)
    assert facts.num_classes == 1000
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())
    torch.testing.assert_close(weights_of(first), weights_of(second), atol=0, rtol=0)


def test_a_pretrained_folder_without_weights_is_refused(tmp_path):
    build_student(SMALL, DataFacts.of_labels(LABELS), seed=1).save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)


def test_position_embeddings_follow_the_image_size(tmp_path):
    build_student(SMALL, DataFacts.of_labels(LABELS), seed=1).save(tmp_path)
    bigger = load_teacher(TeacherConfig(name=str(tmp_path), image_size=96), seed=0)
    assert bigger.facts.preprocessing.image_size == (96, 96)
    assert bigger(torch.randn(1, 3, 96, 96)).logits.shape == (1, 3)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["img_size"] == [64, 64]


@pytest.mark.parametrize(("name", "size"), [("test_vit", 10), ("hiera_tiny_224", 50)])
def test_sizes_that_a_model_cannot_take(name, size):
    with pytest.raises(UserError, match=rf"{name}.*{size}") as error:
        build_student(StudentConfig(name=name, image_size=size), DataFacts.of_labels(LABELS), seed=0)
    assert "image_size" in error.value.hint


def test_nothing_asked_nothing_computed(monkeypatch):
    model = build_student(SMALL, DataFacts.of_labels(LABELS), seed=0)

    def fail(*args, **kwargs):
        raise AssertionError("computed")

    monkeypatch.setattr(model.module.head, "forward", fail)
    assert model(images_for(model), Reads(("pooled", "embedding"))).logits is None
    monkeypatch.setattr(model.module, "forward_features", fail)
    assert model(images_for(model), Reads()).features == {}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "pit_ti_distilled_224"])
def test_compiled_in_one_graph(name, tmp_path):
    model = small_student(name, tmp_path)
    images = images_for(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for taps in ((), ("pooled", "embedding")):
        expected, found = (
            model(images, Reads(taps) | model.predictions),
            compiled(images, Reads(taps) | compiled.predictions),
        )
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=1e-5)


def test_channels_last_weights_are_saved(tmp_path):
    model = build_student(StudentConfig(name="test_resnet"), DataFacts.of_labels(LABELS), seed=0)
    model.to(memory_format=torch.channels_last).save(tmp_path)
    torch.testing.assert_close(weights_of(load_saved(tmp_path)), weights_of(model), atol=0, rtol=0)


def test_synsets_name_imagenet_for_registered_models_only(tmp_path):
    """timm knows ImageNet by its number of classes, which a user's own thousand classes must not match."""
    from kdcli.models.timm.model import label_names

    module = timm.create_model("test_resnet")
    assert label_names(module, is_registered=True)[0] == "n01440764"
    assert label_names(module, is_registered=False) is None
    module = timm.create_model("test_resnet", num_classes=10)
    assert label_names(module, is_registered=True) is None
    module.pretrained_cfg["label_names"] = {str(i): f"name{i}" for i in range(10)}
    assert label_names(module, is_registered=True)[9] == "name9"


@pytest.fixture(autouse=True)
def _eager_again():
    yield
    torch._dynamo.reset()


CONFIGS = {
    "squashed": {"crop_mode": "squash", "crop_pct": 0.9, "interpolation": "bilinear"},
    "bordered": {"crop_mode": "border", "crop_pct": 1.0},
    "padded": {"crop_pct": 1.15, "interpolation": "lanczos"},
    "a rectangle": {"input_size": (3, 48, 33), "crop_pct": 0.8, "interpolation": "hamming"},
    "other numbers": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "nearest"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_is_followed_and_saved(tmp_path, name):
    """timm's own evaluation transform, by the config and by the saved model's, gives the same pixels."""
    folder, again = tmp_path / "folder", tmp_path / "again"
    module = timm.create_model("test_resnet", num_classes=3)
    module.pretrained_cfg |= {"input_size": (3, 40, 40), **CONFIGS[name]}
    folder.mkdir()
    save_file(module.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    save_config_for_hf(module, str(folder / "config.json"))
    teacher = load_teacher(TeacherConfig(name=str(folder)), seed=0)
    teacher.save(again)
    saved = timm.create_model(f"local-dir:{again}", pretrained=True)
    found = teacher.facts.preprocessing
    assert load_saved(again).facts.preprocessing == found
    for size in ((61, 47), (47, 100), (30, 90)):
        image = Image.effect_noise(size, 90).convert("RGB")
        pixels = torch.from_numpy(np.array(fit(image, found))).permute(2, 0, 1)[None]
        for model in (module, saved):
            transform = create_transform(**resolve_model_data_config(model))
            torch.testing.assert_close(prepare(pixels, found)[0], transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"crop_mode": "corner"}, "crop_mode is 'corner', and kdcli knows center, squash, border"),
        ({"interpolation": "random"}, "interpolation is 'random', and kdcli knows nearest"),
        ({"crop_pct": "most"}, "impossible images"),
        ({"crop_pct": 0.01}, "resized to"),
        ({"mean": [0.5, "a", 0.5]}, "impossible images"),
        ({"input_size": [2, 64, 64]}, "images of 2 channels, and kdcli reads 1, 3 or 4"),
        ({"input_size": [1, 64, 64]}, "can't be loaded by timm"),
    ],
)
def test_configs_that_are_not_understood(tmp_path, config, named):
    build_student(SMALL, DataFacts.of_labels(LABELS), seed=1).save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["pretrained_cfg"] |= config
    settings["model_args"].pop("in_chans", None)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError) as error:
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    assert named in error.value.message
