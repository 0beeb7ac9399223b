"""What a teacher's config means where its weights are a file: the architecture and the input that the file tells of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import GEOMETRIES, Preprocessing
from kdcli.base.tasks import Modality
from kdcli.base.text import expand_user, short_repr
from kdcli.config.models import TeacherConfig
from kdcli.config.run import RunConfig
from kdcli.models.locate import HUB_ID
from kdcli.models.recorded import Recorded, read_recorded
from kdcli.models.spec import ModelName, format_query, parse_name
from kdcli.models.timm.constructor import read_constructor
from kdcli.models.weights import load_raw, resolve_path

_SUFFIXES = {".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors"}
_OF_INPUT = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def settle_teacher(config: TeacherConfig, *, modality: Modality = "image") -> TeacherConfig:
    """Write out a teacher whose name is a file or has weights in it, and what the file tells of its architecture.

    Args:
        config: as the user wrote it.
        modality: what the model reads.

    Returns:
        The same teacher with the architecture as its name, the file as its weights, the arguments that it was built
        with and, of images, the size that it was trained at; what is set already stays.

    Raises:
        UserError: there is no such file, two are named, or the architecture can't be told.
    """
    if config.name == "none":
        return config
    config, is_text = _without_weights_in_name(config), modality == "text"
    name = parse_name(config.name)
    assert name is not None
    file = _file_of(name)
    if name.random or (file is None and config.weights is None):
        return config
    if file is not None and config.weights is not None:
        raise UserError(
            f"Two files are named as the teacher's weights: {file} and {config.weights}.",
            "Name the architecture as the teacher: --teacher ARCH --teacher-weights FILE",
        )
    weights = file or str(config.weights)
    path = resolve_path(weights)
    recorded = _look_into(path)
    target = config.name if file is None else _architecture_in(recorded, path, weights, is_text=is_text)
    changes: dict[str, Any] = {"name": target + _further_arguments(target, recorded), "weights": weights}
    size = recorded.input_size
    if config.image_size is None and not is_text and size is not None:
        changes["image_size"] = size
    return TeacherConfig.model_validate({**config.model_dump(), **changes})


def settle_models(config: RunConfig) -> RunConfig:
    """Return ``config`` with its teacher, and what its student is made of, written out by :func:`settle_teacher`."""
    modality = config.task_facts.modality
    student, source = config.student, config.student.source
    if source is not None:
        student = student.model_copy(update={"source": settle_teacher(source, modality=modality)})
    return config.model_copy(update={"teacher": settle_teacher(config.teacher, modality=modality), "student": student})


def wanted_input(config: TeacherConfig, recorded: Recorded | None) -> tuple[dict[str, Any], list[str]]:
    """Return what of a model's preprocessing the user or its file sets.

    Args:
        config: what the user sets comes first.
        recorded: from the file; None without one.

    Returns:
        ``image_size`` (height, width) and the config's other keys about images, those that are set; and phrases for the
        plan on what came from the file.
    """
    asked: dict[str, Any] = {key: getattr(config, key) for key in _OF_INPUT}
    asked["image_size"] = config.input_size
    told: dict[str, Any] = {key: getattr(recorded, key, None) for key in _OF_INPUT}
    told["image_size"] = recorded.input_size if recorded is not None else None
    values = {key: asked[key] if asked[key] is not None else told[key] for key in ("image_size", *_OF_INPUT)}
    values = {key: value for key, value in values.items() if value is not None}
    taken = [_written(key, value) for key, value in values.items() if value == told[key]]
    phrases = [f"read from the file: {', '.join(taken)}"] if taken else []
    phrases += [
        f"the file says {_written(key, told[key])}, asked for is {_written(key, value)}"
        for key, value in values.items()
        if told[key] is not None and value != told[key]
    ]
    return values, phrases


def change_input(preprocessing: Preprocessing, wanted: Mapping[str, Any]) -> Preprocessing:
    """Return ``preprocessing`` with what is wanted otherwise, from :func:`wanted_input`."""
    if size := wanted.get("image_size"):
        preprocessing = preprocessing.at(size)
    own = {key: wanted[key] for key in ("mean", "std", "interpolation") if key in wanted}
    if crop_pct := wanted.get("crop_pct"):
        height, width = (math.floor(side / crop_pct) for side in preprocessing.image_size)
        own["resize"] = (height, width)
    if crop_mode := wanted.get("crop_mode"):
        own["geometry"] = GEOMETRIES[crop_mode]
    return replace(preprocessing, **own)


def check_against(recorded: Recorded, name: ModelName, num_classes: int) -> list[str]:
    """Return phrases for the plan on what a file tells and the model that its weights are in is not.

    Args:
        recorded: from the file.
        name: of the model.
        num_classes: of its classifier.
    """
    phrases = []
    if recorded.architectures and not any(_is_same(text, name.target) for text in recorded.architectures):
        known = [text for text in recorded.architectures if _known(text, is_text=False)]
        said = (known or recorded.architectures)[0]
        phrases.append(f"the file calls its architecture {short_repr(said)}")
    unused = [key for key in recorded.arguments if key not in name.arguments]
    if unused:
        phrases.append(f"its model_kwargs {', '.join(unused)} are not taken over")
    if num_classes and recorded.num_classes not in (None, num_classes):
        phrases.append(f"the file says {recorded.num_classes} classes, and its classifier has {num_classes}")
    number = len(recorded.class_names or ())
    if num_classes and number == num_classes:
        phrases.append("its classes have the names that the file gives")
    elif num_classes and number:
        phrases.append(
            f"the file names {number} classes, and its classifier has {num_classes}: they are not taken over"
        )
    return [*phrases, *recorded.notes]


def _without_weights_in_name(config: TeacherConfig) -> TeacherConfig:
    name = parse_name(config.name)
    if name is None or "weights" not in name.arguments:
        return config
    file = name.arguments["weights"]
    if not isinstance(file, str):
        raise UserError(
            f"Model name {short_repr(config.name)}: weights is a file.", "For example: resnet50?weights=w.pth"
        )
    if config.weights is not None and config.weights != file:
        raise UserError(
            f"Two files are named as the weights of {name.target}: {file} and {config.weights}.", "Name one of them."
        )
    rest = {key: value for key, value in name.arguments.items() if key != "weights"}
    bare = config.name.partition("?")[0] + format_query(rest)
    return config.model_copy(update={"name": bare, "weights": file})


def _file_of(name: ModelName) -> str | None:
    """Return the checkpoint file that a name is; None for the name of a model."""
    if name.library is not None:
        return None
    if name.target.startswith("package:"):
        return name.target if Path(name.target).suffix.lower() in _SUFFIXES else None
    path = expand_user(name.target)
    if path.is_dir():
        return None
    is_file = path.suffix.lower() in _SUFFIXES or (path.is_file() and not timm.is_model(name.target))
    return name.target if is_file else None


def _look_into(path: Path) -> Recorded:
    """Return what a file tells beside its tensors, which stay there; safetensors has nothing else."""
    return Recorded() if path.suffix == ".safetensors" else read_recorded(load_raw(path, mapped=True), path)


def _architecture_in(recorded: Recorded, path: Path, file: str, *, is_text: bool) -> str:
    for text in recorded.architectures:
        if found := _known(text, is_text=is_text):
            return found
    hint = f"Name it beside the file: --teacher ARCH --teacher-weights {file}"
    if (path.parent / "config.json").is_file():
        hint += f"; or the model that its folder is: --teacher {path.parent}"
    if not recorded.architectures:
        raise UserError(f"{file} does not tell its architecture.", hint)
    said = recorded.architectures[0]
    nearest = "" if is_text else did_you_mean(said, timm.list_models())
    raise UserError(
        f"{file} says that its architecture is {short_repr(said)}, which is none that kdcli knows. {nearest}".rstrip(),
        hint,
    )


def _known(text: str, *, is_text: bool) -> str | None:
    """Return the name by which kdcli knows what a training script calls an architecture."""
    base, dot, _ = text.removeprefix("timm/").partition(".")
    if not is_text and base.isidentifier() and timm.is_model(base):
        tagged = text.removeprefix("timm/")
        return tagged if dot and tagged in timm.list_models(f"{base}.*", include_tags=True) else base
    is_folder = "/" in text and (expand_user(text) / "config.json").is_file()
    return text if is_folder or HUB_ID.fullmatch(text) else None


def _is_same(text: str, target: str) -> bool:
    one, other = (name.rpartition("/")[2].partition(".")[0].replace(":", "_").lower() for name in (text, target))
    return one == other


def _further_arguments(target: str, recorded: Recorded) -> str:
    """Return the query of what a file was built with and the name does not set, where timm's constructor takes it."""
    name = parse_name(target)
    assert name is not None
    base = name.target.partition(".")[0]
    given = {key: value for key, value in recorded.arguments.items() if key not in name.arguments}
    if not given or not timm.is_model(base) or not any(_is_same(text, base) for text in recorded.architectures):
        return ""
    names = read_constructor(base, {}).names
    taken = {key: value for key, value in given.items() if key in names and _is_plain(value)}
    query = format_query(taken)
    return query if not name.arguments else query.replace("?", "&", 1)


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, (bool, int, float, str)) for part in parts)


def _written(key: str, value: Any) -> str:
    if key == "image_size":
        return f"{value[0]}x{value[1]} pixels"
    if isinstance(value, tuple):
        return f"{key} ({', '.join(f'{part:.4g}' for part in value)})"
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
