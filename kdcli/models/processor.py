"""transformers' image processors against :class:`kdcli.facts.Preprocessing`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import AutoImageProcessor, CLIPImageProcessor, MobileViTImageProcessor, Siglip2ImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from kdcli.errors import UserError
from kdcli.facts import Preprocessing

_RESAMPLE = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
"""PIL's filters by number; Lanczos (1) has no differentiable counterpart and is close to bicubic."""
_PIL_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def read_settings(folder: Path | None, config: Any) -> dict[str, Any]:
    """Return the settings of the folder's image processor.

    Without a folder or a ``preprocessor_config.json``: mean, standard deviation and filter of the processor class that transformers
    gives to this kind of model, else ImageNet's, and ``config.image_size`` (224 without one), not cropped.

    Raises:
        UserError: there is one that transformers can't read.
    """
    if folder is not None and any(
        (folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    ):
        try:
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
        except Exception as error:  # on values of the wrong type transformers raises whatever it trips over
            raise UserError(
                f"The image processor in {folder} can't be read: {error}", "Check its preprocessor_config.json."
            ) from error
    size = own_image_size(config) or (224, 224)
    default = _default_processor(config)
    return {
        "size": {"height": size[0], "width": size[1]},
        "image_mean": getattr(default, "image_mean", None) or IMAGENET_DEFAULT_MEAN,
        "image_std": getattr(default, "image_std", None) or IMAGENET_DEFAULT_STD,
        "resample": getattr(default, "resample", None) or 3,
    }


def own_image_size(config: Any) -> tuple[int, int] | None:
    """Return the (height, width) that a config, or its vision tower's, is made for; None where any size will do."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    return (size, size) if isinstance(size, int) else size and (size[0], size[1])


def preprocessing_of(settings: dict[str, Any], image_size: int | None) -> Preprocessing:
    """Translate an image processor's settings; ``image_size`` overrides its own.

    A processor that squashes to a square has ``crop_pct`` 1 here: short side to size, then a centre crop.

    Raises:
        UserError: the settings are none.
    """
    try:
        return _translate(settings, image_size)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"The model's image processor has impossible settings: {error}", "Check its preprocessor_config.json."
        ) from error


def _translate(settings: dict[str, Any], image_size: int | None) -> Preprocessing:
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    shortest = size.get("shortest_edge")
    resized = (shortest, shortest) if shortest else (size.get("height", 224), size.get("width", 224))
    if number := settings.get("max_num_patches"):  # SigLIP2's, of any proportions
        resized = (math.isqrt(number) * settings["patch_size"],) * 2
    crop_pct = 1.0
    if settings.get("do_center_crop") and crop:
        final = (crop.get("height") or crop["shortest_edge"], crop.get("width") or crop["shortest_edge"])
        crop_pct = min(1.0, final[0] / resized[0])
    else:
        final = resized
        if shortest and shortest < 384:  # ConvNeXt's: below 384 the size is that of the crop
            crop_pct = settings.get("crop_pct") or 1.0
    if image_size is not None:
        final = (image_size, image_size)
    mean, std = _normalisation(settings)
    resample = int(settings.get("resample") or 3)
    channels: Literal["RGB", "BGR"] = "BGR" if settings.get("do_flip_channel_order") else "RGB"
    return Preprocessing(final, mean, std, _RESAMPLE.get(resample, "bicubic"), crop_pct, channels)


def write(preprocessing: Preprocessing, folder: Path, *, patch_size: int | None = None) -> None:
    """Write ``preprocessor_config.json``: short side to ``size / crop_pct``, centre crop, normalise, as kdcli does.

    BGR goes by MobileViT's image processor, which is the only one to give it, and does not normalise. For a model that
    takes patches it is SigLIP2's, which crops nothing: an image has at most as many patches as one of ``image_size``.
    """
    height, width = preprocessing.image_size
    resample = _PIL_FILTERS[preprocessing.interpolation]
    normalisation: dict[str, Any] = {"image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std)}
    geometry: dict[str, Any] = {
        "size": {"shortest_edge": round(min(height, width) / preprocessing.crop_pct)},
        "crop_size": {"height": height, "width": width},
    }
    written: Any
    if patch_size is not None:
        number = (height // patch_size) * (width // patch_size)
        written = Siglip2ImageProcessor(
            patch_size=patch_size, max_num_patches=number, resample=resample, **normalisation
        )
    elif preprocessing.channels == "BGR":
        written = MobileViTImageProcessor(**geometry, resample=resample, do_flip_channel_order=True)
    else:
        written = CLIPImageProcessor(**geometry, resample=resample, **normalisation)
    written.save_pretrained(folder)


def _normalisation(settings: dict[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and std for pixels in [0, 1]."""
    if not settings.get("do_normalize", True) or settings.get("do_flip_channel_order"):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    red, green, blue = _triple(settings.get("image_mean"), IMAGENET_DEFAULT_MEAN)
    std = _triple(settings.get("image_std"), IMAGENET_DEFAULT_STD)
    if settings.get("include_top"):  # EfficientNet divides by the deviation a second time
        std = (std[0] ** 2, std[1] ** 2, std[2] ** 2)
    return (red, green, blue), std


def _triple(value: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if value is None:
        return default
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    red, green, blue = (float(number) for number in value)
    return red, green, blue


def _default_processor(config: Any) -> Any:
    try:
        found = IMAGE_PROCESSOR_MAPPING[type(config)]
    except KeyError:
        return None
    candidates = found.values() if isinstance(found, dict) else found
    return next((candidate for candidate in candidates if candidate is not None), None)
