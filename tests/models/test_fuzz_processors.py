"""Image processors with settings made up by Hypothesis: kdcli's tensor is transformers' own, or they are refused.

``tests/data/test_fuzz_data.py`` says how more of them are drawn.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.data import fit, prepare
from kdcli.models.transformers.processor import preprocessing_of

LONG = int(os.environ.get("KDCLI_FUZZ_CASES", 0))
KINDS = (
    *("ViT", "CLIP", "ConvNext", "DeiT", "Beit", "EfficientNet", "MobileViT", "MobileNetV2", "Siglip", "Bit", "Levit"),
    *("PoolFormer", "Pvt", "Swin2SR", "Segformer", "Vivit", "Dinov3ViT", "PPLCNet", "Perceiver", "GLPN", "DPT", "Blip"),
)
PROCESSORS = [name for kind in KINDS if hasattr(transformers, name := f"{kind}ImageProcessor")]
SIDES = st.sampled_from([16, 24, 32, 33, 40, 64, 384, 0, -1, 2.5, None, "32"]) | st.integers(8, 48)
SIZES = st.one_of(
    st.fixed_dictionaries({"shortest_edge": SIDES}),
    st.fixed_dictionaries({"height": SIDES, "width": SIDES}),
    st.fixed_dictionaries({"shortest_edge": SIDES, "longest_edge": SIDES}),
    SIDES,
)
SCALES = st.sampled_from([1 / 255, 1 / 127.5, 1 / 128, 1.0, 0.5, 0, -1 / 255, None, "x"])
TRIPLES = st.one_of(
    st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    st.sampled_from([[0.5] * 3, [127.5] * 3, 0.5, [0.5], [0, 0, 0], None, [0.5] * 4]),
)
FLAGS = st.sampled_from([True, False, True, False, None])
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "do_resize": FLAGS,
    "size": SIZES,
    "crop_size": SIZES,
    "crop_pct": st.sampled_from([0.5, 0.875, 0.9, 1.0, 0, None]),
    "resample": st.sampled_from([0, 1, 2, 3, 4, 5, 9, None]),
    "do_center_crop": FLAGS,
    "do_rescale": FLAGS,
    "rescale_factor": SCALES,
    "rescale_offset": FLAGS,
    "do_normalize": FLAGS,
    "image_mean": TRIPLES,
    "image_std": TRIPLES,
    "do_pad": FLAGS,
    "pad_size": SIZES,
    "do_flip_channel_order": FLAGS,
    "include_top": FLAGS,
    "size_divisor": st.sampled_from([8, 32, None]),
    "do_convert_rgb": FLAGS,
    "do_color_quantize": FLAGS,
    "do_something": FLAGS,
}


@st.composite
def processors(draw: st.DrawFn) -> dict[str, Any]:
    keys = draw(st.lists(st.sampled_from(sorted(SETTINGS)), max_size=5, unique=True))
    small = {"size": {"height": 32, "width": 32}} if draw(st.booleans()) else {"size": {"shortest_edge": 36}}
    crop = {"crop_size": {"height": 32, "width": 32}} if draw(st.booleans()) else {}
    chosen = {key: draw(SETTINGS[key]) for key in keys}
    return {"image_processor_type": draw(st.sampled_from(PROCESSORS)), **small, **crop, **chosen}


outcomes: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True, scope="module")
def counts() -> Iterator[None]:
    yield
    assert min(outcomes["followed"], outcomes["refused"]) > 0.1 * outcomes.total(), "the draws say nothing"
    if LONG:
        print(f"\n{outcomes.total()} cases: {dict(outcomes)}")


def smooth(height: int, width: int) -> Image.Image:
    """An image in which every geometry shows, and that filters hardly change."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = [255 * y, 255 * x, 127 + 120 * np.sin(3 * (x + 2 * y))]
    return Image.fromarray(np.rint(np.stack(channels, -1)).astype(np.uint8))


IMAGES = [smooth(48, 64), smooth(64, 40), smooth(32, 32)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, hf_folder: Path) -> Path:
    return Path(shutil.copytree(hf_folder, tmp_path_factory.mktemp("models") / "processors"))


@settings(max_examples=round(0.2 * (LONG or 250)))
@given(processors())
def test_image_processors(folder: Path, values: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    config = transformers.AutoConfig.from_pretrained(folder)
    try:
        preprocessing = preprocessing_of(folder, config, None)
    except UserError:
        outcomes["refused"] += 1
        return
    outcomes["followed"] += 1
    own = transformers.AutoImageProcessor.from_pretrained(folder)
    for image in IMAGES:
        ours = prepare(torch.from_numpy(np.array(fit(image, preprocessing))).permute(2, 0, 1)[None], preprocessing)
        expected = own(image, return_tensors="pt")["pixel_values"].float()
        if preprocessing.note and expected.shape != ours.shape:
            continue  # the plan says what differs
        assert ours.shape == expected.shape
        # Of all that the image's values span: as far as rounding to whole levels goes, and filters that have no antialiasing.
        span = float(expected.max() - expected.min())
        assert float((ours - expected).abs().max()) <= 0.02 * span + 1e-5, preprocessing
