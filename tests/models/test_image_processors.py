"""What kdcli makes of an image is what transformers' own image processor makes of it, or the processor is refused."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.data import fit, prepare
from kdcli.models.transformers import processor

SIZES = [(641, 479), (100, 37), (37, 100), (61, 45), (45, 61), (33, 33)]
"""(width, height); resizing the short side of the fourth and fifth gives halves."""

READ = {
    f"{name}ImageProcessor"
    for name in (
        *(
            "Beit",
            "Bit",
            "Blip",
            "CLIP",
            "ChineseCLIP",
            "ConvNext",
            "DINOv3ViT",
            "DPT",
            "DeiT",
            "EfficientNet",
        ),
        *(
            "Levit",
            "MobileNetV1",
            "MobileNetV2",
            "MobileViT",
            "PoolFormer",
            "Pvt",
            "Segformer",
            "Siglip2",
            "Siglip",
            "ViT",
        ),
    )
}
"""The kinds that go with transformers' image classifiers and towers of images."""
BY_CLASS = {name for entry in IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in entry.values() if name}
KINDS = sorted(name for name in BY_CLASS | {*dir(transformers)} if name.endswith("ImageProcessor"))


def photograph(width, height, seed=0):
    """Smooth colours under noise."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 5, height))
    smooth = np.stack([np.sin(x + y), np.cos(x * y / 3), np.sin(2 * x - y)], axis=2)
    noisy = 128 + 70 * smooth + np.random.default_rng(seed).normal(0, 30, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_settings(folder, settings):
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def read_or_refusal(folder):
    try:
        return processor.preprocessing_of(folder, None, None)
    except UserError as error:
        return error


def by_kdcli(image, found):
    return prepare(torch.from_numpy(np.array(fit(image, found))).permute(2, 0, 1)[None], found)


def by_transformers(folder, image):
    return AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]


def levels(found, ours, theirs):
    """Return the largest difference in levels of 255."""
    assert ours.shape == theirs.shape
    std = torch.tensor(found.std[::-1] if found.channels == "BGR" else found.std).view(3, 1, 1)
    return float(((ours - theirs).abs() * std * 255).max())


def small(kind):
    """Return the settings of a kind with sides of at most 256 pixels, for speed."""
    settings = {"image_processor_type": kind}
    for key in ("size", "crop_size"):
        sides = getattr(getattr(transformers, kind), key, None)
        if isinstance(sides, dict) and max(sides.values()) > 256:
            settings[key] = {name: side // 8 for name, side in sides.items()}
    return settings


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_followed_or_refused(tmp_path, kind):
    """With torchvision at hand, where transformers takes it; exactly, or to one level and a half of 255 where it does not round."""
    folder = write_settings(tmp_path, small(kind))
    found = read_or_refusal(folder)
    if isinstance(found, UserError):
        assert kind not in READ, found.message
        assert str(folder) in found.message
        return
    if kind == "Siglip2ImageProcessor":  # of any proportions: images that are square are the same
        image = photograph(99, 99)
        patches = by_transformers(folder, image).view(1, 16, 16, 16, 16, 3)
        theirs = patches.permute(0, 5, 1, 3, 2, 4).reshape(1, 3, 256, 256)
        assert levels(found, by_kdcli(image, found), theirs) < 0.01
        assert "proportions" in found.note
        return
    allowed = 1.5 if "does not round" in found.note else 0.01
    for size in SIZES[:3]:
        image = photograph(*size)
        assert levels(found, by_kdcli(image, found), by_transformers(folder, image)) < allowed


CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32}
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
EFFICIENT = {"image_processor_type": "EfficientNetImageProcessor", "size": 32}
FOLLOWED = {
    "plain": (CLIP | HALVES, {"mean": 0.5, "geometry": "crop", "resize": (40, 40), "image_size": (32, 32)}),
    "squashed": (VIT, {"mean": 0.5, "geometry": "squash", "resize": (32, 32), "image_size": (32, 32)}),
    "squashed, then cropped": (VIT | {"do_center_crop": True, "crop_size": 27}, {"resize": (32, 32), "image_size": (27, 27)}),
    "squashed to a rectangle": (VIT | {"size": {"height": 31, "width": 46}}, {"image_size": (31, 46)}),
    "doubled": (CLIP | {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, {"mean": 0.5, "std": 0.5}),
    "not scaled": (CLIP | {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, {"mean": 0.5, "std": 0.2}),
    "not normalised": (VIT | {"do_normalize": False}, {"mean": 0, "std": 1}),
    "neither": (VIT | {"do_normalize": False, "do_rescale": False}, {"mean": 0, "std": 1 / 255}),
    "only scaled": (VIT | {"do_normalize": False, "rescale_factor": 1 / 127.5}, {"mean": 0, "std": 0.5}),
    "shifted": (EFFICIENT | HALVES | {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False}, {"mean": 0.5, "std": 0.5}),
    "shifted and divided": (EFFICIENT | HALVES | {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, {"mean": 0.5, "std": 0.25}),
    "divided twice": (EFFICIENT | HALVES, {"mean": 0.5, "std": 0.25}),
    "nearest": (CLIP | {"resample": 0}, {"interpolation": "nearest"}),
    "Lanczos": (CLIP | {"resample": 1}, {"interpolation": "lanczos"}),
    "bilinear": (CLIP | {"resample": 2}, {"interpolation": "bilinear"}),
    "crop of a rectangle": (CLIP | {"crop_size": {"height": 24, "width": 39}}, {"image_size": (24, 39), "resize": (40, 40)}),
    "an odd number cut off": (CLIP | {"size": {"shortest_edge": 35}}, {"resize": (35, 35)}),
    "crop of more than there is": (CLIP | {"size": {"shortest_edge": 25}}, {"resize": (25, 25), "image_size": (32, 32)}),
    "ConvNeXt": ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 56}, "crop_pct": 0.9}, {"resize": (62, 62)}),
    "large ConvNeXt": ({"image_processor_type": "ConvNextImageProcessor"}, {"geometry": "squash", "image_size": (384, 384)}),
    "PoolFormer": ({"image_processor_type": "PoolFormerImageProcessor", "size": 48, "crop_size": 48}, {"resize": (53, 53)}),
    "LeViT": ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 42}, "crop_size": 40}, {"resize": (48, 48)}),
    "BGR": ({"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}, {"channels": "BGR", "mean": 0}),
    "BGR, scaled otherwise": ({"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32, "rescale_factor": 1 / 127.5}, {"channels": "BGR", "std": 0.5}),
    "BGR, squashed": ({"image_processor_type": "MobileViTImageProcessor", "size": {"height": 36, "width": 40}, "crop_size": 32}, {"channels": "BGR"}),
    "an old file": ({"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2}, {"geometry": "squash"}),
    "a setting of no effect": (VIT | {"do_convert_rgb": True, "do_rescal": False}, {"mean": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_settings_are_followed_and_exported_to_the_pixel(tmp_path, name):
    """By the processor's settings as they are, and by those that kdcli writes for the same preprocessing."""
    settings, expected = FOLLOWED[name]
    folder = write_settings(tmp_path / "own", settings)
    found = processor.preprocessing_of(folder, None, None)
    for key, value in expected.items():
        actual = getattr(found, key)
        assert actual == (pytest.approx((value,) * 3) if key in ("mean", "std") else value), key
    exported = tmp_path / "exported"
    processor.write(found, exported)
    assert_same_preprocessing(processor.preprocessing_of(exported, None, None), found)
    for number, size in enumerate(SIZES):
        image = photograph(*size, seed=number)
        ours = by_kdcli(image, found)
        assert levels(found, ours, by_transformers(folder, image)) < 0.01
        assert levels(found, ours, by_transformers(exported, image)) < 0.01


