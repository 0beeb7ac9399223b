"""Generators that make images out of random numbers as students, and saved folders of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import DataFacts, Preprocessing
from kdcli.base.reads import IMAGE
from kdcli.base.tasks import TASKS
from kdcli.config.models import StudentConfig
from kdcli.models.base import Model
from kdcli.models.bounds import building
from kdcli.models.fit import build_with_weights
from kdcli.models.generators.biggan import SAMPLERS, SIDES
from kdcli.models.generators.exported import CODE, code_of, filled
from kdcli.models.generators.sampler import SamplerModel, row_of_samplers
from kdcli.models.origin import saved_origin, student_origin
from kdcli.models.place import Place
from kdcli.models.reloaded import Reloaded, check_labels
from kdcli.models.saved import label_names_of, preprocessing_of, read_network
from kdcli.models.shrink import copy_tensors
from kdcli.models.weights import read_checkpoint

_CONDITIONAL = "conditional"
"""The argument that says whether classes are read; by default where the data have any."""

_SNIPPET = """import sys

import torch
from torchvision.transforms.v2 import functional

sys.path.insert(0, "PATH")
from generator import load

model = load("PATH")  # needs torch and safetensors alone
z = torch.randn(NUMBER, model.dim_z)
with torch.inference_mode():
    images = model(CALL)  # (NUMBER, 3, SIDE, SIDE), from -1 to 1
functional.to_pil_image(((images[0] + 1) / 2).clamp(0, 1)).save("made.png")"""


def build_student(place: Place, config: StudentConfig, data: DataFacts, like: Model | None) -> SamplerModel:
    """Build a generator for the data's task, with the data's classes where it is to know any.

    Raises:
        UserError: the data are for another task or have no classes to be told apart, or it can't be set so.
    """
    row, side = TASKS[data.task], SIDES[_network(place, _saved(place))]
    if row.name != row_of_samplers().name:
        raise UserError(
            f"{place.name} makes images out of random numbers, and the task is {row.name}.",
            f"Name another student, or choose --task {row_of_samplers().name}.",
        )
    if config.drop_path is not None:
        raise UserError("student.drop_path is not for generators.", "Leave it out.")
    if like is not None:
        raise UserError("A generator of images can't be made of a teacher.", f"Name it: {place.name}.")
    if config.input_size not in (None, (side, side)):
        raise UserError(
            f"{place.name} makes images of {side}x{side} pixels, and student.image_size is {config.image_size}.",
            "Leave it out; generator:biggan32 makes 32x32, generator:biggan64 makes 64x64.",
        )
    settings, asked = settings_of(place)
    if asked and not data.class_names:
        raise UserError(
            f"{place.name} is to make images of a class each, and {data.name} has no labels.",
            "Give data with a class for each image, or leave ?conditional=true out.",
        )
    names = data.class_names if asked or asked is None else ()
    settings |= {"num_classes": len(names), "seed": int(torch.randint(2**31, ()))}
    module = _make(place, settings)
    model = SamplerModel(module, student_origin(place, config, names), preprocessing_at(side), settings)
    if config.pretrained:
        source = open_saved(place)
        leave = (
            set()
            if (source.facts.label_names or ()) == names
            else {name for name, _ in module.named_parameters() if ".scale." in name or ".shift." in name}
        )
        copy_tensors(source.module, module, leave=leave)
    return model


@torch.inference_mode(False)  # spectral normalisations can't be made of inference's tensors
def open_saved(place: Place) -> SamplerModel:
    """Load what :meth:`SamplerModel.save` wrote."""
    assert place.folder is not None, "names have no weights"
    saved = _saved(place)
    settings = settings_of(place)[0] | {key: saved[key] for key in ("num_classes", "seed")}
    given = read_checkpoint(place.folder / "model.safetensors", source=str(place.folder))
    module, _ = build_with_weights(lambda _: _make(place, settings), given, classifier=lambda _: (0, set()))
    names = label_names_of(saved)
    return SamplerModel(module, saved_origin(place, names), preprocessing_of(saved["preprocessing"]), settings)


def refused_teacher(place: Place) -> UserError:
    """Return the error of one that is to teach: it reads no images."""
    return UserError(
        f"{place.name} makes images out of random numbers: it reads no images that it could teach anything about.",
        "Name a model of images as the teacher.",
    )


def reload(student: Model, folder: Path) -> Reloaded:
    """Load ``folder`` by its own Python file and make images by it and by the student of the same numbers."""
    alone = code_of(folder)
    if student.facts.label_names:
        check_labels(list(alone.classes_of(folder)), student)
    inputs: Any = student.example(2, seed=2)
    with torch.inference_mode():
        return Reloaded(CODE, IMAGE, alone.load(folder)(**inputs), student(inputs).heads[IMAGE])


def snippet(folder: Path) -> str:
    """Return the lines of Python that load a student by the file beside its weights and make 16 images."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    count = saved["num_classes"]
    words = {
        "NUMBER": "16",
        "SIDE": str(saved["preprocessing"]["image_size"][0]),
        "CALL": f"z, torch.arange(16) % {count}" if count else "z",
    }
    return filled(_SNIPPET, words)


def settings_of(place: Place) -> tuple[dict[str, Any], bool | None]:
    """Return what makes the network of a name or a folder, but for its classes, and whether it is asked to read any.

    Raises:
        UserError: it has no such argument, or the folder's config is damaged.
    """
    saved = _saved(place)
    network = _network(place, saved)
    valid = _defaults(network)
    given = dict(place.arguments)
    asked = given.pop(_CONDITIONAL, None)
    for key in given:
        if key not in valid:
            raise UserError(
                f"{place.name}: there is no argument {key!r}. {did_you_mean(key, [*valid, _CONDITIONAL])}".rstrip(),
                f"Its arguments: {', '.join([*valid, _CONDITIONAL])}.",
            )
    if asked is not None and not isinstance(asked, bool):
        raise UserError(f"{place.name}: {_CONDITIONAL} is true or false, and not {asked!r}.", "Give one of them.")
    arguments = {**valid, **saved.get("arguments", {}), **given}
    return {"library": "generators", "network": network, "arguments": arguments}, asked


def preprocessing_at(side: int) -> Preprocessing:
    """Return how real images are brought to the size of those that are made: from -1 to 1, as a whole, as in training.

    Whole images are what the augmentation shows the discriminator, so an image that is not square is squashed in both.
    """
    return Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3, "bicubic", geometry="squash")


def _network(place: Place, saved: Mapping[str, Any]) -> str:
    return str(saved.get("network", place.architecture))


def _make(place: Place, settings: Mapping[str, Any]) -> nn.Module:
    with building(place.name):
        module: nn.Module = SAMPLERS[settings["network"]](settings["num_classes"], **settings["arguments"])
    return module


def _defaults(network: str) -> dict[str, Any]:
    _, *parameters = inspect.signature(SAMPLERS[network]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def _saved(place: Place) -> dict[str, Any]:
    """Return the ``config.json`` of a folder; nothing for a network by name."""
    if place.folder is None:
        return {}

    def check(saved: Mapping[str, Any]) -> None:
        if saved["network"] not in SAMPLERS or not isinstance(saved["arguments"], dict):
            raise ValueError(f"there is no network {saved['network']!r}, or its arguments are none")
        int(saved["seed"])
        if int(saved["num_classes"]) != len(saved["label_names"] or ()):
            raise ValueError("num_classes and label_names differ")

    return read_network(place.folder, check)
