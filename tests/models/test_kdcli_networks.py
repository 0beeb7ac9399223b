"""The networks that timm lacks: sizes as published, shapes, names, files, checkpoints of the benchmark's code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.timm import kdcli_networks

PUBLISHED = {
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
    "cifar_resnet20": 278_324,
    "cifar_resnet32": 472_756,
    "cifar_resnet44": 667_188,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
    "cifar_wrn_16_2": 703_284,
    "cifar_wrn_40_1": 569_780,
    "cifar_wrn_40_2": 2_255_156,
}
"""Parameters at 100 classes, of the distillation benchmark's models."""
IN_MILLIONS = {"mobilenetv1_025": 0.5, "mobilenetv1_050": 1.3, "mobilenetv1_075": 2.6}
"""Table 6 of Howard et al., at 1000 classes."""


def basic_resnet(n: int, stem: int, widths: tuple[int, ...], classes: int) -> int:
    """Count by hand: convolutions without bias, two parameters a channel for each batch normalisation."""
    total, before = 27 * stem + 2 * stem, stem
    for stage, width in enumerate(widths):
        total += 9 * before * width + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
        if stage or before != width:
            total += before * width + 2 * width
        before = width
    return total + before * classes + classes


def wide_resnet(n: int, k: int, classes: int) -> int:
    total, before = 27 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        total += 9 * before * width + (2 * n - 1) * 9 * width * width + 2 * before + (2 * n - 1) * 2 * width
        total += before * width if before != width else 0
        before = width
    return total + 2 * before + before * classes + classes


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [name for name in kdcli_networks.NAMES if name.startswith("cifar_")])
def test_parameters_of_cifar_networks(name):
    module = timm.create_model(name)
    if found := re.fullmatch(r"cifar_resnet(\d+)(x4)?", name):
        n, is_wide = (int(found[1]) - 2) // 6, bool(found[2])
        expected = basic_resnet(n, 32, (64, 128, 256), 100) if is_wide else basic_resnet(n, 16, (16, 32, 64), 100)
        convolutions = sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in module.modules())
        assert convolutions + 1 == int(found[1])
    else:
        depth, k = map(int, re.fullmatch(r"cifar_wrn_(\d+)_(\d)", name).groups())
        expected = wide_resnet((depth - 4) // 6, k, 100)
    assert count(module) == expected == PUBLISHED.get(name, expected)


@pytest.mark.parametrize("name", IN_MILLIONS)
def test_parameters_of_mobilenets(name):
    assert round(count(timm.create_model(name)) / 1e6, 1) == IN_MILLIONS[name]


@pytest.mark.parametrize(("name", "width"), [("vkd_deit_tiny_patch16_224", 192), ("vkd_deit_small_patch16_224", 384)])
def test_parameters_of_vkds_deits(name, width):
    """By hand: stem, class token, positions of 196 patches and two tokens, twelve blocks, a norm and two heads."""
    stem = 7 * 7 * 3 * 64 + 2 * 3 * 3 * 64 * 64 + 3 * 2 * 64 + 8 * 8 * 64 * width + width
    block = 12 * width * width + 9 * width + 4 * width
    expected = stem + width + 198 * width + 12 * block + 2 * width + 2 * (width * 1000 + 1000)
    with torch.device("meta"):
        assert count(timm.create_model(name)) == expected


def test_vkds_deit_by_hand():
    """The second token is the mean of the patches, before positions are added; evaluation takes the mean of both heads."""
    torch.manual_seed(0)
    module = timm.create_model(
        "vkd_deit_tiny_patch16_224", depth=1, embed_dim=16, num_heads=2, num_classes=3, img_size=32
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    stem = module.patch_embed.proj
    x = images
    for number, stride, padding in ((0, 2, 3), (1, 1, 1), (2, 1, 1)):
        convolution, norm, _ = stem[number]
        assert (convolution.stride, convolution.padding, convolution.bias) == ((stride,) * 2, (padding,) * 2, None)
        x = torch.relu(norm(torch.conv2d(x, convolution.weight, stride=stride, padding=padding)))
    patches = torch.conv2d(x, stem[3].weight, stem[3].bias, stride=8).flatten(2).transpose(1, 2)
    assert patches.shape == (2, 4, 16)
    tokens = torch.cat([module.cls_token.expand(2, -1, -1), patches.mean(1, keepdim=True), patches], dim=1)
    tokens = module.norm(module.blocks[0](tokens + module.pos_embed))
    torch.testing.assert_close(module.forward_features(images), tokens)
    expected = (module.head(tokens[:, 0]) + module.head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(module(images), expected)
    with pytest.raises(ValueError, match="16 x 16"):
        timm.create_model("vkd_deit_tiny_patch16_224", patch_size=8)


def test_vkds_deit_is_a_student_with_a_distillation_head(tmp_path):
    name = "vkd_deit_tiny_patch16_224?depth=1&embed_dim=16&num_heads=2"
    student = build_student(StudentConfig(name=name, image_size=32), DataFacts.of_labels(["a", "b"]), seed=0)
    assert "distillation" in student.facts.heads
    assert student.facts.feature_dims["pooled"] == 16
    images = torch.randn(2, 3, 32, 32)
    pooled = student.eval()(images, Reads(("pooled",))).features["pooled"]
    torch.testing.assert_close(pooled, student.module.forward_features(images)[:, 2:].mean(dim=1))
    student.save(tmp_path / "saved")
    torch.testing.assert_close(load_saved(tmp_path / "saved")(images).logits, student(images).logits)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_resnet8x4", "cifar_wrn_16_2"])
@pytest.mark.parametrize("size", [28, 32, 64])
def test_the_grid_is_halved_twice_at_any_size(name, size):
    module = timm.create_model(name, num_classes=7, in_chans=1).eval()
    images = torch.randn(2, 1, size, size)
    features = module.forward_features(images)
    assert features.shape == (2, module.num_features, size // 4, size // 4)
    pooled = module.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
    torch.testing.assert_close(module(images), module.get_classifier()(pooled))
    module.reset_classifier(0)
    torch.testing.assert_close(module(images), pooled)
    module.reset_classifier(5)
    assert module(images).shape == (2, 5)


def test_a_resnet_block_by_hand():
    """Sum, then ReLU; the shortcut that changes shape is normalised."""
    module = timm.create_model("cifar_resnet8").eval()
    x = torch.randn(2, 16, 8, 8)
    block = module.layer2[0]
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    shortcut = block.downsample[1](block.downsample[0](x))
    assert block.downsample[0].kernel_size == (1, 1)
    torch.testing.assert_close(block(x), torch.relu(shortcut + inner))
    block = module.layer1[0]
    x = x.relu()
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(x + inner))


def test_a_wide_block_by_hand():
    """Normalised and rectified first, nothing after the sum, the input itself as the identity shortcut."""
    module = timm.create_model("cifar_wrn_16_1").eval()
    x = torch.randn(2, 16, 8, 8)
    for block in (module.block1[0], module.block2[0]):
        normalized = torch.relu(block.bn1(x))
        inner = block.conv2(torch.relu(block.bn2(block.conv1(normalized))))
        expected = inner + (x if block is module.block1[0] else block.shortcut(normalized))
        given = x.clone()
        torch.testing.assert_close(block(given), expected)
        assert torch.equal(given, x)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("cifar_resnet8", ("depths=[2,2,2]", "cifar_resnet14")),
        ("cifar_resnet8", ("channels=[32,64,128,256]", "cifar_resnet8x4")),
        ("cifar_wrn_16_1", ("channels=[16,32,64,128]", "cifar_wrn_16_2")),
        ("cifar_wrn_16_1", ("depths=[6,6,6]", "cifar_wrn_40_1")),
    ],
)
def test_arguments_make_the_other_networks(tmp_path, name, same):
    query, other = same
    config = StudentConfig(name=f"{name.replace('_', ':', 1)}?{query}", image_size=32)
    student = build_student(config, DataFacts.of_labels(["a", "b"]), seed=0).eval()
    shapes = {key: value.shape for key, value in timm.create_model(other, num_classes=2).state_dict().items()}
    assert {key: value.shape for key, value in student.module.state_dict().items()} == shapes
    student.save(tmp_path / "saved")
    images = torch.randn(2, 3, 32, 32)
    module = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    torch.testing.assert_close(module(images), student(images).logits)


@pytest.mark.parametrize("name", ["random:cifar:resnet20", "random:cifar:wrn_40_2"])
def test_a_student_of_such_a_teacher(name):
    """Layers are blocks of a stage, not the depth in the network's name."""
    config = TeacherConfig(name=name)
    source = config, load_teacher(config, seed=0)
    student = build_student(
        StudentConfig(name="teacher?layers=1"), DataFacts.of_labels(["a", "b"]), seed=0, source=source
    )
    first = "layer1" if "resnet" in name else "block1"
    assert len(student.module.get_submodule(first)) == 1
    own = source[1].module.get_parameter(f"{first}.0.conv1.weight")
    assert student.module.get_parameter(f"{first}.0.conv1.weight").equal(own)
    half = StudentConfig(name="teacher?layers=[1,2,3]&width=0.5")
    narrow = build_student(half, DataFacts.of_labels(["a", "b"]), seed=0, source=source)
    assert narrow.facts.feature_dims["pooled"] * 2 == source[1].facts.feature_dims["pooled"]


@pytest.mark.parametrize("name", ["cifar:wrn_16_1", "random:cifar:wrn_16_1", "cifar_wrn_16_1", "timm:cifar_wrn_16_1"])
def test_names_of_a_student(name):
    model = build_student(StudentConfig(name=name), DataFacts.of_labels(["a", "b", "c"]), seed=0)
    assert isinstance(model.module, kdcli_networks.CifarWideResNet)
    assert model.facts.preprocessing.image_size == (32, 32)
    assert model.facts.preprocessing.mean == (0.5071, 0.4867, 0.4408)
    assert model.facts.feature_dims == {"pooled": 64, "embedding": 64}


def test_a_random_teacher_says_so():
    facts = load_teacher(TeacherConfig(name="random:cifar:resnet8", image_size=28), seed=0).facts
    assert (facts.name, facts.pretrained) == ("random:cifar:resnet8", False)
    assert facts.preprocessing.image_size == (28, 28)


def test_a_teacher_without_weights_is_told_how_to_get_one():
    with pytest.raises(UserError, match="no published weights of cifar:resnet20") as error:
        load_teacher(TeacherConfig(name="cifar:resnet20"), seed=0)
    assert "kdcli distill --teacher none --student cifar:resnet20" in error.value.hint
    with pytest.raises(UserError, match="no published weights"):
        build_student(StudentConfig(name="cifar:resnet20", pretrained=True), DataFacts.of_labels(["a", "b"]), seed=0)


@pytest.mark.parametrize(
    "name", ["cifar:resnet21", "random:cifar:resnet21", "cifar:", "cifar:resnet20.tag", "cifar:a/b"]
)
def test_unknown_names_list_all(name):
    with pytest.raises(UserError, match="There is no model") as error:
        load_teacher(TeacherConfig(name=name), seed=0)
    assert "cifar:resnet20, " in error.value.hint
    if "21" in name:
        assert re.search(r"Did you mean .*cifar:resnet20", error.value.message)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoints_of_the_benchmarks_code_fit(tmp_path, suffix):
    """Its wide networks have another nesting and another name for the shortcut."""
    made = timm.create_model("cifar_wrn_16_2", num_classes=4).eval()
    theirs = {
        re.sub(r"^(block\d)\.(\d)", r"\1.layer.\2", name).replace("shortcut", "convShortcut"): value.clone()
        for name, value in made.state_dict().items()
    }
    assert "block1.layer.0.convShortcut.weight" in theirs
    file = tmp_path / f"wrn{suffix}"
    if suffix == ".pth":
        torch.save({"model": theirs, "best_acc": 0.5}, file)
    else:
        save_file(theirs, file)
    teacher = load_teacher(TeacherConfig(name="cifar:wrn_16_2", weights=str(file)), seed=0)
    assert "matched by name" in teacher.facts.weights
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images).logits, made(images))


@pytest.mark.parametrize("name", ["cifar:resnet8", "mobilenetv1_025"])
def test_a_saved_folder_has_the_file_and_kdcli_never_runs_it(tmp_path, name):
    student = build_student(StudentConfig(name=name, image_size=32), DataFacts.of_labels(["a", "b"]), seed=0).eval()
    student.save(tmp_path / "saved")
    copy = tmp_path / "saved" / "kdcli_networks.py"
    assert copy.read_bytes() == Path(kdcli_networks.__file__).read_bytes()
    copy.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('ran')\n")
    images = torch.randn(2, 3, 32, 32)
    for model in (load_saved(tmp_path / "saved"), load_teacher(TeacherConfig(name=str(tmp_path / "saved")), seed=0)):
        torch.testing.assert_close(model(images).logits, student(images).logits)
    assert not (tmp_path / "ran").exists()


def test_other_models_have_no_such_file(tmp_path):
    build_student(StudentConfig(name="test_resnet"), DataFacts.of_labels(["a", "b"]), seed=0).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
