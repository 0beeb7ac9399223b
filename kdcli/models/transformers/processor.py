"""transformers' image processors against :class:`kdcli.base.facts.Preprocessing`."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from transformers import AutoImageProcessor, CLIPImageProcessor, MobileViTImageProcessor, Siglip2ImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.base.facts import Interpolation, Preprocessing
from kdcli.base.text import short_repr
from kdcli.data import fit, prepare
from kdcli.models.transformers import files
from kdcli.models.vision import CHANNELS, check_image_size, check_preprocessing
from kdcli.models.weights import reason_of

_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's filters by number; for its other two torchvision has no tensors, and transformers fails."""

_OF_DETECTORS = (640, 640)
"""Input of a detector that has no size of its own, nor an image processor with one."""

_SQUARE_POSITIONS = {"dinov2", "dinov2_with_registers"}
"""Kinds whose position embeddings are always those of a square, resized within the network."""

_READ = {
    *("size", "crop_size", "crop_pct", "resample", "rescale_factor", "rescale_offset", "image_mean", "image_std"),
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order", "include_top"),
    # Of no effect on one image in RGB.
    *("do_convert_rgb", "default_to_square", "data_format", "input_data_format", "disable_grouping", "device"),
    *("return_tensors", "do_reduce_labels"),
}
"""Settings that are translated, or that change nothing of one image."""

_PATCHES = "Siglip2ImageProcessor"
"""The image processor that cuts images of any proportions into patches."""

_EXACT = 0.01
"""Of 255 levels: as far as a pixel may be from the image processor's by the order of float32's operations."""
_ROUNDING = 1.5
"""Likewise by rounding to whole levels, which image processors leave out that scale pixels before they resize."""


class _NotRead(Exception):
    """An image processor makes something of an image that :class:`Preprocessing` has no words for."""


def channels_of(config: Any) -> int:
    """Return how many channels a model's images have: what its config says, or that of its vision tower, else 3."""
    found = getattr(getattr(config, "vision_config", None) or config, "num_channels", 3)
    return found if found in CHANNELS else 3


def preprocessing_of(
    folder: Path | None, config: Any, image_size: tuple[int, int] | None, *, kind: str | None = None
) -> Preprocessing:
    """Return what :func:`_of_colours` does, for as many channels as the model has.

    Raises:
        UserError: as there, or four channels would be in an order that is none.
    """
    found, channels = _of_colours(folder, config, image_size, kind=kind), channels_of(config)
    if channels == 4 and found.channels == "BGR":
        raise UserError(
            "The model's image processor gives BGR, in which a fourth channel has no place.", "Choose another model."
        )
    return found.of_channels(channels)


