"""Discriminators of patches, and images as methods see them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from kdcli.base.facts import Preprocessing
from kdcli.base.reads import IMAGE, Reads
from kdcli.data import AnyBatch, Batch, prepare
from kdcli.models.base import Model

_INIT_STD = 0.02


class PatchDiscriminator(nn.Module):
    """A discriminator that judges every patch of an image by itself (Isola et al., CVPR 2017, section 6.1.2).

    ``layers`` convolutions of 4x4 that halve the sides, one that does not, and one to a logit; all but the first and
    the last are followed by an instance normalisation, all but the last by a leaky ReLU. With three layers a logit is
    of 70x70 pixels. Weights start as N(0, 0.02).

    Args:
        inputs: channels of what is judged: 3 of an image, 6 of an image beside another.
        channels: of the first layer.
        layers: that halve the sides.
    """

    def __init__(self, inputs: int, channels: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        width = inputs
        for level in range(layers + 1):
            wider = channels * min(2**level, 8)
            parts.append(nn.Conv2d(width, wider, 4, 2 if level < layers else 1, 1))
            parts += [nn.InstanceNorm2d(wider)] if level else []
            parts.append(nn.LeakyReLU(0.2))
            width = wider
        self.body = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))
        for part in self.body:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, _INIT_STD)
                nn.init.zeros_(cast("Tensor", part.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 1, h, w) of the patches of ``images`` (B, inputs, H, W)."""
        logits: Tensor = self.body(images)
        return logits


def pictures_of(batch: AnyBatch, student: Model) -> Tensor:
    """Return a batch's images at the student's size, float32 (B, 3, H, W) from -1 to 1."""
    assert isinstance(batch, Batch)
    assert isinstance(student.preprocessing, Preprocessing)
    plain = replace(student.preprocessing, mean=(0.5,) * 3, std=(0.5,) * 3, channels="RGB")
    return prepare(batch.images, plain)


def translate(student: Model, pictures: Tensor) -> Tensor:
    """Return what the student makes of pictures (B, 3, H, W) from -1 to 1, likewise, with gradient to both."""
    wanted = student.preprocessing
    assert isinstance(wanted, Preprocessing)
    mean, std = (pictures.new_tensor(values)[:, None, None] for values in (wanted.mean, wanted.std))
    inputs = ((pictures + 1) / 2 - mean) / std
    image: Tensor = student(inputs.flip(1) if wanted.channels == "BGR" else inputs, Reads(heads=(IMAGE,))).heads[IMAGE]
    return image


def of_each(values: Tensor) -> Tensor:
    """Return the mean of the values of each image, (B,)."""
    return values.flatten(1).mean(dim=1)


def mean_where(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean over the known ones of values (B,); 0, with a gradient, where none is."""
    return torch.where(known, values, 0.0).sum() / known.sum().clamp(min=1)
