"""``NAME?option=value``: the grammar, the models, the saved students; and ``teacher?layers=N&width=F``."""

import json
import resource

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification, CLIPConfig, CLIPModel, SwinConfig, SwinForImageClassification

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.text import redact
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.models import build_student, load_saved, load_teacher, parse_name
from kdcli.models.shrink import Shrinking, copy_tensors, evenly_spaced, shrink
from kdcli.models.spec import format_query

LABELS = ("apple", "leaf", "sky")


def student(name, **options):
    return build_student(StudentConfig(name=name, **options), DataFacts.of_labels(LABELS), seed=0)


def teacher_and_student(teacher, query, labels=LABELS, **options):
    config = TeacherConfig(name=teacher)
    model = load_teacher(config, seed=3)
    made = StudentConfig(name=f"teacher?{query}", **options)
    return model, build_student(made, DataFacts.of_labels(labels), seed=0, source=(config, model))


# --- grammar ----------------------------------------------------------------------------------------------------------


def test_values_are_read_as_yaml():
    name = parse_name("random:hf:org/name?a=3&b=0.5&c=true&d=relu&e=[1,2]")
    assert (name.target, name.library, name.random) == ("org/name", "transformers", True)
    assert name.arguments == {"a": 3, "b": 0.5, "c": True, "d": "relu", "e": [1, 2]}


@pytest.mark.parametrize(
    "query",
    ["", "depth", "=3", "depth=3&", "depth=3&depth=4", "a=", "a=null", "a={b: 1}", "a=[[1]]", "a=.inf", "a=[", "a-b=1"],
)
def test_what_is_no_query_is_refused(query):
    with pytest.raises(UserError) as error:
        parse_name(f"resnet18?{query}")
    assert "resnet18" in error.value.message
    assert error.value.hint
    assert redact(error.value.hint) == error.value.hint  # an example is no credential


@pytest.mark.parametrize(
    "arguments", [{}, {"a": 3, "b": 0.5, "c": False}, {"d": "relu", "e": [1, 2]}, {"f": "3", "g": "no"}]
)
def test_a_written_query_reads_as_the_same(arguments):
    assert parse_name("name" + format_query(arguments)).arguments == arguments


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("test_vit?depth=2&embed_dim=48&num_heads=3", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
        ("test_resnet?channels=[16,24,32,40]", {"channels": [16, 24, 32, 40]}),
        ("test_byobnet?stem_chs=8", {"stem_chs": 8}),
        ("test_vit?global_pool=avg&class_token=false", {"global_pool": "avg", "class_token": False}),
    ],
)
def test_a_student_of_timm_is_what_timm_builds_and_reloads_alone(tmp_path, name, same):
    model = student(name).eval()
    architecture = name.partition("?")[0]
    wanted = timm.create_model(architecture, num_classes=3, **same)
    assert {n: t.shape for n, t in model.module.state_dict().items()} == {
        n: t.shape for n, t in wanted.state_dict().items()
    }
    assert model.facts.num_parameters != student(architecture).facts.num_parameters
    assert model.facts.name == f"timm:{name}"
    model.save(tmp_path / "a")
    images = torch.randn(2, 3, 160, 160)
    expected = model(images).logits
    torch.testing.assert_close(
        timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()(images), expected
    )
    load_saved(tmp_path / "a").save(tmp_path / "b")  # a second export carries the arguments on
    torch.testing.assert_close(load_saved(tmp_path / "b")(images).logits, expected)


def test_a_generators_argument():
    assert student("mobilenetv3_small_050?depth_multiplier=0.5").facts.num_parameters < 600_000


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("test_vit?dept=2", "Did you mean depth", "embed_dim"),
        ("test_resnet?depth=2", "no argument 'depth'", "layers"),
        ("test_vit?num_classes=5", "num_classes", "data's classes"),
        ("test_vit?img_size=64", "img_size", "image_size"),
        ("test_vit?drop_path_rate=0.1", "drop_path_rate", "student.drop_path"),
        ("test_vit?embed_dim=50&num_heads=3", "can't build", "other values"),
        ("test_vit?depth=2.5", "can't build", "other values"),
        ("mobilenetv3_small_050?channel_multiplier=0.5", "timm fixes channel_multiplier", "leaves open"),
    ],
)
def test_unsuitable_arguments_of_timm(name, message, hint):
    with pytest.raises(UserError) as error:
        student(name)
    assert message in error.value.message
    assert hint in error.value.hint