def assert_same_preprocessing(one, other):
    for key in ("image_size", "resize", "geometry", "interpolation", "channels", "kernels"):
        assert getattr(one, key) == getattr(other, key), key
    assert one.mean == pytest.approx(other.mean)
    assert one.std == pytest.approx(other.std)


REFUSED = {
    "as they are": (VIT | {"do_resize": False}, "do_resize is false"),
    "not cropped": (CLIP | {"do_center_crop": False}, "size is {'shortest_edge': 40} without a crop"),
    "bounded": (CLIP | {"size": {"shortest_edge": 40, "longest_edge": 900}}, "bounded by longest_edge"),
    "padded": (VIT | {"do_pad": True, "pad_size": 48}, "does not know do_pad=True, pad_size="),
    "box filter": (VIT | {"resample": 4}, "resample is 4"),
    "multiples": ({"image_processor_type": "GLPNImageProcessor", "size_divisor": 16}, "GLPNImageProcessor"),
    "proportions": ({"image_processor_type": "DPTImageProcessor", "size": 64, "keep_aspect_ratio": True}, "keep_aspect_ratio=True"),
    "grey": ({"image_processor_type": "SuperPointImageProcessor", "size": {"height": 48, "width": 64}, "do_grayscale": True}, "do_grayscale=True"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_named(tmp_path, name):
    settings, named = REFUSED[name]
    folder = write_settings(tmp_path, settings)
    with pytest.raises(UserError) as error:
        processor.preprocessing_of(folder, None, None)
    assert named in error.value.message
    assert "teacher.image_size" in error.value.hint


def test_an_image_size_takes_the_place_of_a_geometry_that_is_not_understood(tmp_path):
    """Pixels are still scaled as the processor does, and what differs is said."""
    scaled = {"rescale_factor": 1 / 127.5, "image_mean": [1.2, 1.0, 0.8], "image_std": [1.0, 0.9, 0.8]}
    found = processor.preprocessing_of(write_settings(tmp_path, VIT | scaled | {"do_resize": False}), None, (48, 48))
    assert (found.image_size, found.geometry) == ((48, 48), "crop")
    assert (
        found.note == "Not as its ViTImageProcessor would: do_resize is false, so that images stay of different sizes."
    )
    image = photograph(48, 48)
    assert levels(found, by_kdcli(image, found), by_transformers(tmp_path, image)) < 0.01


def test_an_image_size_does_not_excuse_another_scale(tmp_path):
    grey = {
        "image_processor_type": "SuperPointImageProcessor",
        "size": {"height": 48, "width": 64},
        "do_grayscale": True,
    }
    with pytest.raises(UserError, match=r"scales pixels as kdcli can't: the colour \(30, 120, 210\) becomes"):
        processor.preprocessing_of(write_settings(tmp_path, grey), None, (48, 48))


@pytest.mark.parametrize(
    "settings",
    [
        {"rescale_factor": 0},
        {"rescale_factor": "a"},
        {"image_std": [0.5, 0, 0.5]},
        {"image_mean": [0.5, 0.5]},
        {"rescale_factor": -1 / 255},
        {"size": {"height": 100_000, "width": 32}},
        {"do_center_crop": True, "crop_size": {"height": 100_000, "width": 100_000}},
        {"size": {"height": 330, "width": 330}, "do_center_crop": True, "crop_size": 32},
        {"resample": "soft"},
    ],
)
def test_impossible_settings(tmp_path, settings):
    with pytest.raises(UserError) as error:
        processor.preprocessing_of(write_settings(tmp_path, VIT | settings), None, None)
    assert str(tmp_path) in error.value.message or "impossible" in error.value.message


@pytest.mark.parametrize(("side", "resize", "image_size"), [(40, (40, 40), (32, 32)), (20, (50, 50), (40, 40))])
def test_another_image_size_keeps_the_share_that_is_cut_off(tmp_path, side, resize, image_size):
    asked = None if side == 40 else (40, 40)
    found = processor.preprocessing_of(write_settings(tmp_path, CLIP), None, asked)
    assert (found.resize, found.image_size) == (resize, image_size)


@pytest.mark.parametrize(
    ("config", "size", "mean", "std", "channels"),
    [
        (transformers.ViTConfig(image_size=32), (32, 32), 0.5, 0.5, "RGB"),
        (transformers.ResNetConfig(), (224, 224), 0.5, 0.5, "RGB"),
        (transformers.EfficientNetConfig(image_size=64), (64, 64), 0.5, 0.25, "RGB"),
        (transformers.MobileViTConfig(), (256, 256), 0, 1, "BGR"),
        (transformers.HieraConfig(image_size=[32, 48]), (32, 48), 0.48145466, 0.26862954, "RGB"),
    ],
)
def test_without_an_image_processor_the_class_decides(tmp_path, config, size, mean, std, channels):
    found = processor.preprocessing_of(tmp_path, config, None)
    assert (found.image_size, found.resize, found.channels) == (size, size, channels)
    assert (found.mean[0], found.std[0]) == pytest.approx((mean, std))
    assert found.note.startswith("It has no preprocessor_config.json")
    processor.write(found, tmp_path)
    image = photograph(61, 45)
    assert levels(found, by_kdcli(image, found), by_transformers(tmp_path, image)) < 0.01


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"interpolation": "box"}, "the filter box"),
        ({"geometry": "border"}, "a border"),
        ({"resize": (40, 50)}, "a crop out of 50x40"),
        ({"channels": "BGR"}, "BGR with mean (0.5, 0.5, 0.5)"),
    ],
)
def test_what_no_image_processor_can_do_is_refused_before_it_would_have_to_be_written(tmp_path, changes, named):
    found = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, kernels="torchvision")
    processor.check_writable("hf:vit", found)
    with pytest.raises(UserError) as error:
        processor.check_writable("hf:vit", dataclasses.replace(found, **changes))
    assert named in error.value.message