def _of_colours(
    folder: Path | None, config: Any, image_size: tuple[int, int] | None, *, kind: str | None = None
) -> Preprocessing:
    """Return what the folder's image processor does, checked against itself on a few images.

    Without a folder or a ``preprocessor_config.json``: channels, scale and filter of the processor class that
    transformers gives to this kind of model, else ImageNet's, and a centre crop of ``config.image_size`` (224 without
    one).

    Args:
        folder: where the model lies.
        config: of the model.
        image_size: (height, width) in place of its own. With it a processor whose geometry kdcli does not have is no
            error: images are resized and centre-cropped to that size, and ``note`` says so. To one that is no square
            they are squashed, as no image processor cuts anything else out of an image that keeps its proportions.
        kind: the image processor's class of a detector, of whose images nothing may be cut off. By default they are
            squashed to the size; without one so are those that an image processor makes of several sizes: to a square
            of the side that it gives the shorter one.

    Raises:
        UserError: there is an image processor that transformers can't read, that has impossible settings, or that makes
            something else of an image than what kdcli can.
    """
    if not is_in(folder):
        return _default(config, image_size, is_of_folder=folder is not None, of_detector=kind)
    hint = "Check its preprocessor_config.json."
    try:
        own = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        settings, given = own.to_dict(), type(own).__name__
    except Exception as error:  # on values of the wrong type transformers raises whatever it trips over
        raise UserError(f"The image processor in {folder} can't be read: {error}", hint) from error
    try:
        for key in ("size", "crop_size", "pad_size"):
            sides = settings.get(key) or {}
            check_image_size(
                str(folder), [sides[side] for side in ("height", "width", "shortest_edge") if sides.get(side)]
            )
        scale = _scale(settings, given)
        try:
            found = _translate(settings, given, scale)
            check_preprocessing(str(folder), found)
            if given.startswith(_PATCHES):
                _check_scale(own, found)
            elif _check(own, settings, found) > _EXACT:
                found = replace(
                    found, note=f"{given} does not round pixels when it resizes: about 1 of 255 levels at most."
                )
        except _NotRead as difference:
            side = None if kind is None else _shorter_side(settings)
            size = image_size or (side and (side, side))
            if not size:
                raise UserError(
                    f"{given} of {folder} prepares images in a way that kdcli does not have: {difference}.",
                    "Where 'kdcli distill' is given teacher.image_size or student.image_size, images are resized and"
                    " centre-cropped to that in its place. Or choose another model.",
                ) from None
            found = Preprocessing(
                size,
                *scale,
                _FILTERS.get(settings.get("resample", 2), "bicubic"),
                geometry="crop" if kind is None and _is_square(size) else "squash",
                channels=_channels(settings, given),
                kernels="torchvision",
                note=f"Not as its {given} would: {difference}.",
            )
            _check_scale(own, found)
    except _NotRead as difference:
        raise UserError(f"{given} of {folder} scales pixels as kdcli can't: {difference}.", hint) from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"The model's image processor has impossible settings: {error}", hint) from error
    if image_size is None:
        return found
    cut = found.at(image_size)
    if found.geometry == "squash" or _is_square(image_size):
        return cut
    note = f"{found.note} Images are squashed to its size, where its image processor cuts them.".strip()
    return replace(cut, geometry="squash", resize=image_size, note=note)


def _shorter_side(settings: dict[str, Any]) -> int | None:
    size = settings.get("size") or {}
    return size.get("shortest_edge") or size.get("height")


_FILES = (files.PROCESSOR, "processor_config.json")


def is_in(folder: Path | None) -> bool:
    """Whether a folder has an image processor."""
    return folder is not None and any((folder / name).is_file() for name in _FILES)