def test_published_weights_do_not_go_with_arguments():
    with pytest.raises(UserError, match="architecture as it is") as error:
        student("test_vit?depth=2", pretrained=True)
    assert "teacher?layers" in error.value.hint
    with pytest.raises(UserError, match="architecture as it is") as error:
        load_teacher(TeacherConfig(name="test_vit?depth=2"), seed=0)
    assert "random:" in error.value.hint
    assert load_teacher(TeacherConfig(name="random:test_vit?depth=2"), seed=0).facts.num_parameters < 250_000


def test_a_teachers_own_weights_go_with_arguments(tmp_path):
    made = student("test_vit?depth=2")
    made.save(tmp_path / "made")
    config = TeacherConfig(name="test_vit?depth=2", weights=str(tmp_path / "made" / "model.safetensors"))
    loaded = load_teacher(config, seed=1)
    assert all(a.equal(b) for a, b in zip(loaded.parameters(), made.parameters(), strict=True))


# --- transformers -----------------------------------------------------------------------------------------------------


def test_a_student_of_transformers_reloads_alone(tmp_path, hf_folder):
    model = student(f"hf:{hf_folder}?num_hidden_layers=3&hidden_size=16").eval()
    assert (model.module.config.num_hidden_layers, model.facts.feature_dims["pooled"]) == (3, 16)
    model.save(tmp_path / "a")
    module = AutoModelForImageClassification.from_pretrained(tmp_path / "a").eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(module(images).logits, model(images).logits)


@pytest.mark.parametrize(
    ("query", "message", "hint"),
    [
        ("num_hidden_layer=2", "Did you mean num_hidden_layers", "hidden_size"),
        ("hidden_size=wide", "'wide'", "same type"),
        ("hidden_size=1.5", "1.5", "same type"),
        ("image_size=64", "image_size", "student.image_size"),
        ("hidden_act=nonsense", "can't be built", "another"),
    ],
)
def test_unsuitable_arguments_of_transformers(hf_folder, query, message, hint):
    with pytest.raises(UserError) as error:
        student(f"{hf_folder}?{query}")
    assert message in error.value.message
    assert hint in error.value.hint


# --- from the teacher -------------------------------------------------------------------------------------------------


def test_layers_are_spaced_as_in_distilbert():
    assert evenly_spaced(12, 6) == (0, 2, 4, 7, 9, 11)
    assert evenly_spaced(6, 6) == (0, 1, 2, 3, 4, 5)
    assert (evenly_spaced(12, 2), evenly_spaced(12, 1)) == ((0, 11), (0,))


def test_a_vits_layers_come_from_the_teachers():
    teacher, small = teacher_and_student("random:test_vit", "layers=3")
    theirs, ours = teacher.module.state_dict(), small.module.state_dict()
    for mine, other in enumerate((0, 2, 5)):  # 6 blocks; round half to even
        for part in ("attn.qkv.weight", "mlp.fc1.bias", "norm1.weight"):
            assert ours[f"blocks.{mine}.{part}"].equal(theirs[f"blocks.{other}.{part}"])
    for name in ("pos_embed", "cls_token", "patch_embed.proj.weight", "norm.weight"):
        assert ours[name].equal(theirs[name])
    assert ours["head.weight"].equal(student("test_vit?depth=3").module.state_dict()["head.weight"])
    total = len(ours)
    assert small.facts.weights == (
        f"{total - 2} of {total} tensors copied from the teacher (blocks: layers 0, 2, 5); the others untrained"
    )
    assert small.training
    assert teacher.facts.num_parameters > 1.5 * small.facts.num_parameters
    ours["pos_embed"].zero_()  # copies, not views
    assert teacher.module.pos_embed.any()