def any_settings(draw):
    """Return random settings of a random kind that kdcli follows in its usual form."""
    side = draw.randint(8, 64)
    sizes = [side, {"shortest_edge": side}, {"height": side, "width": draw.randint(8, 64)}, {"longest_edge": side}]
    values = {
        "size": sizes,
        "crop_size": [side, draw.randint(4, 90), {"height": draw.randint(4, 64), "width": draw.randint(4, 64)}],
        "crop_pct": [0.875, draw.uniform(0.3, 1.2)],
        "resample": [0, 1, 2, 3, 4, None],
        "rescale_factor": [1 / 255, 1 / 127.5, 1.0, draw.uniform(-0.1, 0.5)],
        "image_mean": [0.5, [0.1, 0.2, 0.3], [128, 100, 90], None],
        "image_std": [0.5, [0.1, 0.2, 0.3], [50, 60, 70], None],
        "size_divisor": [4, 7],
        "pad_size": [{"height": 70, "width": 70}],
    }
    flags = (
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "do_pad",
        "do_flip_channel_order",
        "include_top",
    )
    values |= {flag: [True, False, None] for flag in (*flags, "rescale_offset", "do_convert_rgb")}
    kind = draw.choice(sorted(READ - {"Siglip2ImageProcessor"}))
    chosen = draw.sample(sorted(values), draw.randint(0, 6))
    return {"image_processor_type": kind, "size": sizes[draw.randint(0, 2)]} | {
        key: draw.choice(values[key]) for key in chosen
    }


def test_random_settings(tmp_path):
    """Whatever is followed is followed in images that the check at loading does not see."""
    draw, followed = random.Random(0), 0
    for number in range(120):
        settings = any_settings(draw)
        folder = write_settings(tmp_path, settings)
        found = read_or_refusal(folder)
        if isinstance(found, UserError):
            continue
        followed += 1
        allowed = 1.5 if "does not round" in found.note else 0.01
        for size in ((draw.randint(1, 200), draw.randint(1, 200)), (draw.randint(60, 300), 23)):
            if max(size) > 15 * min(size):
                continue
            image = photograph(*size, seed=number)
            ours = by_kdcli(image, found)
            assert levels(found, ours, by_transformers(folder, image)) < allowed, (settings, size)
        processor.check_writable("hf:x", found)
        processor.write(found, tmp_path / "exported")
        assert levels(found, ours, by_transformers(tmp_path / "exported", image)) < 0.01, settings
    assert followed > 30
