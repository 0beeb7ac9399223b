"""Training augmentation: a pure function of (seed, epoch, sample index)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from kdcli.base.errors import UserError
from kdcli.config.data import AugmentConfig
from kdcli.data.images.decode import values_of
from kdcli.data.images.geometry import Affine, Crop, Flip, Geometry, Move, Pad, Resize
from kdcli.data.images.photo import Pixels
from kdcli.data.images.pictures import Partner
from kdcli.machine.seeding import seeded

ERASED = (124, 116, 104)
"""RGB of erased rectangles: ImageNet's mean, so about 0 after the usual normalisation. The mean of the three is that of
every channel where there are others."""


_RESAMPLING = Image.Resampling.BICUBIC
"""Of everything that is resized to the canvas."""


class Augmentation:
    """Augments one image as ``augment`` says, and its target along with it.

    First where the pixels go: random resized crop, padded crop and flip, of image and target alike. Then their values,
    of the image alone: policy, colour jitter, erasing. A policy may turn, shear or shift too, and its targets go along:
    boxes become the boxes around them. Both run on the PIL image, whose kernels give the same bits on
    any number of threads; all of torchvision's transforms draw from torch's global generator and from no other.

    Args:
        augment: what to do; mixing is :class:`~kdcli.data.images.mix.Mix`'s part.
        canvas: (height, width) of the result.
        seed: the run's.
        channels: of the images.

    Raises:
        UserError: a range whose lower end is above its upper end, or what is done to colours of images that have none.
    """

    def __init__(self, augment: AugmentConfig, *, canvas: tuple[int, int], seed: int, channels: int = 3) -> None:
        check_channels(augment, channels)
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(augment, key)
            if low > high:
                raise UserError(f"augment.{key} is [{low}, {high}].", "The lower end comes first.")
        self._augment, self._canvas, self._seed = augment, canvas, seed
        low, high = (ratio * canvas[1] / canvas[0] for ratio in augment.crop_ratio)
        self._crop = (
            None
            if augment.crop_scale == (1.0, 1.0)
            else v2.RandomResizedCrop(list(canvas), scale=augment.crop_scale, ratio=(low, high))
        )
        self._padded_crop = v2.RandomCrop(list(canvas), padding=augment.pad) if augment.pad else None
        self._policy = _policy(augment)
        self._values = _values(augment, self._policy, channels)

    def __call__(
        self, image: Pixels, target: Any = None, *, epoch: int, index: int, fill: float = 0, what: str = "augment"
    ) -> tuple[Tensor, Any]:
        """Return uint8 ``(channels, H, W)`` and the target; torch's generators are left as they were.

        Args:
            image: of any size; a photo is decoded at a part of its size where that is enough.
            target: as :meth:`~kdcli.data.images.geometry.Geometry.of_target` takes it.
            epoch: of training.
            index: of the sample in the source.
            fill: what borders are in masks.
            what: names the stream of random numbers: an image beside another of the same index has its own.
        """
        if isinstance(target, Partner):  # of another kind, and not the same things at the same places
            other, _ = self(target.drawn(epoch, index), epoch=epoch, index=index, what="partner")
            target = other.float().div_(127.5).sub_(1)
        with seeded(what, self._seed, epoch, index):
            geometry = self._draw(image)
            if self._policy is not None:
                self._policy.moves.clear()
            shown, left = (image, geometry) if isinstance(image, Image.Image) else image.begin(geometry, _RESAMPLING)
            pixels: Any = left.of_image(shown, resize=_resize)
            for change in self._values:
                pixels = change(pixels)
        if self._policy is not None:
            geometry = Geometry((*geometry.moves, *self._policy.moves))
        return pixels, geometry.of_target(
            target, fill=fill, of_picture=lambda picture: geometry.of_image(picture, resize=_resize)
        )

    def _draw(self, image: Pixels) -> Geometry:
        height, width = self._canvas
        moves: list[Move] = []
        if self._crop is not None:
            whole = torch.empty(1, image.height, image.width, device="meta")  # nothing but its size is read
            moves.append(Crop(**self._crop.make_params([whole])))
        moves.append(Resize(height, width))
        if self._padded_crop is not None:
            drawn = self._padded_crop.make_params([torch.empty(1, height, width, device="meta")])
            moves += [Pad(*drawn["padding"]), Crop(drawn["top"], drawn["left"], height, width)]
        if self._augment.flip > 0 and torch.rand(1) < self._augment.flip:
            moves.append(Flip())
        return Geometry(tuple(moves))


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), _RESAMPLING)


class _Moving:
    """Of a policy of torchvision's: notes where its transforms move the pixels of the last image.

    Attributes:
        moves: of that image, in order.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.moves: list[Affine] = []

    def _apply_image_or_video_transform(
        self, image: Any, transform_id: str, magnitude: float, *args: Any, **options: Any
    ) -> Any:
        move = _move(transform_id, magnitude, *image.size)
        if move is not None:
            self.moves.append(move)
        return super()._apply_image_or_video_transform(  # type: ignore[misc]
            image, transform_id, magnitude, *args, **options
        )


