"""Architectures within a budget: what is counted, what is left out, and what is kept for the next time."""

import json

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kdcli
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.models.libraries import LIBRARIES
from kdcli.models.place import Place
from kdcli.models.search import search as searching
from kdcli.models.search.catalogue import NUM_CLASSES, Catalogue
from kdcli.models.search.search import Budget, Cache, search
from kdcli.models.shelf import Built, Shelf
from kdcli.models.timm.shelf import TimmShelf
from kdcli.models.transformers.shelf import TextShelf, made_up_text


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kdcli"


@pytest.fixture
def find():
    def run(pattern="test_vit?", cache=None, reports=None, **options):
        budget = Budget(*(options.pop(key, None) for key in ("max_parameters", "min_parameters", "max_macs")))
        task, size = options.pop("task", "image-classification"), options.pop("size", None)
        catalogue = Catalogue(task, size=size, pretrained=options.pop("pretrained", False), pattern=pattern)
        defaults = {"sort": "params", "limit": 20} | options
        report = (lambda *values: None) if reports is None else (lambda *values: reports.append(values))
        return search(catalogue, budget, cache=cache or Cache(), report=report, **defaults)

    return run


def test_counts_are_those_of_the_built_networks(find):
    found = find("test_vit[2-4]")
    assert [entry.name for entry in found] == ["test_vit4", "test_vit3", "test_vit2"]
    for entry in found:
        module = timm.create_model(entry.name, num_classes=NUM_CLASSES["image"]).eval()
        assert entry.parameters == sum(parameter.numel() for parameter in module.parameters())
        image = torch.zeros(1, *module.default_cfg["input_size"])
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # attention as matrix products
            module(image)
        assert entry.macs == counter.get_total_flops() / 2
        assert entry.input_size == (160, 160)
        assert entry.latency_ms > 0


def test_limits(find):
    everything = find("test_*net*", limit=100)
    limits = {"max_parameters": 460_000, "min_parameters": 300_000, "max_macs": 60e6}
    expected = [entry.name for entry in everything if 300_000 <= entry.parameters <= 460_000 and entry.macs <= 60e6]
    assert 0 < len(expected) < len(everything)
    assert [entry.name for entry in find("test_*net*", limit=100, **limits)] == expected
    assert [entry.name for entry in find("test_*net*", limit=2, **limits)] == expected[:2]
    assert find(max_parameters=10) == []


def test_order(find):
    for sort, key, reverse in (
        ("params", "parameters", True),
        ("macs", "macs", True),
        ("latency", "latency_ms", False),
    ):
        values = [getattr(entry, key) for entry in find("test_*net", sort=sort, limit=100)]
        assert len(values) > 3
        assert values == sorted(values, reverse=reverse)
    assert len(find("test_*net", sort="latency", limit=2)) == 2
    macs = [entry.macs for entry in find("test_*net", sort="macs", limit=100)]
    assert [entry.macs for entry in find("test_*net", sort="macs", limit=2)] == macs[:2]


def test_image_size_changes_the_costs_alone(find):
    (own,), (small,) = find("test_resnet"), find("test_resnet", size=64)
    assert small.parameters == own.parameters
    assert small.input_size == (64, 64)
    assert small.macs < own.macs / 4
    (vit,) = find("test_vit", size=96)  # a fixed input size is built for the other one
    assert vit.input_size == (96, 96)


def test_only_those_with_weights(find):
    names = {entry.name for entry in find("test_vit*", pretrained=True)}
    assert names == {name.partition(".")[0] for name in timm.list_models("test_vit*", pretrained=True)}
    assert names < {entry.name for entry in find("test_vit*")}
    assert all(entry.pretrained == (entry.name in names) for entry in find("test_vit*"))


def test_transformers_with_default_configs(find):
    from kdcli.config.models import StudentConfig
    from kdcli.models import build_student

    (entry,) = find("hf:segformer")
    labels = [str(label) for label in range(NUM_CLASSES["image"])]
    model = build_student(StudentConfig(name=entry.name), DataFacts.of_labels(labels), seed=0)
    assert (model.facts.num_parameters, model.facts.macs) == (entry.parameters, entry.macs)
    assert not entry.pretrained


def test_an_architecture_alone_is_no_teacher():
    from kdcli.config.models import TeacherConfig
    from kdcli.models import load_teacher

    with pytest.raises(UserError, match="no published weights") as error:
        load_teacher(TeacherConfig(name="hf:segformer"), seed=0)
    assert "random:hf:segformer" in error.value.hint


def test_what_was_counted_is_not_counted_again(find, folder, monkeypatch):
    first = find()
    (file,) = folder.iterdir()
    assert timm.__version__ in file.name
    assert f"kdcli-{kdcli.__version__}" in file.name
    counts = json.loads(file.read_text())
    assert counts["test_vit2 image-classification"] == next(
        entry.parameters for entry in first if entry.name == "test_vit2"
    )

    def counted_again(*arguments):
        pytest.fail("counted again")

    monkeypatch.setattr(searching, "_count_parameters", counted_again)
    monkeypatch.setattr(searching, "_count_macs", counted_again)
    again = find()
    assert [(entry.name, entry.parameters, entry.macs) for entry in again] == [
        (entry.name, entry.parameters, entry.macs) for entry in first
    ]