def test_width_keeps_the_names_and_copies_what_fits():
    _, small = teacher_and_student("random:test_vit", "layers=2&width=0.5")
    assert small.facts.name == "timm:test_vit?depth=2&num_heads=1&embed_dim=32"
    assert small.facts.feature_dims["pooled"] == 32
    assert small.facts.weights.startswith("0 of ")
    teacher, small = teacher_and_student("random:resnet18", "layers=[1,2,1,1]&width=0.5", image_size=32)
    assert small.facts.name.startswith("timm:resnet18?layers=[1,2,1,1]&channels=[32,64,128,256]")
    assert small.module.conv1.weight.equal(teacher.module.conv1.weight), "the stem keeps its width"


def test_stages_of_a_convnext(tmp_path):
    teacher, small = teacher_and_student("random:test_convnext", "layers=1")
    assert small.facts.name == "timm:test_convnext?depths=[1,1,1,1]"
    assert [len(stage.blocks) for stage in small.module.stages] == [1, 1, 1, 1]
    first = "stages.2.blocks.0.conv_dw.weight"
    assert small.module.state_dict()[first].equal(teacher.module.state_dict()[first])
    small.save(tmp_path / "a")
    images = torch.randn(1, 3, 160, 160)
    reloaded = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    torch.testing.assert_close(reloaded(images), small.eval()(images).logits)


def test_the_classifier_stays_only_with_the_same_labels(hf_folder):
    teacher, small = teacher_and_student(str(hf_folder), "layers=1")
    weight = teacher.module.classifier.weight
    assert small.module.classifier.weight.equal(weight)
    assert "untrained" not in small.facts.weights
    teacher, small = teacher_and_student(str(hf_folder), "layers=1", labels=("a", "b", "c"))
    assert small.module.classifier.weight.shape == weight.shape
    assert not small.module.classifier.weight.equal(weight)
    assert "untrained" in small.facts.weights


def test_a_backbone_of_transformers_becomes_a_classifier(tmp_path, hf_folder):
    load_teacher(TeacherConfig(name=str(hf_folder)), seed=0).module.vit.save_pretrained(tmp_path / "backbone")
    teacher, small = teacher_and_student(str(tmp_path / "backbone"), "layers=1")
    assert teacher.facts.num_classes == 0
    assert small.backbone.embeddings.position_embeddings.equal(teacher.backbone.embeddings.position_embeddings)


def test_staged_and_two_towered_configs(tmp_path):
    torch.manual_seed(0)
    swin = SwinConfig(embed_dim=16, depths=[2, 4], num_heads=[2, 4], window_size=4, image_size=32, patch_size=4)
    SwinForImageClassification(swin).save_pretrained(tmp_path / "swin")
    _, small = teacher_and_student(str(tmp_path / "swin"), "layers=2&width=0.5")
    assert small.facts.name.endswith("?depths=[2,2]&num_heads=[1,2]&embed_dim=8")
    tower = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    other = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(vision_config=tower | {"image_size": 32, "patch_size": 8}, text_config=other)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    _, small = teacher_and_student(str(tmp_path / "clip"), "layers=2")
    assert small.module.config.vision_config.num_hidden_layers == 2
    assert small.module.config.text_config.num_hidden_layers == 1
    assert "encoder.layers: layers 0, 2" in small.facts.weights


@pytest.mark.parametrize(
    ("teacher", "query", "message", "hint"),
    [
        ("random:test_efficientnet", "layers=2", "number of layers", "NAME?option=value"),
        ("random:mixer_s32_224", "layers=2", "timm fixes num_blocks", "leaves open"),
        ("random:ghostnet_050", "layers=2", "number of layers", "can change: width"),
        ("random:vgg11", "width=0.5", "the width", "NAME?option=value"),
        ("random:test_vit", "layers=7", "6 layers, not 7", "1 to 6"),
        ("random:test_vit", "layers=[1,1]", "one stack of 6", "one number"),
        ("random:test_convnext", "layers=[1,1,1]", "stages of 1, 2, 4, 2", "one number for each"),
        ("random:test_convnext", "layers=5", "none of 5", "1 to 4"),
        ("random:test_vit", "layers=0", "whole number from 1", "teacher?layers"),
        ("random:test_vit", "width=1.5", "at most 1", "teacher?layers"),
        ("random:test_vit", "layer=2", "Did you mean layers", "teacher?layers"),
    ],
)
def test_what_a_family_can_not_do_is_said(teacher, query, message, hint):
    with pytest.raises(UserError) as error:
        teacher_and_student(teacher, query)
    assert message in error.value.message
    assert hint in error.value.hint


