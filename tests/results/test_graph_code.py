"""The code on model cards of graphs: its preprocessing is kdcli's, pixel for pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.base.facts import Preprocessing
from kdcli.data.images.preprocess import fit, prepare
from kdcli.results.graph_code import _read_images, codes_of

SIZES = [(50, 37), (37, 50), (30, 30), (201, 20)]


@pytest.mark.parametrize("geometry", ["crop", "squash", "border"])
@pytest.mark.parametrize(("size", "resize"), [((24, 24), (0, 0)), ((24, 24), (27, 27)), ((20, 28), (23, 33))])
@pytest.mark.parametrize("kernels", ["pillow", "torchvision"])
def test_it_reads_images_as_in_evaluation(tmp_path, geometry, size, resize, kernels):
    if geometry == "border":
        resize = (0, 0)  # there is no other
    wanted = Preprocessing(
        size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=resize, geometry=geometry, kernels=kernels
    )
    names: dict = {}
    for channels in ("RGB", "BGR"):
        wanted = dataclasses.replace(wanted, channels=channels)
        exec("import numpy as np\nfrom PIL import Image, ImageOps\n" + _read_images(wanted), names)
        for number, shape in enumerate(SIZES):
            pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photo.png")
            found = names["read"](tmp_path / "photo.png")
            fitted = fit(Image.fromarray(pixels), wanted)
            expected = prepare(torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None], wanted).numpy()
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            difference = np.abs(found - expected)
            if kernels == "pillow":
                assert difference.max() < 1e-5
            else:  # torchvision rounds its weights otherwise; images of noise are the worst case
                assert difference.mean() < 0.01


def test_codes_are_kept_of_cards_of_the_same_run_alone():
    from kdcli.runs.cards import card_content

    card = card_content(
        "A table.\n\n## Load it\n\nWith timm:\n\n```python\none\n\ntwo\n```\n\nWith ONNX:\n\n```python\nx\n```\n\nMade.\n"
    )
    assert codes_of(card, "timm", ("A table.", "Made.")) == {"": "one\n\ntwo", "ONNX": "x"}
    assert codes_of(card, "timm", ("Another table.",)) == {}
    assert codes_of(card.replace(b"x\n", b"y\n"), "timm", ("A table.",)) == {}
    assert codes_of(card_content("## Load it\n\n```python\none\n```\n"), "timm", ()) == {"": "one"}
    assert codes_of(b"", "timm", ()) == {}
