"""Inputs that are no squares: what a model's library makes of ``image_size: [64, 96]``, and of a saved student."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, DepthFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.section import read_size
from kdcli.data import fit, prepare
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.detections import BOXES
from kdcli.models.libraries import library_called
from tests.models import tiny_dense
from tests.models.tiny_detectors import TINY, write_config

SIZE = (64, 96)
NAMES = ("ant", "bee", "cat")
LABELS = DataFacts.of_labels(NAMES)
PIXELS = DataFacts("made-up", "semantic-segmentation", NAMES, 8, 8, 8, 8, label_kind="pixels")
THINGS = DataFacts("made-up", "object-detection", NAMES, 8, 8, 8, 8, label_kind="boxes")
METRES = DataFacts(
    "made-up", "depth-estimation", ("depth",), 8, 8, 8, 8, label_kind="depth", depth=DepthFacts(0.1, 8.0)
)
VIT = "num_hidden_layers=2&num_attention_heads=2&hidden_size=32&intermediate_size=32"
SMP = "smp:linknet/mobilenetv3_small_050?encoder_depth=4"
DPT = "smp:dpt/vit_tiny_patch16_224?decoder_intermediate_channels=[8,8,8,8]&decoder_fusion_channels=8"
CASES = {
    "timm, any size": ("test_resnet", LABELS, (2, 3)),
    "timm, img_size": ("test_vit", LABELS, (4, 6)),
    "timm, windows": ("swin_tiny_patch4_window7_224?embed_dim=16&depths=[2,2]&num_heads=[2,2]", LABELS, (8, 12)),
    "kdcli": ("cifar:resnet8", LABELS, (16, 24)),
    "hf, positions": (f"hf:vit?{VIT}", LABELS, (4, 6)),
    "hf, DINOv2": ("hf:dinov2?num_hidden_layers=2&num_attention_heads=2&hidden_size=32", LABELS, (4, 6)),
    "hf, windows": ("hf:swin?embed_dim=16&depths=[2,2]&num_heads=[2,2]&window_size=4", LABELS, (8, 12)),
    "hf, BGR": ("hf:mobilevit?hidden_sizes=[16,16,16]&neck_hidden_sizes=[8,8,8,8,8,8,16]", LABELS, (2, 3)),
    "hf, segformer": ({"model_type": "segformer", **tiny_dense.TINY["segformer"]}, PIXELS, (2, 3)),
    "hf, depth": ({"model_type": "depth_anything", **tiny_dense.TINY["depth_anything"]}, METRES, None),
    "hf, detector": ("yolos", THINGS, (4, 6)),
    "hf, anchors": ("rt_detr", THINGS, None),
    "smp": (SMP, PIXELS, (4, 6)),
    "smp, depth": (SMP, METRES, (4, 6)),
    "smp, img_size": (DPT, PIXELS, (4, 6)),
    "torchvision": ("torchvision:ssdlite/mobilenet_v3_small", THINGS, None),
    "torchvision, regions": (
        "torchvision:fasterrcnn/mobilenet_v3_small?rpn_post_nms_top_n_test=20", THINGS, None,
    ),
}  # fmt: skip


def named(given, folder):
    """Return a model's name; of a config the folder that it is written to."""
    if isinstance(given, dict):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(given))
        return str(folder)
    if given in TINY:
        return str(write_config(folder, given))
    for package, prefix in (("segmentation_models_pytorch", "smp:"),):
        if given.startswith(prefix):
            pytest.importorskip(package)
    return given