def test_contradictions():
    with pytest.raises(UserError, match="there is none"):
        student("teacher?layers=2")
    with pytest.raises(UserError, match="not published ones"):
        teacher_and_student("random:test_vit", "layers=2", pretrained=True)


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        # Heads stay whole: half as many of the same width.
        ({"embed_dim": 384, "num_heads": 6}, 0.5, {"embed_dim": 192, "num_heads": 3}),
        # 1.5 heads are none: three of half the width.
        ({"embed_dim": 192, "num_heads": 3}, 0.5, {"embed_dim": 96}),
        ({"embed_dims": (32, 64), "num_heads": (1, 2)}, 0.5, {"embed_dims": [16, 32]}),
        ({"dims": (40, 80)}, 0.5, {"dims": [24, 40]}),
        ({"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}, 0.25,
         {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}),
        ({"dim": 768, "n_heads": 12, "hidden_dim": 3072}, 0.5, {"dim": 384, "n_heads": 6, "hidden_dim": 1536}),
        ({"width_mult": 1.5}, 0.5, {"width_mult": 0.75}),
    ],
)  # fmt: skip
def test_widths(values, width, expected):
    assert shrink(values, Shrinking(None, width), teacher="it") == expected


def test_copying_leaves_what_it_is_told_to():
    one, other = (timm.create_model("test_vit", depth=depth) for depth in (6, 2))
    before = other.head.weight.clone()
    report = copy_tensors(one, other, leave={"head.weight"})
    assert report.fresh == ("head.weight",)
    assert other.head.weight.equal(before)
    assert other.head.bias.equal(one.head.bias)


# --- config -----------------------------------------------------------------------------------------------------------


def test_the_student_alone_begins_with_the_same_weights():
    values = {"teacher": {"name": "random:test_vit", "image_size": 64}, "student": "teacher?layers=2", "data": "x"}
    alone = parse_config(values, source="test").alone()
    assert alone.teacher.name == "none"
    assert alone.student.source == TeacherConfig(name="random:test_vit", image_size=64)


def test_names_with_arguments_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "a").mkdir(parents=True)
    values = {"teacher": "none", "student": {"name": "teacher?layers=2", "source": "./models/a"}, "data": "x"}
    assert parse_config(values, source="test").with_absolute_paths().student.source.name == str(tmp_path / "models/a")
    values = {"teacher": "none", "student": "./models/a?depth=2", "data": "x"}
    name = parse_config(values, source="test").with_absolute_paths().student.name
    assert name == f"{tmp_path / 'models/a'}?depth=2"


# --- absurd sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_tiny_patch16_224?depth=100000", "would have more than 2000 parts"),
        ("hf:resnet?depths=[100000,1,1,1]", "would have more than 2000 parts"),
        ("mobilenetv3_small_050?depth_multiplier=1000", "would have more than 2000 parts"),
        ("test_vit?embed_dim=2000000&num_heads=2", r"would have [\d,]+ parameters or more"),
        ("hf:vit?hidden_size=1000000", r"would have [\d,]+ parameters or more"),
        ("test_vit?depth=10000000000000", "and 2097152 is the most"),
        ("mobilenetv3_small_050?depth_multiplier=1001", "and 1000 is the most"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_spent(monkeypatch, name, said):
    monkeypatch.setattr("kdcli.models.bounds.MOST_MODULES", 2000)
    monkeypatch.setattr("kdcli.models.bounds.total_memory", lambda: 2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said):
        student(name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB: a gigabyte


def test_memory_is_the_bound_of_parameters(monkeypatch):
    number = student("test_vit?depth=20").facts.num_parameters
    monkeypatch.setattr("kdcli.models.bounds.total_memory", lambda: 4 * number)
    student("test_vit?depth=20")
    monkeypatch.setattr("kdcli.models.bounds.total_memory", lambda: 4 * number - 1)
    with pytest.raises(UserError, match="parameters or more"):
        student("test_vit?depth=20")


def test_a_folders_network_has_the_same_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("kdcli.models.bounds.MOST_MODULES", 2000)
    student("test_vit").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] = {"depth": 100000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="would have more than 2000 parts"):
        load_saved(tmp_path)
