"""What the checkpoint of a training script tells beside its weights: architecture, preprocessing, classes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from torch import Tensor

from kdcli.base.facts import GEOMETRIES, MAX_IMAGE_SIZE, Interpolation
from kdcli.base.text import short_repr

_Read = TypeVar("_Read")

_SECTIONS = (
    *("args", "hyper_parameters", "hparams", "hyperparameters", "config", "cfg", "opt", "opts", "options", "params"),
    *("model", "model_config", "model_args", "data", "data_config", "dataset", "transform", "transforms", "meta"),
    *("preprocessing", "pretrained_cfg", "train", "eval", "val", "test"),
)
"""Keys of a file under which training scripts keep settings; each may hold more of them."""
_DEEPEST = 4
_ARCHITECTURE = (
    *("arch", "architecture", "model", "model_name", "model_name_or_path", "arch_name", "model_arch"),
    *("backbone", "backbone_name", "network", "encoder", "encoder_name"),
)
_OF_A_MODEL = ("name", "type")
"""Further names of the architecture in a section called ``model``."""
_SIZE = (
    *("input_size", "img_size", "image_size", "val_crop_size", "eval_crop_size", "test_crop_size", "crop_size"),
    *("resolution", "imgsz"),
)
_CROP = ("crop_pct", "eval_crop_ratio", "crop_ratio")
_RESIZE = ("val_resize_size", "eval_resize_size", "test_resize_size", "resize_size")
_MEAN = ("mean", "image_mean", "img_mean", "norm_mean", "pixel_mean", "normalize_mean")
_STD = ("std", "image_std", "img_std", "norm_std", "pixel_std", "normalize_std")
_INTERPOLATION = ("interpolation", "test_interpolation", "val_interpolation")
_NUM_CLASSES = ("num_classes", "nb_classes", "n_classes", "num_labels")
_NAMES = ("class_names", "classes", "label_names", "labels", "CLASSES", "class_map")
_NAME_TO_INDEX = ("class_to_idx", "class_to_index", "label2id", "label_to_idx", "class_map")
_INDEX_TO_NAME = ("idx_to_class", "index_to_class", "id2label", "idx_to_label", "class_map")
_ARGUMENTS = ("model_kwargs",)
_NOT_OF_THE_FUNCTION = {
    *("pretrained", "checkpoint_path", "num_classes", "drop_rate", "drop_path_rate", "attn_drop_rate", "img_size"),
    *("proj_drop_rate", "pos_drop_rate", "patch_drop_rate", "drop_block_rate", "head_init_scale", "head_init_bias"),
    "in_chans",  # its weights tell
}
"""Arguments of a model that are read elsewhere, or change nothing of what it computes once it is trained."""
_USUAL = {"bn_eps": None, "max_length": None, "max_seq_length": None}
"""Settings that change what a model computes and are not taken over: they are named where they are not as here."""


@dataclass(frozen=True)
class Recorded:
    """What a file tells of the model in it; a field is None, or empty, where it tells nothing.

    Attributes:
        architectures: what may be its name, as it is written there, the likeliest first.
        arguments: of the architecture's constructor.
        input_size: (height, width) in pixels.
        mean: of red, green and blue, or of four channels, of pixels scaled to [0, 1].
        std: likewise.
        interpolation: a filter, as :class:`kdcli.base.facts.Preprocessing` has it.
        crop_pct: for evaluation an image is resized to the input's size divided by this.
        crop_mode: as timm has it.
        num_classes: of its classifier.
        class_names: in the order of its classifier.
        notes: what it has and is not used, and what else there is to say, a phrase each.
        hides_classes: whether it names an order of classes that can't be read.
    """

    architectures: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    hides_classes: bool = False


def read_recorded(loaded: Mapping[str, Any], file: Path) -> Recorded:
    """Return what a file tells: timm's and torchvision's scripts, Lightning's modules, and others that write alike.

    Args:
        loaded: its content, nothing but plain values and tensors.
        file: where it lies: a list of classes may lie beside it.
    """
    settings = _Settings(loaded)
    notes = settings.unused()
    size, mean, std, crop_pct = _preprocessing(settings, notes)
    num_classes = next(settings.values(_NUM_CLASSES, lambda value: type(value) is int and value > 0), None)
    class_names, hides_classes = _class_names(settings, file, notes)
    return Recorded(
        architectures=tuple(dict.fromkeys(settings.architectures())),
        arguments=_arguments(settings),
        input_size=size,
        mean=mean,
        std=std,
        interpolation=_choice(settings, _INTERPOLATION, get_args(Interpolation), notes),
        crop_pct=crop_pct,
        crop_mode=_choice(settings, ("crop_mode",), tuple(GEOMETRIES), notes),
        num_classes=num_classes,
        class_names=class_names,
        notes=tuple(notes),
        hides_classes=hides_classes,
    )


class _Settings:
    """The sections of a file that hold settings: its own keys first, then what lies within them."""

    def __init__(self, loaded: Mapping[str, Any]) -> None:
        self.sections: list[tuple[str, Mapping[str, Any]]] = []

        def look(name: str, mapping: Mapping[Any, Any], depth: int) -> None:
            self.sections.append((name, mapping))
            for key in _SECTIONS if depth < _DEEPEST else ():
                value = mapping.get(key)
                inner = vars(value) if isinstance(value, argparse.Namespace) else value
                if isinstance(inner, Mapping) and not any(isinstance(part, Tensor) for part in inner.values()):
                    look(key, inner, depth + 1)

        look("", loaded, 0)

    def entries(self, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield those of ``keys`` that are set, section by section, with their values."""
        for _, section in self.sections:
            for key in keys:
                value = section.get(key)
                if isinstance(value, Tensor):
                    value = value.tolist() if value.numel() <= 3 else None
                if value is not None and value != "":
                    yield key, value

    def values(self, keys: Sequence[str], accepts: Any = None) -> Iterator[Any]:
        """Yield the values of ``keys`` that are set and that ``accepts`` is true of."""
        yield from (value for _, value in self.entries(keys) if accepts is None or accepts(value))

    def read(self, keys: Sequence[str], reads: Callable[[Any], _Read | None], notes: list[str]) -> _Read | None:
        """Return what ``reads`` makes of the first value that it takes; where it takes none, a note names the first."""
        entries = list(self.entries(keys))
        if (found := next(filter(None, (reads(value) for _, value in entries)), None)) is None and entries:
            key, value = entries[0]
            notes.append(f"{key} {short_repr(value)} is not taken over")
        return found

    def architectures(self) -> Iterator[str]:
        for name, section in self.sections:
            for key in (*_ARCHITECTURE, *(_OF_A_MODEL if name == "model" else ())):
                if isinstance(value := section.get(key), str) and value.strip():
                    yield value.strip()

    def unused(self) -> list[str]:
        """Return a phrase for every setting of ``_USUAL`` that is not the usual one."""
        found = {}
        for key, usual in _USUAL.items():
            for value in self.values((key,)):
                if value not in (usual, None, False):
                    found[key] = f"{key} {short_repr(value)} is not taken over"
        return list(found.values())


