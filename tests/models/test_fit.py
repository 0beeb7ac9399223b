"""Prefixes, several sets of weights in one file, and numbers that can be no weights."""

import math

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from kdcli.base.errors import UserError
from kdcli.config.models import TeacherConfig
from kdcli.models import load_saved, load_teacher
from kdcli.models.fit import build_with_weights
from kdcli.models.weights import read_checkpoint

NAME = "test_resnet"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(5)
    model = timm.create_model(NAME, num_classes=7)
    return {n: torch.rand_like(t) + 0.1 if t.is_floating_point() else t for n, t in model.state_dict().items()}


@pytest.fixture
def load(tmp_path):
    def load(content, name=NAME):
        torch.save(content, tmp_path / "w.pth")
        return load_teacher(TeacherConfig(name=name, weights=str(tmp_path / "w.pth")), seed=0)

    return load


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def halved(state):
    return {name: tensor / 2 for name, tensor in state.items()}


def assert_has(teacher, state):
    found = teacher.module.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("wrap", "prefix", "unused"),
    [
        (
            lambda s: {"state_dict": {**under("model.", s), "criterion.weight": torch.ones(7)}},
            "model.",
            "criterion.weight",
        ),
        (lambda s: {"state_dict": {**under("net.", s), "ema_decay": torch.ones(1)}, "epoch": 3}, "net.", "ema_decay"),
        (lambda s: under("backbone.", s) | {"projection.weight": torch.ones(3)}, "backbone.", "projection.weight"),
        (lambda s: {"model": under("encoder.", s)}, "encoder.", ""),
        (lambda s: {"state_dict": under("module.model.", s)}, "module.model.", ""),
        (lambda s: {"learner": {"state": under("net.body.", s) | {"x": torch.ones(1)}}}, "net.body.", "x"),
    ],
    ids=["lightning", "net", "backbone", "encoder", "module.model", "any"],
)
def test_one_prefix_is_taken_off_and_named(load, state, wrap, prefix, unused):
    teacher = load(wrap(state))
    assert_has(teacher, state)
    assert teacher.facts.num_classes == 7
    assert (
        f"{len(state)} of {len(state)} tensors matched by name without the prefix '{prefix}'" in teacher.facts.weights
    )
    assert (f"1 in the file not used ({unused})" if unused else "not used") in teacher.facts.weights or not unused


def test_a_prefix_and_a_file_without_a_classifier(load, state):
    body = {n: t for n, t in state.items() if not n.startswith("fc.")}
    teacher = load({"state_dict": under("backbone.", body) | {"head.mlp.0.weight": torch.ones(4, 4)}})
    assert_has(teacher, body)
    assert teacher.facts.num_classes == 0
    assert "the file has no classifier of this model" in teacher.facts.weights
    assert "head.mlp.0.weight" in teacher.facts.weights


@pytest.mark.parametrize(
    ("wrap", "taken", "other"),
    [
        (
            lambda s: {"student": halved(under("backbone.", s)), "teacher": under("backbone.", s)},
            "teacher.backbone",
            "student",
        ),
        (
            lambda s: {"state_dict": halved(under("model.", s)) | under("ema_model.", s)},
            "state_dict.ema_model",
            "model",
        ),
        (
            lambda s: {"state_dict": halved(under("student.", s)) | under("teacher.", s)},
            "state_dict.teacher",
            "student",
        ),
        (lambda s: {"model": halved(s), "model_ema": under("module.", s)}, "model_ema.module", "model"),
    ],
)
def test_of_two_sets_the_averaged_one_is_taken_and_the_other_named(load, state, wrap, taken, other):
    teacher = load(wrap(state))
    assert_has(teacher, state)
    assert f"; the averaged weights ({taken})" in teacher.facts.weights
    assert "which would fit too" in teacher.facts.weights
    assert other in teacher.facts.weights.split("not those of")[1]


def test_averages_that_lack_something_do_not_stand_in_the_way(load, state):
    parameters = {n: t / 2 for n, t in state.items() if "running" not in n}
    teacher = load({"state_dict": state, "state_dict_ema": parameters})
    assert_has(teacher, state)
    assert "averaged" not in teacher.facts.weights


def test_two_sets_that_nothing_tells_apart_are_refused(load, state):
    with pytest.raises(UserError, match="several sets of weights that fit the model, and they differ: first and last"):
        load({"first": state, "last": halved(state)})
    assert_has(load({"first": state, "last": dict(state)}), state)  # the same twice is no choice


