"""Data that come with the libraries, for a first run without downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kdcli.base.errors import UserError, did_you_mean
from kdcli.data.images.dense.demos import DENSE_DEMOS, open_dense_demo
from kdcli.data.images.digits import read_digits
from kdcli.data.images.sources import ArraySource, OfficialSplits
from kdcli.data.stratify import draw_stratified

DEMOS = ("digits", "scenes")
"""Those with a class for each image."""


def open_demo(name: str, *, root: Path | None = None) -> OfficialSplits:
    """Open ``demo:NAME``.

    Args:
        name: without ``demo:``.
        root: ``data.root``, where the objects of ``scenes`` may lie.

    Raises:
        UserError: there is no such demo.
    """
    if name in DENSE_DEMOS:
        return open_dense_demo(name, "label", root=root)
    if name not in DEMOS:
        raise UserError(
            f"There is no demo:{name}.",
            f"{did_you_mean(name, DEMOS)} There is: {', '.join(f'demo:{demo}' for demo in DEMOS)}.".strip(),
        )
    return _digits()


def _digits() -> OfficialSplits:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels in 0..16, as 32x32 RGB; 1437 to train, 360 to test."""
    digits = read_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    upscaled = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB") for image in small]
    images = np.stack([np.asarray(image) for image in upscaled])
    test = np.sort(draw_stratified(digits.target, 360, seed=0))
    train = np.setdiff1d(np.arange(len(images)), test)
    return OfficialSplits(
        class_names=tuple(map(str, range(10))),
        train=ArraySource(images[train], digits.target[train], split="train"),
        test=ArraySource(images[test], digits.target[test], split="test"),
        notes=("Test: 360 of scikit-learn's 1797 digits, by a fixed seed, stratified by class.",),
    )