def _arguments(settings: _Settings) -> dict[str, Any]:
    """Return the constructor's arguments: timm's ``--model-kwargs`` and ``--gp``."""
    found: dict[str, Any] = {}
    for given in settings.values(_ARGUMENTS, lambda value: isinstance(value, Mapping)):
        found |= {key: value for key, value in given.items() if key not in _NOT_OF_THE_FUNCTION and value is not None}
    for pool in settings.values(("gp", "global_pool"), lambda value: isinstance(value, str)):
        found.setdefault("global_pool", pool)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _preprocessing(settings: _Settings, notes: list[str]) -> tuple[Any, Any, Any, Any]:
    of_arguments = (given.get("img_size") for given in settings.values(_ARGUMENTS, lambda v: isinstance(v, Mapping)))
    size = settings.read(_SIZE, _size, notes) or next(filter(None, map(_size, of_arguments)), None)
    crop_pct = settings.read(_CROP, lambda value: value if _is_number(value) and 0 < value <= 1 else None, notes)
    resized = next(settings.values(_RESIZE, lambda value: type(value) is int), None)
    if crop_pct is None and size is not None and resized is not None and resized >= min(size):
        crop_pct = min(size) / resized
    mean, std = settings.read(_MEAN, _triple, notes), settings.read(_STD, _triple, notes)
    if max(*(mean or (0,)), *(std or (0,))) > 1:
        if mean is None or std is None:
            alone = f"std {short_repr(std)} is not taken over without a mean"
            notes.append(alone if mean is None else f"mean {short_repr(mean)} is not taken over without a std")
            mean = std = None
        else:
            notes.append("its mean and std are of pixels from 0 to 255 and are divided by that")
            mean, std = (_triple([part / 255 for part in values]) for values in (mean, std))
    return size, mean, std, crop_pct