def own_image_size(config: Any) -> tuple[int, int] | None:
    """Return the (height, width) that a config, or its vision tower's, is made for; None where any size will do."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if size is None:  # RT-DETR's and its kin's, which keep positions in advance
        size = getattr(config, "anchor_image_size", None) or getattr(config, "eval_size", None)
    return (size, size) if isinstance(size, int) else size and (size[0], size[1])


def set_image_size(config: Any, size: tuple[int, int], *, label: str) -> None:
    """Let what is built of a config have positions for images of this (height, width); one that has none stays.

    Those of DINOv2 are a square of the longer side: whatever the image, the network itself lays them over it.

    Raises:
        UserError: the config has one number for a side, and takes no pair.
    """
    own = getattr(config, "image_size", None)
    if own is None:
        return
    if getattr(config, "model_type", "") in _SQUARE_POSITIONS:
        size = (max(size),) * 2
    try:
        config.image_size = size[0] if isinstance(own, int) and _is_square(size) else list(size)
    except Exception as error:  # transformers checks values in its own ways
        raise UserError(
            f"{label} takes square images alone, and {size[0]}x{size[1]} pixels are asked for: {reason_of(error)}",
            "Give image_size one side, or choose another model.",
        ) from error


def _is_square(size: tuple[int, int]) -> bool:
    return size[0] == size[1]


def check_writable(name: str, preprocessing: Preprocessing) -> None:
    """Refuse what none of transformers' image processors does, so that :func:`write` could not say it.

    Raises:
        UserError: with the setting that is at fault.
    """
    mean, std = preprocessing.mean, preprocessing.std
    rows, columns = preprocessing.resize
    faults = {
        f"the filter {preprocessing.interpolation}": preprocessing.interpolation not in _FILTERS.values(),
        "a border": preprocessing.geometry == "border",
        f"a crop out of {columns}x{rows}": preprocessing.geometry == "crop" and rows != columns,
        f"BGR with mean {short_repr(mean)} and std {short_repr(std)}": preprocessing.channels == "BGR"
        and (any(mean) or len(set(std)) > 1),
    }
    if wrong := [fault for fault, is_there in faults.items() if is_there]:
        raise UserError(
            f"{name} is a model of transformers, which has no image processor for {', '.join(wrong)}.",
            "Leave that setting out, or choose another model.",
        )


def write(
    preprocessing: Preprocessing, folder: Path, *, patch_size: int | None = None, kind: str | None = None
) -> None:
    """Write a ``preprocessor_config.json`` with which transformers makes of an image what kdcli does, to the pixel.

    ``kind`` is the class of a detector's, which knows what to make of its outputs. It squashes an image or takes it as
    it is, and is not asked for BGR.

    BGR goes by MobileViT's image processor, which is the only one to give it, and does not normalise. For a model that
    takes patches it is SigLIP2's, which crops nothing: an image has at most as many patches as one of ``image_size``.
    """
    height, width = preprocessing.image_size
    rows, columns = preprocessing.resize
    resample = next(number for number, name in _FILTERS.items() if name == preprocessing.interpolation)
    mean, std = (
        list(values[:1] if len({*values}) == 1 and len(values) != 3 else values)  # one is for all of them
        for values in (preprocessing.mean, preprocessing.std)
    )
    normalisation: dict[str, Any] = {"image_mean": mean, "image_std": std}
    squash = preprocessing.geometry == "squash"
    geometry: dict[str, Any] = {
        "size": {"height": rows, "width": columns} if squash else {"shortest_edge": rows},
        "crop_size": {"height": height, "width": width},
    }
    written: Any
    if kind is not None:
        written = getattr(transformers, kind)(
            size={"height": rows, "width": columns}, resample=resample, do_pad=False, do_normalize=True, **normalisation
        )
    elif patch_size is not None:
        number = (height // patch_size) * (width // patch_size)
        written = Siglip2ImageProcessor(
            patch_size=patch_size, max_num_patches=number, resample=resample, **normalisation
        )
    elif preprocessing.channels == "BGR":
        factor = 1 / (255 * preprocessing.std[0])
        written = MobileViTImageProcessor(
            **geometry, resample=resample, rescale_factor=factor, do_flip_channel_order=True
        )
    else:
        colours: dict[str, Any] = {} if preprocessing.num_channels == 3 else {"do_convert_rgb": False}
        written = CLIPImageProcessor(**geometry, resample=resample, **normalisation, **colours)
    written.save_pretrained(folder)


Scale = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue in [0, 1]."""


def _default(
    config: Any, image_size: tuple[int, int] | None, *, is_of_folder: bool, of_detector: str | None = None
) -> Preprocessing:
    kind = _default_processor(config) or (of_detector and getattr(transformers, of_detector))
    name = kind.__name__.removesuffix("Pil") if kind else "ImageNet"
    settings: dict[str, Any] = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3}
    if kind is not None:
        keys = (*settings, "image_mean", "image_std", "rescale_offset", "include_top", "do_flip_channel_order")
        settings = {key: getattr(kind, key, None) for key in keys}
    usual = (224, 224) if of_detector is None else _OF_DETECTORS
    size = image_size or own_image_size(config) or usual
    return Preprocessing(
        size,
        *_scale(settings, name),
        _interpolation(settings),
        geometry="crop" if _is_square(size) and of_detector is None else "squash",
        channels=_channels(settings, name),
        kernels="torchvision",
        note=f"It has no preprocessor_config.json, so pixels are scaled as for {name}." if is_of_folder else "",
    )