class _Trivial(_Moving, v2.TrivialAugmentWide):
    """TrivialAugmentWide."""


class _Rand(_Moving, v2.RandAugment):
    """RandAugment."""


def _policy(augment: AugmentConfig) -> _Trivial | _Rand | None:
    """Return the policy that may move pixels, if it is one of those."""
    kinds: dict[str, type[_Trivial | _Rand]] = {"trivial": _Trivial, "rand": _Rand}
    return kinds[augment.policy](interpolation=InterpolationMode.BILINEAR) if augment.policy in kinds else None


def _move(transform_id: str, magnitude: float, width: int, height: int) -> Affine | None:
    """Return where a transform of torchvision's policies moves pixels; None where it moves none."""
    match transform_id:
        case "ShearX":
            return Affine((1, magnitude, 0, 0, 1, 0))
        case "ShearY":
            return Affine((1, 0, 0, magnitude, 1, 0))
        case "TranslateX":
            return Affine((1, 0, -int(magnitude), 0, 1, 0))
        case "TranslateY":
            return Affine((1, 0, 0, 0, 1, -int(magnitude)))
        case "Rotate":  # anticlockwise about the middle
            angle = -math.radians(magnitude)
            cosine, sine, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
            return Affine((cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y))
    return None


def check_channels(augment: AugmentConfig, channels: int) -> None:
    """Refuse what is done to colours where images have a fourth channel, which no colour's rule is for.

    Raises:
        UserError: it names the key.
    """
    if channels == 4:
        asked = {"augment.policy": augment.policy != "none", "augment.color_jitter": augment.color_jitter > 0}
        if given := [key for key, is_set in asked.items() if is_set]:
            raise UserError(
                f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set, and data.channels is 4: that is done"
                " to greyscale or to colours, and says nothing of a fourth channel.",
                "Leave it out; crops, flips, erasing, mixup and cutmix take any number of channels.",
            )


def _values(augment: AugmentConfig, policy: _Trivial | _Rand | None, channels: int) -> list[Callable[[Any], Any]]:
    """Return what changes values, and as part of a policy moves pixels: from an image to uint8 (channels, H, W)."""
    transforms: list[Callable[[Any], Any]] = [] if policy is None else [policy]
    if augment.policy == "three":
        transforms.append(v2.RandomChoice([v2.Grayscale(channels), v2.RandomSolarize(128, p=1.0), _Blur()]))
    if (strength := augment.color_jitter) > 0:
        transforms.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    transforms.append(_as_tensor)
    if augment.erase > 0:
        colour = ERASED if channels == 3 else (round(sum(ERASED) / 3),) * channels
        transforms.append(v2.RandomErasing(augment.erase, value=colour, inplace=True))
    return transforms


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(values_of(image).copy()).permute(2, 0, 1)


class _Blur:
    """PIL's Gaussian blur with a radius between 0.1 and 2 pixels, as in 3-Augment: torchvision's would leave PIL."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))