def test_an_interrupted_search_keeps_what_it_counted(find, folder, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "_count_macs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find()
    (file,) = folder.iterdir()
    assert len(json.loads(file.read_text())) == len(timm.list_models("test_vit?"))


@pytest.mark.parametrize("content", ["{", "[]", '{"test_vit2": "many"}'])
def test_a_damaged_cache_is_counted_anew(find, folder, content):
    folder.mkdir(parents=True)
    Cache().path.write_text(content)
    (entry,) = find("test_vit2")
    assert json.loads(Cache().path.read_text())["test_vit2 image-classification"] == entry.parameters


def test_a_cache_that_can_not_be_written_costs_no_results(find, folder):
    folder.parent.mkdir()
    folder.write_text("in the way")
    cache = Cache()
    assert len(find("test_vit2", cache=cache)) == 1
    assert "can't be kept" in cache.problem


def test_what_can_not_be_built_is_left_out(find, monkeypatch):
    def refuse(*_):
        raise ImportError("a package is missing")

    monkeypatch.setattr(TimmShelf, "build", refuse)
    assert find("test_vit2") == []


def test_test_networks_are_shown_only_by_name(find, monkeypatch):
    monkeypatch.setattr(searching, "_count_parameters", lambda _, place: 1 if place.name.startswith("test_") else None)
    assert find(None) == []


def test_progress_is_reported(find):
    reports = []
    find("test_vit[23]", reports=reports)
    assert {what for what, _, _ in reports} == {
        "Counting parameters",
        "Counting multiply-accumulates",
        "Measuring latency",
    }
    assert all(0 <= done <= total for _, done, total in reports)


def test_a_name_of_nothing(find):
    with pytest.raises(UserError, match="resnetx") as error:
        find("resnetx*")
    assert "*" in error.value.hint


def test_kdclis_own_networks_have_their_own_names(find):
    assert [entry.name for entry in find("cifar:resnet20")] == ["cifar:resnet20"]


def test_image_embedding_counts_the_backbone_alone(find):
    (whole,), (backbone,) = find("test_vit2"), find("test_vit2", task="image-embedding")
    width = timm.create_model("test_vit2").num_features
    assert whole.parameters - backbone.parameters == (width + 1) * NUM_CLASSES["image"]
    assert whole.macs - backbone.macs == width * NUM_CLASSES["image"]


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Default configs are large: without latency nothing has memory."""
    monkeypatch.setattr(searching, "LARGEST_BUILT", 0)


@pytest.mark.parametrize("length", [None, 32])
def test_text_counts_by_hand(find, nothing_is_built, length):
    """DistilBERT: six layers of four d x d and two d x 4d products a token, and two of attention; then the heads."""
    d, tokens = 768, length or 128
    encoder = 6 * tokens * (4 * d * d + 2 * d * 4 * d + 2 * tokens * d)
    heads = {
        "text-classification": d * d + d * 2,
        "sentence-embedding": 0,
        "token-classification": tokens * d * 2,
        "masked-lm": tokens * (d * d + d * 30522),
    }
    for task, head in heads.items():
        (entry,) = find("hf:distilbert", task=task, size=length)
        assert (entry.macs, entry.input_size) == (encoder + head, (tokens,))
        assert entry.latency_ms is None
        assert not entry.pretrained
    assert entry.parameters == 66_985_530, "as of distilbert-base-uncased, its output embeddings shared"


def test_kinds_without_the_head_or_the_positions_are_left_out(find, nothing_is_built):
    assert find("hf:distilbert", task="causal-lm") == []
    assert find("hf:distilbert", task="sentence-embedding", size=513) == []
    assert len(find("hf:distilbert", task="sentence-embedding", size=512)) == 1


def test_large_networks_are_counted_and_never_built(find, monkeypatch):
    built = []
    build = TextShelf.build

    def remember(*arguments):
        found = build(*arguments)
        built.append({parameter.device.type for parameter in found.module.parameters()})
        return found

    monkeypatch.setattr(TextShelf, "build", remember)
    (entry,) = find("hf:llama", task="sentence-embedding", sort="latency")
    assert entry.parameters > 6e9
    assert entry.macs > 128 * 6e9
    assert entry.latency_ms is None
    assert built == [{"meta"}] * 3


class Peeking(nn.Linear):
    """A network that looks at a value."""

    def forward(self, inputs):
        return super().forward(inputs) if inputs.sum().item() > 0 else inputs


class PeekingShelf(Shelf):
    def build(self, place, num_classes, size):
        module = Peeking(3, 4)
        inputs = torch.ones(1, 3)
        return Built(module, lambda: module(inputs), (3,))

    def places(self, prefix):
        return {"peeking": Place("transformers", "peeking", architecture="peeking")}


def test_what_looks_at_values_is_run_with_memory_where_it_is_small(find, monkeypatch, folder):
    monkeypatch.setattr(type(LIBRARIES[1]), "shelf", lambda library, task: PeekingShelf())
    (entry,) = find(None, task="sentence-embedding")
    assert (entry.parameters, entry.macs) == (16, 12)
    assert entry.latency_ms > 0
    Cache().path.unlink()
    monkeypatch.setattr(searching, "LARGEST_BUILT", 15)
    assert find(None, task="sentence-embedding") == []


def test_made_up_texts():
    from transformers import T5Config

    config = T5Config(vocab_size=20, pad_token_id=0, eos_token_id=1)
    text = made_up_text(config, 200)
    assert text.shape == (1, 200)
    assert set(text[0, :-1].tolist()) == set(range(2, 20))
    assert text[0, -1] == 1
