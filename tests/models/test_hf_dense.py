"""transformers' segmenters and depth models: small ones of a few kinds, in both roles, saved and loaded again."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, DepthFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.loading import build_student, load_teacher
from kdcli.models.transformers import export
from kdcli.models.transformers.dense_kinds import AUTO, CLASSES
from tests.models.tiny_dense import TINY

NAMES = ("road", "sky", "tree")
PIXELS = DataFacts("streets", "semantic-segmentation", NAMES, 4, 4, 2, 2, label_kind="pixels")
DEPTHS = DataFacts(
    "rooms", "depth-estimation", ("depth",), 4, 4, 2, 2, label_kind="depth", depth=DepthFacts(0.1, 8.0)
)  # fmt: skip
DATA = {"dense": PIXELS, "depth": DEPTHS}
CASES = [("dense", "segformer"), ("dense", "dpt"), ("depth", "dpt"), ("depth", "glpn"), ("depth", "depth_anything")]


@pytest.fixture
def saved(tmp_path):
    """Save an untrained model of a kind as transformers does, and return its folder."""

    def save(head, kind, **changes):
        folder = tmp_path / f"{head}-{kind}"
        AUTO[head].from_config(AutoConfig.for_model(kind, **TINY[kind], **changes)).save_pretrained(folder)
        return str(folder)

    return save


def student_of(folder, head, **options):
    size = None if "image_size" in options or options.get("pretrained") else 64 if "segformer" in folder else None
    options = {"image_size": size, **options} if size else options
    return build_student(StudentConfig(name=folder, **options), DATA[head], teacher=None, seed=0)


@pytest.mark.parametrize(("head", "kind"), CASES)
def test_a_student_trains_and_is_loaded_without_kdcli(saved, tmp_path, head, kind):
    size = 64 if kind in ("glpn", "segformer") else None
    student = student_of(saved(head, kind), head, image_size=size)
    task = DATA[head].task
    assert (student.facts.task, student.facts.depth) == (task, "metric")
    images = student.example(2)
    name = "depth" if head == "depth" else "logits"
    student.open_stages()
    output = student(images, Reads(("pooled",), ("pooled", *student.facts.stages), (name,)))
    values = output.heads[name]
    assert values.shape[:2] == (2, 1 if head == "depth" else 3)
    assert output.maps["pooled"].shape[2:] == student.facts.grids["pooled"]
    torch.testing.assert_close(output.features["pooled"], output.maps["pooled"].mean(dim=(2, 3)))
    sized = F.interpolate(values, images.shape[2:], mode="bilinear")
    if head == "depth":
        assert sized.min() > 0.1, "it starts where it has a gradient"
        loss = losses.silog(sized[:, 0], torch.ones(2, *images.shape[2:]), torch.ones(2, *images.shape[2:]).bool())
    else:
        loss = F.cross_entropy(sized, torch.zeros(2, *images.shape[2:], dtype=torch.int64), reduction="none")
    loss.mean().backward()
    trained = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in student.parameters()]
    assert sum(trained) > 0.7 * len(trained)

    student.eval()
    torch.testing.assert_close(student.native(images), student(images).heads[name])
    folder = tmp_path / "saved"
    student.save(folder)
    compared = list(export.reload(student, folder, None))
    assert len(compared) == 2
    for one in compared:
        torch.testing.assert_close(one.found, one.expected)
    config = json.loads((folder / "config.json").read_text())
    if head == "dense":
        assert config["semantic_loss_ignore_index"] == 255
        assert [config["id2label"][str(number)] for number in range(3)] == list(NAMES)
    again = load_teacher(TeacherConfig(name=str(folder)), task=task, seed=0)
    assert (again.facts.depth, again.facts.label_names) == ("metric", DATA[head].class_names)
    assert again.facts.preprocessing == student.facts.preprocessing
    torch.testing.assert_close(again(images).heads[name], student(images).heads[name])


def test_class_tokens_are_cut_off_at_every_layer(saved):
    """A DINOv2 of 4x4 patches of 14 pixels, whose backbone gives tokens with a class token."""
    student = student_of(saved("depth", "depth_anything"), "depth")
    layers = [f"backbone.{'encoder.' if hasattr(student.module.backbone, 'encoder') else ''}layer.1"]
    names = dict(student.module.named_modules())
    layer = next((name for name in layers if name in names), None) or next(
        name for name in names if name.endswith("layer.1") and name.startswith("backbone")
    )
    student.open_taps([layer, "neck.fusion_stage.layers.0"])
    assert student.facts.grids["pooled"] == student.facts.grids[layer] == (4, 4)
    assert student.facts.feature_dims["neck.fusion_stage.layers.0"] == 16


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [("dpt", {}, "inverse"), ("depth_anything", {}, "inverse"), ("glpn", {}, "metric"),
     ("depth_anything", {"depth_estimation_type": "metric", "max_depth": 20}, "metric")],
)  # fmt: skip
def test_a_teachers_depth_is_told_apart(saved, kind, changes, expected):
    folder = saved("depth", kind, **changes)
    size = 64 if kind == "glpn" else None
    teacher = load_teacher(TeacherConfig(name=folder, image_size=size), task="depth-estimation", seed=0)
    assert teacher.facts.depth == expected
    assert teacher.facts.pretrained
    told = load_teacher(TeacherConfig(name=folder, image_size=size, depth="metric"), task="depth-estimation", seed=0)
    assert told.facts.depth == "metric"


def test_depth_relative_to_a_prompt_is_refused_of_a_teacher(saved):
    folder = saved("depth", "prompt_depth_anything")
    with pytest.raises(UserError, match="relative to the range of a prompt"):
        load_teacher(TeacherConfig(name=folder), task="depth-estimation", seed=0)
    assert student_of(folder, "depth")(student_of(folder, "depth").example()).heads["depth"].min() > 0.5


def test_published_weights_stay_but_for_what_has_a_row_for_each_class(saved):
    folder = saved("dense", "segformer", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    theirs = load_teacher(TeacherConfig(name=folder, image_size=64), task="semantic-segmentation", seed=0)
    student = student_of(folder, "dense", pretrained=True)
    ours, found = student.module.state_dict(), theirs.module.state_dict()
    differ = {
        name for name in ours if ours[name].shape != found[name].shape or not torch.equal(ours[name], found[name])
    }
    assert differ == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    assert student.facts.pretrained
    assert student.facts.label_names == NAMES


def test_published_inverse_depth_starts_anew_at_its_last_layer(saved):
    folder = saved("depth", "dpt")
    theirs = load_teacher(TeacherConfig(name=folder), task="depth-estimation", seed=0)
    student = student_of(folder, "depth", pretrained=True)
    ours, found = student.module.state_dict(), theirs.module.state_dict()
    differ = {name for name in ours if not torch.equal(ours[name], found[name])}
    assert differ == {"head.head.4.weight", "head.head.4.bias"}


def test_weights_of_a_classifier_start_a_segmenter(tmp_path):
    from transformers import AutoModelForImageClassification

    folder = tmp_path / "classifier-segformer"
    module = AutoModelForImageClassification.from_config(AutoConfig.for_model("segformer", **TINY["segformer"]))
    module.save_pretrained(folder)
    student = student_of(str(folder), "dense", pretrained=True)
    ours, theirs = student.module.segformer.state_dict(), module.segformer.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_kind_by_name_is_for_the_task_that_asks(monkeypatch):
    from kdcli.models.transformers import dense_kinds

    for head, kinds in CLASSES.items():
        for kind in kinds:
            assert dense_kinds.head_of(AutoConfig.for_model(kind), head) == head
    assert dense_kinds.head_of(AutoConfig.for_model("beit"), "sequence") is None
    assert dense_kinds.head_of(AutoConfig.for_model("glpn"), "sequence") == "depth"


@pytest.mark.parametrize(("head", "kind"), [("dense", "glpn"), ("depth", "segformer")])
def test_a_kind_without_the_head_is_refused(head, kind):
    with pytest.raises(UserError, match=f"no model for .* of the kind '{kind}'"):
        build_student(StudentConfig(name=f"hf:{kind}"), DATA[head], teacher=None, seed=0)


def test_images_are_squashed_as_the_saved_processor_does(saved, tmp_path):
    student = student_of(saved("depth", "glpn"), "depth", image_size=64)
    assert student.facts.preprocessing.geometry == "squash"
    student.save(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    from PIL import Image

    made = processor(Image.new("RGB", (97, 41), (200, 30, 90)), return_tensors="pt")["pixel_values"]
    assert made.shape == (1, 3, 64, 64)