def _choice(settings: _Settings, keys: Sequence[str], valid: Sequence[str], notes: list[str]) -> str | None:
    """Return the first value of ``keys`` where it is one of ``valid``."""
    value = next(settings.values(keys, lambda value: isinstance(value, str)), None)
    if value is None or value.lower() in valid:
        return None if value is None else value.lower()
    notes.append(f"{keys[0]} {short_repr(value)} is not taken over")
    return None


def _size(value: Any) -> tuple[int, int] | None:
    """Return (height, width) of a side, of both, or of a channel count and both; None of what no image has."""
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, (list, tuple)) or len(sides) not in (2, 3):
        return None
    if not all(type(side) is int and 0 < side <= MAX_IMAGE_SIZE for side in sides):
        return None
    return sides[-2], sides[-1]


def _triple(value: Any) -> tuple[float, ...] | None:
    """Return the numbers of three channels, of which one may stand for all, or of four."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(numbers) not in (1, 3, 4) or not all(map(_is_number, numbers)):
        return None
    return tuple(float(number) for number in (numbers * 3 if len(numbers) == 1 else numbers))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _class_names(settings: _Settings, file: Path, notes: list[str]) -> tuple[tuple[str, ...] | None, bool]:
    """Return the names in order, and whether there is an order that can't be read."""
    for value in settings.values(_INDEX_TO_NAME, lambda value: isinstance(value, Mapping)):
        if names := _in_order(value):
            return names, False
    for value in settings.values(_NAME_TO_INDEX, lambda value: isinstance(value, Mapping)):
        if names := _in_order({index: name for name, index in value.items()}):
            return names, False
    for value in settings.values(_NAMES, lambda value: isinstance(value, (list, tuple))):
        if len(value) > 1 and all(isinstance(name, str) for name in value) and len(set(value)) == len(value):
            return tuple(value), False
    for value in settings.values(("class_map",), lambda value: isinstance(value, str)):
        for path in (file.parent / value, Path(value)):
            if names := _lines(path):
                notes.append(f"the order of classes is that of {path}")
                return names, False
        notes.append(f"it was trained with the class map {short_repr(value)}, which is not there to be read")
        return None, True
    for key, value in settings.entries(dict.fromkeys((*_INDEX_TO_NAME, *_NAME_TO_INDEX, *_NAMES))):
        if isinstance(value, (Mapping, list, tuple)) and len(value) > 1:
            notes.append(f"{key} is no order of classes 0, 1, 2, ... with a name each, and is not taken over")
            break
    return None, False


def _in_order(names: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Return the names by index; None where these are not all of 0, 1, 2, ..."""
    if not all(type(index) is int or (isinstance(index, str) and index.isdecimal()) for index in names):
        return None
    by_index = {int(index): str(name) for index, name in names.items()}
    if len(by_index) < len(names) or sorted(by_index) != list(range(len(by_index))):
        return None
    return tuple(by_index[index] for index in range(len(by_index))) or None


def _lines(path: Path) -> tuple[str, ...] | None:
    """Return the lines of a text file, as timm reads a class map; None where there is none."""
    try:
        if path.suffix != ".txt" or not path.is_file():
            return None
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    return tuple(lines) if lines and all(lines) and len(set(lines)) == len(lines) else None