def answer_of(model, images):
    """Return everything that the heads give, as tensors."""
    heads = model(images, model.predictions).heads
    return {name: value.raw if name == BOXES else {name: value} for name, value in heads.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_student_of_another_shape_is_saved_and_loaded(case, tmp_path):
    given, facts, grid = CASES[case]
    name = named(given, tmp_path / "config")
    student = build_student(StudentConfig(name=name, image_size=list(SIZE)), facts, seed=0).eval()
    wanted = student.facts.preprocessing
    assert wanted.image_size == SIZE
    assert fit(Image.new("RGB", (200, 90)), wanted).size == SIZE[::-1]
    images = student.example(2)
    assert images.shape == (2, 3, *SIZE)
    student.open_stages()
    taps = ("pooled", *student.facts.stages)
    with torch.no_grad():
        maps = student(images, Reads(maps=taps)).maps
        expected = answer_of(student, images)
        student.save(tmp_path / "saved")
        again = load_saved(tmp_path / "saved").eval()
        found = answer_of(again, images)
    for tap in taps:
        height, width = student.facts.grids[tap]
        assert maps[tap].shape[2:] == (height, width)
        assert abs(width - 1.5 * height) <= 1, f"{tap}: {height}x{width}"
    assert grid in (None, student.facts.grids["pooled"])
    assert again.facts.preprocessing == wanted
    assert again.facts.macs == student.facts.macs
    torch.testing.assert_close(found, expected)
    for one in library_called(student.library).reload(student, tmp_path / "saved", projector=None):
        torch.testing.assert_close(one.found, one.expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["hf, positions", "hf, BGR", "hf, segformer", "hf, depth", "hf, detector"])
def test_the_saved_image_processor_makes_the_same_of_an_image(case, tmp_path):
    given, facts, _ = CASES[case]
    config = StudentConfig(name=named(given, tmp_path / "config"), image_size=list(SIZE))
    student = build_student(config, facts, seed=0)
    student.save(tmp_path / "saved")
    noise = np.random.default_rng(0).integers(0, 256, (110, 75, 3), dtype=np.uint8)
    image, wanted = Image.fromarray(noise), student.facts.preprocessing
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")(image, return_tensors="pt")
    ours = prepare(torch.from_numpy(np.array(fit(image, wanted))).permute(2, 0, 1)[None], wanted)
    assert (theirs["pixel_values"] - ours).abs().max() < 0.05


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("random:test_vit", "image-classification"),
        ("random:test_resnet", "image-classification"),
        (f"random:hf:vit?{VIT}", "image-classification"),
        (f"random:hf:clip?{VIT}", "image-classification"),
        ("random:torchvision:ssdlite/mobilenet_v3_small", "object-detection"),
    ],
)
def test_a_teacher_reads_another_shape(name, task):
    """CLIP's positions are resized on the way, by itself."""
    teacher = load_teacher(TeacherConfig(name=name, image_size=SIZE), task=task, seed=0)
    assert teacher.facts.preprocessing.image_size == SIZE
    height, width = teacher.facts.grids["pooled"]
    assert abs(width - 1.5 * height) <= 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"hf:clip?{VIT}", "can't be built for images of 64x96 pixels"),
        (f"hf:siglip?{VIT}", "can't be built for images of 64x96 pixels"),
        (f"hf:siglip2?{VIT}", "number of patches, which tells no 64x96 pixels"),
    ],
)
def test_a_kind_that_takes_squares_alone_says_so(name, message):
    with pytest.raises(UserError, match=message) as refusal:
        build_student(StudentConfig(name=name, image_size=SIZE), LABELS, seed=0)
    assert "Give image_size one side" in refusal.value.hint


@pytest.mark.parametrize("size", [(64, 96), (32, 128)])
def test_what_lays_tokens_out_as_a_square_is_refused(size, tmp_path):
    """Of 4x16 tokens DPT's own ViT makes 8x8, without a word."""
    name = named({"model_type": "dpt", **tiny_dense.TINY["dpt"]}, tmp_path / "config")
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} pixels"):
        build_student(StudentConfig(name=name, image_size=size), PIXELS, seed=0)


def test_a_size_is_written_in_one_way():
    sizes = [StudentConfig(name="x", image_size=size) for size in (64, [64, 64], (64, 64))]
    assert [config.model_dump_json() for config in sizes] == [sizes[0].model_dump_json()] * 3
    assert sizes[0].image_size == 64
    pair = StudentConfig(name="x", image_size=[96, 128])
    assert StudentConfig.model_validate_json(pair.model_dump_json()) == pair
    assert (pair.image_size, pair.input_size) == ((96, 128), (96, 128))
    assert read_size("--image-size", "96x128") == (96, 128)
    for wrong in (0, 4097, [96], [96, 128, 3], [96, 0], 1.5, True, "96x128"):
        with pytest.raises(ValueError, match=r"1 to 4096 pixels, or \[height, width\]"):
            StudentConfig(name="x", image_size=wrong)
    with pytest.raises(UserError, match="--image-size can't be '96x'"):
        read_size("--image-size", "96x")
