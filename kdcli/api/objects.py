"""Modules and data sets of a program's own as models and data of kdcli, as long as the process runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.base.text import short_repr

if TYPE_CHECKING:
    from torch import nn

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """A classifier of images of a program's own, as a teacher or as a student.

    Attributes:
        module: takes images (B, 3, H, W), float32, normalised, to logits (B, classes); or, for a student, a function
            that makes one for a number of classes. It is copied, and stays as it is.
        features: the name of the layer whose output, (B, C, h, w) or (B, C), are the features.
        image_size: side of its images in pixels, or (height, width).
        mean: of red, green and blue, of pixels scaled to [0, 1].
        std: likewise.
        interpolation: how images are resized.
        label_names: of the outputs; without them a teacher's classes are not known to be the data's.
    """

    module: nn.Module | Callable[[int], nn.Module]
    features: str
    image_size: int | tuple[int, int] = 224
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD
    interpolation: str = "bicubic"
    label_names: tuple[str, ...] | None = None


def name_of_model(given: Any) -> Any:
    """Return the name under which a :class:`Network` is known in this process; all else as it is.

    Raises:
        UserError: it is a bare module, or its layer is none.
    """
    if isinstance(given, Network):
        from kdcli.base.facts import Preprocessing
        from kdcli.models.held import hold

        size = (given.image_size, given.image_size) if isinstance(given.image_size, int) else given.image_size
        preprocessing = Preprocessing(size, given.mean, given.std, given.interpolation)  # type: ignore[arg-type]
        names = None if given.label_names is None else tuple(given.label_names)
        return hold(given.module, features=given.features, preprocessing=preprocessing, label_names=names)
    if given is None or isinstance(given, (str, Path, Mapping)) or hasattr(given, "__fspath__"):
        return given
    raise UserError(
        f"A {type(given).__name__} does not say where its features are and how it wants its images.",
        "Wrap it: kdcli.Network(module, features='layer4', image_size=224, mean=..., std=...)",
    )


def name_of_data(given: Any) -> Any:
    """Return the name under which data sets are known in this process; names, paths and sections as they are.

    Args:
        given: a ``datasets`` table, a torch data set of (image, class number), or a mapping of ``train``, and where
            there are such of ``validation`` and ``test``, to those.

    Raises:
        UserError: it is none of these.
    """
    if given is None or isinstance(given, (str, Path)):
        return given
    if isinstance(given, Mapping):
        if all(
            isinstance(value, (str, int, float, bool, Path, Mapping, list, tuple)) or value is None
            for value in given.values()
        ):
            return given
        splits = given
    else:
        splits = {"train": given}
    from kdcli.base import extensions

    tables = {str(split): _table(data, str(split)) for split, data in splits.items()}
    what = type(next(iter(splits.values()))).__name__
    return f"{extensions.lend('data', lambda rest: tables, what=what)}:{what}"


def _table(data: Any, split: str) -> Any:
    from datasets import Dataset

    if isinstance(data, Dataset):
        return data
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise UserError(
            f"The data of {split} are a {type(data).__name__}, neither a datasets table nor a torch data set with a"
            " length.",
            "Give samples (image, class number) by index.",
        )
    from datasets import ClassLabel, Features, Image

    images, labels = [], []
    for index in range(len(data)):
        image, label = _sample(data[index], split, index)
        images.append(image)
        labels.append(label)
    names = getattr(data, "classes", None) or [str(number) for number in range(max(labels, default=0) + 1)]
    features = Features(image=Image(), label=ClassLabel(names=[str(name) for name in names]))
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def _sample(sample: Any, split: str, index: int) -> tuple[Any, int]:
    """Return a sample's image for ``datasets`` and its class.

    Raises:
        UserError: it is no pair of an image and a class number.
    """
    import numpy as np
    from PIL import Image

    wrong = UserError(
        f"{split}[{index}] is no pair of an image and a class number: {short_repr(sample)}.",
        "An image is PIL's, uint8 (H, W, 3), or a tensor (3, H, W) of uint8 or of floats in [0, 1].",
    )
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise wrong
    image, label = sample
    try:
        number = int(label)
        if not isinstance(image, Image.Image):
            array = np.asarray(image)
            if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
                array = array.transpose(1, 2, 0)
            if array.dtype != np.uint8:
                if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
                    raise wrong
                array = (array * 255).round().astype(np.uint8)
            image = Image.fromarray(array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array)
    except (TypeError, ValueError):
        raise wrong from None
    return image, number
