"""What models of images have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.base.facts import MAX_IMAGE_SIZE, Preprocessing
from kdcli.base.tasks import HeadKind, task_of
from kdcli.base.text import short_repr
from kdcli.data import AnyBatch, Batch, prepare
from kdcli.models.base import Inputs, Model, Origin
from kdcli.models.taps import LayerTap, describe_layer

_MAX_RESIZE = 10
"""Images are resized before they are cropped to a model's size: to more than this many times that they could fill the
memory."""


CHANNELS = (1, 3, 4)
"""Of images that models may read."""


def said_channels(count: object) -> str:
    """Return ``1 channel``, ``3 channels``."""
    return f"{count} channel{'' if count == 1 else 's'}"


class VisionModel(Model):
    """A model of images."""

    preprocessing: Preprocessing

    def __init__(self, module: nn.Module, origin: Origin, preprocessing: Preprocessing, num_classes: int) -> None:
        check_preprocessing(origin.name, preprocessing)
        super().__init__(module, origin, preprocessing, num_classes)

    def prepare(self, batch: AnyBatch) -> Inputs:
        """Return (B, channels, H, W), float32, normalised and ordered as ``facts.preprocessing`` says."""
        assert isinstance(batch, Batch)
        return prepare(batch.images, self.preprocessing)

    def example(self, batch_size: int = 1, *, seed: int = 0) -> Tensor:
        """Return standard normal images (B, channels, H, W) of the model's own size and number of channels."""
        generator, wanted = torch.Generator().manual_seed(seed), self.preprocessing
        return torch.randn(batch_size, wanted.num_channels, *wanted.image_size, generator=generator)

    def _task(self, num_classes: int) -> str:
        return task_of("image", self._head_kind(num_classes)).name

    def _head_kind(self, num_classes: int) -> HeadKind:
        """Return what it has on top: by default a classifier of whole images, or nothing."""
        return "sequence" if num_classes else "none"

    def _input_errors(self, origin: Origin) -> AbstractContextManager[None]:
        return _input_errors(origin, self.preprocessing.image_size)

    @property
    @abstractmethod
    def _num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens at the head of a sequence of tokens; 0 for a model without any."""

    def _describe_layer(self, name: str, outputs: list[Any], inputs: Tensor) -> tuple[LayerTap, int]:
        return describe_layer(self.facts.name, name, outputs, inputs, self._num_prefix_tokens)


def check_image_size(name: str, sides: Iterable[object]) -> None:
    """Refuse the input size of a model's config before a tensor of it is made.

    Raises:
        UserError: a side is no whole number of 1 to ``MAX_IMAGE_SIZE`` pixels.
    """
    for side in sides:
        if not isinstance(side, int) or not 1 <= side <= MAX_IMAGE_SIZE:
            raise UserError(
                f"{name} is made for images of {short_repr(side)} pixels; kdcli takes 1 to {MAX_IMAGE_SIZE}.",
                "Check the model's config, or choose another model.",
            )


def check_preprocessing(name: str, preprocessing: Preprocessing) -> None:
    """Refuse what no image can be made into.

    Raises:
        UserError: sizes, mean or deviation are no sensible numbers.
    """
    check_image_size(name, preprocessing.image_size)
    mean, std = preprocessing.mean, preprocessing.std
    are_numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in (*mean, *std))
    if not (are_numbers and len(mean) == len(std) and len(mean) in CHANNELS and min(std) > 0):
        raise UserError(
            f"{name} wants impossible images: mean {short_repr(mean)}, std {short_repr(std)}.",
            "Check the model's config, or choose another model.",
        )
    sides = zip(preprocessing.resize, preprocessing.image_size, strict=True)
    if not all(1 <= side <= size * _MAX_RESIZE for side, size in sides):
        raise UserError(
            f"{name} wants images resized to {short_repr(preprocessing.resize)} pixels before they are cropped to"
            f" {short_repr(preprocessing.image_size)}.",
            "Check the model's config, or choose another model.",
        )


def check_divides(name: str, size: tuple[int, int], stride: int) -> None:
    """Refuse images whose sides a network's maps can't be laid over.

    Args:
        name: of the model.
        size: (height, width) of its input in pixels.
        stride: what both have to be multiples of.

    Raises:
        UserError: with the nearest sizes that it takes.
    """
    if all(side % stride == 0 for side in size):
        return
    below, above = (
        "x".join(str(max(stride, stride * ((side + up) // stride))) for side in size) for up in (0, stride - 1)
    )
    raise UserError(
        f"{name} takes images whose sides are multiples of {stride}, and they are {size[0]}x{size[1]} pixels.",
        f"Set image_size to {below if below == above else f'{below} or {above}'}.",
    )


@contextmanager
def _input_errors(origin: Origin, size: tuple[int, int]) -> Iterator[None]:
    """Turn what a model throws at an image that it can't take into the user's error."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason, shown = str(error) or type(error).__name__, f"{size[0]}x{size[1]}"
        if origin.image_size is None:
            message, hint = f"{origin.name} can't take RGB images of {shown} pixels", "Choose another model."
        else:
            message, hint = (
                f"{origin.name} can't take images of {shown} pixels",
                "Leave image_size out for its own, or give another one.",
            )
        raise UserError(f"{message}: {reason}", hint) from error