def _default_processor(config: Any) -> Any:
    try:
        found = IMAGE_PROCESSOR_MAPPING[type(config)]
    except KeyError:
        return None
    candidates = found.values() if isinstance(found, dict) else found
    # Its settings are attributes of the class, but for some that wrap other libraries or take videos.
    return next((candidate for candidate in candidates if getattr(candidate, "do_rescale", None)), None)


def _translate(settings: dict[str, Any], kind: str, scale: Scale) -> Preprocessing:
    """Return what a processor of the class ``kind`` does, as far as its settings tell.

    Raises:
        _NotRead: it can't be said, by a setting that is named.
    """
    if not settings.get("do_resize"):
        raise _NotRead("do_resize is false, so that images stay of different sizes")
    size, crop, crop_pct = settings.get("size") or {}, settings.get("crop_size") or {}, settings.get("crop_pct", 1.0)
    if unknown := size.keys() - {"height", "width", "shortest_edge"} or crop.keys() - {
        "height",
        "width",
        "shortest_edge",
    }:
        raise _NotRead(f"sizes are bounded by {', '.join(sorted(unknown))}")
    shortest: int | None = size.get("shortest_edge")
    resize: tuple[int, int] = (shortest or size.get("height", 0), shortest or size.get("width", 0))
    squash, final, note = not shortest, None, ""
    if kind.startswith(_PATCHES):
        resize = final = (math.isqrt(settings["max_num_patches"]) * settings["patch_size"],) * 2
        squash, note = False, f"{kind} keeps an image's proportions; here a square is cut out of its middle."
    elif kind.startswith("ConvNextImageProcessor"):
        squash, final = resize[0] >= 384, resize
        resize = resize if squash else (int(resize[0] / crop_pct),) * 2
    elif kind.startswith("PoolFormerImageProcessor") and crop_pct:
        squash = resize[0] != resize[1]
        resize = (int(resize[0] / crop_pct), int(resize[1] / crop_pct))
    elif kind.startswith("LevitImageProcessor") and shortest:
        resize = (int(256 / 224 * shortest),) * 2
    if not all(resize):
        raise _NotRead(f"size is {short_repr(size)}, with which images stay of different sizes")
    if settings.get("do_center_crop"):
        final = (crop.get("height") or crop["shortest_edge"], crop.get("width") or crop["shortest_edge"])
    if final is None and not squash:
        raise _NotRead(f"size is {short_repr(size)} without a crop, with which images stay of different sizes")
    return Preprocessing(
        final or resize,
        *scale,
        _interpolation(settings),
        resize,
        "squash" if squash else "crop",
        _channels(settings, kind),
        "torchvision",
        note,
    )


def _interpolation(settings: dict[str, Any]) -> Interpolation:
    number = settings.get("resample")
    if number is None:
        return "bilinear"
    if int(number) not in _FILTERS:
        raise _NotRead(f"resample is {int(number)}, which transformers itself can't do with torchvision")
    return _FILTERS[int(number)]


def _channels(settings: dict[str, Any], kind: str) -> Literal["RGB", "BGR"]:
    flips = settings.get("do_flip_channel_order") or kind.startswith("PPLCNetImageProcessor")
    return "BGR" if flips else "RGB"


def _scale(settings: dict[str, Any], kind: str) -> Scale:
    """Fold scaling by a factor, shifting and normalising into one mean and deviation."""
    factor, offset = 255.0, 0.0
    if settings.get("do_rescale"):
        factor, offset = 255 * settings["rescale_factor"], -1.0 if settings.get("rescale_offset") else 0.0
    mean, std, own_std = _triple(0), _triple(1), _triple(settings.get("image_std"), IMAGENET_DEFAULT_STD)
    if settings.get("do_normalize") and not kind.startswith("MobileViTImageProcessor"):
        mean, std = _triple(settings.get("image_mean"), IMAGENET_DEFAULT_MEAN), own_std
    if settings.get("include_top"):  # EfficientNet divides by the deviation a second time
        std = _triple([value * again for value, again in zip(std, own_std, strict=True)])
    return _triple([(value - offset) / factor for value in mean]), _triple([value / factor for value in std])