def test_the_refusal_says_which_prefix_would_fit_how_many(load, state):
    lacking = {n: t for n, t in state.items() if n not in ("conv1.0.weight", "layer1.0.conv1.weight")}
    with pytest.raises(UserError) as error:
        load({"state_dict": under("net.", lacking) | {"criterion.weight": torch.ones(7)}})
    assert f"without the prefix 'net.' {len(lacking)} of {len(state)} would fit" in error.value.message
    assert "2 missing (conv1.0.weight, layer1.0.conv1.weight)" in error.value.message


def test_position_embeddings_behind_a_prefix_are_resampled(tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=7).state_dict()
    torch.save({"state_dict": under("model.", vit)}, tmp_path / "w.pth")
    config = TeacherConfig(name="test_vit", weights=str(tmp_path / "w.pth"), image_size=96)
    expected = timm.create_model("test_vit", num_classes=7, img_size=96)
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    assert_has(load_teacher(config, seed=0), convert(vit, expected))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(torch.int8),
        lambda t: t.to(torch.bool),
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to(torch.int64),
        lambda t: t * math.inf,
        lambda t: t * math.nan,
        lambda t: t.double() * 1e300,
    ],
    ids=["int8", "bool", "complex", "float8", "int64", "inf", "nan", "beyond float32"],
)
@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var"])
def test_numbers_that_are_no_weights_are_refused_by_name(load, state, change, name):
    name = name if name in state else next(n for n in state if n.endswith("running_var"))
    with pytest.raises(UserError, match="holds what can't be weights") as error:
        load({**state, name: change(state[name])})
    assert name in error.value.message


def test_what_is_wrong_outside_the_model_is_of_no_matter(load, state):
    assert_has(load({**state, "queue": torch.full((3,), math.inf), "step": torch.ones(2, dtype=torch.int8)}), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted_and_named(load, state, dtype):
    given = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    teacher = load(given)
    assert_has(teacher, {n: t.float() if t.is_floating_point() else t for n, t in given.items()})
    assert f"{str(dtype).removeprefix('torch.')} in the file, float32 here" in teacher.facts.weights


class Clipped(nn.Module):
    """A layer that is bounded by infinity as long as nothing has set its bounds."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("bound", torch.full((2,), math.inf))


def test_a_buffer_may_hold_infinity_where_a_new_one_does(tmp_path):
    def fit(state):
        torch.save(state, tmp_path / "w.pth")
        checkpoint = read_checkpoint(tmp_path / "w.pth", source="x")
        return build_with_weights(lambda _: Clipped(), checkpoint, classifier=lambda _: (0, set()))[0]

    assert fit({"weight": torch.zeros(2), "bound": torch.tensor([math.inf, 3.0])}).bound.tolist() == [math.inf, 3.0]
    for bad in ({"weight": torch.tensor([math.inf, 0])}, {"bound": torch.tensor([math.nan, 0])}):
        with pytest.raises(UserError, match=f"infinite or undefined values .{next(iter(bad))}"):
            fit({"weight": torch.zeros(2), "bound": torch.zeros(2), **bad})


@pytest.fixture(scope="module")
def folders(tmp_path_factory, state):
    """Native folders of both libraries, and a name of a convolution's weights in each."""
    root = tmp_path_factory.mktemp("folders")
    load_teacher(TeacherConfig(name=f"random:{NAME}"), seed=0).save(root / "timm")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    ResNetForImageClassification(config).save_pretrained(root / "hf")
    return {
        "timm": (root / "timm", "layer1.0.conv1.weight"),
        "hf": (root / "hf", "resnet.embedder.embedder.convolution.weight"),
    }


@pytest.mark.parametrize("library", ["timm", "hf"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.to(torch.int8), "is int8"),
        (lambda t: t.to(torch.bool), "is bool"),
        (lambda t: t * math.inf, "infinite or undefined"),
    ],
    ids=["int8", "bool", "inf"],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_native_folder_is_held_to_the_same(tmp_path, folders, library, change, said, suffix):
    folder, name = folders[library]
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    if suffix == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (lambda: load_teacher(TeacherConfig(name=str(tmp_path)), seed=0), lambda: load_saved(tmp_path)):
        with pytest.raises(UserError, match=said) as error:
            load()
        assert name in error.value.message