def _triple(value: Any, default: tuple[float, float, float] | None = None) -> tuple[float, float, float]:
    if value is None and default is not None:
        return default
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    numbers = [float(number) for number in value]
    if len(numbers) in CHANNELS and len(numbers) != 3 and len({*numbers}) == 1:  # of greyscale, or of four alike
        numbers = numbers[:1] * 3
    red, green, blue = numbers
    return red, green, blue


def _check(own: Any, settings: dict[str, Any], found: Preprocessing) -> float:
    """Compare ``found`` with the image processor ``own`` on noise: a wide, a tall and a small, long image.

    Returns:
        The largest difference in levels of 255: nothing, or the rounding that the image processor leaves out.

    Raises:
        _NotRead: it is more.
    """
    others = {key: settings.get(key) for key in own.valid_kwargs.__annotations__.keys() - _READ}
    given = ", ".join(f"{key}={short_repr(value)}" for key, value in sorted(others.items()) if value)
    unread = f"; kdcli does not know {given}" if given else ""
    # One of Pillow's, which transformers takes for some kinds where torchvision is old, rounds in other places.
    allowed = _ROUNDING if getattr(own, "backend", None) == "torchvision" else _EXACT
    rows, columns = found.image_size
    noise = np.random.default_rng(0)
    worst = 0.0
    for height, width in ((rows * 4 // 3 + 1, columns * 2 + 1), (rows * 2 + 1, columns), (41, 203)):
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = _made(own, image)
        ours = prepare(torch.from_numpy(np.array(fit(image, found))).permute(2, 0, 1)[None], found)
        if theirs.shape != ours.shape:
            made, expected = (" x ".join(map(str, values.shape)) for values in (theirs, ours))
            raise _NotRead(f"an image of {width}x{height} pixels becomes {made} values, and {expected} here{unread}")
        off = _levels(theirs - ours, found)
        if not off < allowed:
            raise _NotRead(f"pixels of an image of {width}x{height} differ by up to {off:.2g} of 255 levels{unread}")
        worst = max(worst, off)
    return worst


def _check_scale(own: Any, found: Preprocessing) -> None:
    """Compare what becomes of black, of white and of a colour, whatever the geometry.

    Raises:
        _NotRead: it differs.
    """
    for colour in ((0, 0, 0), (255, 255, 255), (30, 120, 210)):
        theirs = _made(own, Image.new("RGB", found.image_size[::-1], colour))
        if theirs.ndim == 3:  # patches, the channels of a pixel side by side
            pixel = theirs.flatten()[:3]
        elif theirs.ndim == 4 and theirs.shape[1] == 3:
            pixel = theirs[0, :, theirs.shape[2] // 2, theirs.shape[3] // 2]
        else:
            raise _NotRead(f"an image becomes {' x '.join(map(str, theirs.shape))} values")
        ours = prepare(torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1), found.at((1, 1)))
        if not _levels((pixel - ours.flatten()).view(1, 3, 1, 1), found) < _EXACT:
            made, here = ([round(value, 3) for value in values.flatten().tolist()] for values in (pixel, ours))
            raise _NotRead(f"the colour {colour} becomes {made}, and {here} here")


def _made(own: Any, image: Image.Image) -> Tensor:
    try:
        with warnings.catch_warnings(action="ignore"):
            made = own(image, return_tensors="pt")["pixel_values"]
        return made.to(torch.float32)
    except Exception as error:  # whatever its own code trips over
        raise _NotRead(f"it fails on an image: {reason_of(error)}") from error


def _levels(difference: Tensor, found: Preprocessing) -> float:
    """Return the largest difference of two inputs, (1, 3, H, W), in levels of 255."""
    std = found.std[::-1] if found.channels == "BGR" else found.std
    return float((difference.abs() * torch.tensor(std).view(3, 1, 1) * 255).max())
