"""Generators as teachers and students, and saved folders of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import DataFacts, Preprocessing
from kdcli.base.reads import IMAGE
from kdcli.base.tasks import TASKS, task_of
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.bounds import building
from kdcli.models.fit import build_with_weights
from kdcli.models.generators.exported import CODE, code_of, filled
from kdcli.models.generators.model import TranslatorModel
from kdcli.models.generators.networks import TRANSLATORS
from kdcli.models.origin import phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.reloaded import Reloaded
from kdcli.models.saved import preprocessing_of, read_network
from kdcli.models.settle import change_input, wanted_input
from kdcli.models.shrink import copy_tensors
from kdcli.models.spec import ModelName
from kdcli.models.weights import Checkpoint, read_checkpoint

SIDE = 256
"""Pixels of images where nothing else is asked for."""
PREPROCESSING = Preprocessing((SIDE, SIDE), (0.5,) * 3, (0.5,) * 3, "bicubic", geometry="squash")
"""From -1 to 1; the whole image is squashed to the size, so that nothing of it is cut off in evaluation."""

_SNIPPET = """import sys

import torch
from PIL import Image
from torchvision.transforms.v2 import functional

sys.path.insert(0, "PATH")
from generator import load

model = load("PATH")  # needs torch and safetensors alone
image = Image.open("IMAGE").convert("RGB").resize(SIZE, Image.Resampling.FILTER)
images = functional.normalize(functional.to_image(image)[None] / 255, MEAN, STD)  # (B, 3, H, W)
with torch.inference_mode():
    made = model(images)  # (B, 3, H, W), from -1 to 1
functional.to_pil_image(((made[0] + 1) / 2).clamp(0, 1)).save("made.png")"""


def load_teacher(
    place: Place, name: ModelName, config: TeacherConfig, checkpoint: Checkpoint | None
) -> TranslatorModel:
    """Load a network with a saved folder's or a checkpoint's weights, or untrained."""
    settings, own = settings_of(place), _preprocessing(place)
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    phrase = ""
    if name.random:
        module = _make(place, settings)
    else:
        given = checkpoint or _checkpoint_of(place)
        module, report = build_with_weights(lambda _: _make(place, settings), given, classifier=lambda _: (0, set()))
        phrase = "" if checkpoint is None else phrase_of_file(checkpoint, report, told, name, 0)
    origin = teacher_origin(place, name, None, image_size=config.input_size, file_phrase=phrase)
    return _model(module, origin, change_input(own, wanted), settings)


def build_student(place: Place, config: StudentConfig, data: DataFacts, like: Model | None) -> TranslatorModel:
    """Build a generator for the data's task."""
    row = TASKS[data.task]
    if row.target != "image":
        raise UserError(
            f"{place.name} makes an image of another one, and the task is {row.name}.",
            f"Name another student, or choose --task {task_of('image', 'image').name}.",
        )
    if config.drop_path is not None:
        raise UserError("student.drop_path is not for generators.", "Leave it out.")
    settings = settings_of(place)
    preprocessing = _preprocessing(place) if like is None else like.preprocessing
    assert isinstance(preprocessing, Preprocessing), "it is a model of images"
    if config.input_size is not None:
        preprocessing = preprocessing.at(config.input_size)
    module = _make(place, settings)
    model = _model(module, student_origin(place, config, ()), preprocessing, settings)
    source = open_saved(place) if config.pretrained else like
    if source is not None:
        report = copy_tensors(source.module, module, leave=set())
        if like is not None:
            model.facts = replace(model.facts, weights=report.summary())
    return model


def open_saved(place: Place) -> TranslatorModel:
    """Load what :meth:`TranslatorModel.save` wrote."""
    settings = settings_of(place)
    module, _ = build_with_weights(
        lambda _: _make(place, settings), _checkpoint_of(place), classifier=lambda _: (0, set())
    )
    return _model(module, saved_origin(place, None), _preprocessing(place), settings)


def reload(student: Model, folder: Path) -> Reloaded:
    """Load ``folder`` by its own Python file and run it on two made-up images."""
    alone = code_of(folder)
    images: Any = student.example(2, seed=2)
    with torch.inference_mode():
        return Reloaded(CODE, IMAGE, alone.load(folder)(images), student(images).heads[IMAGE])


def snippet(folder: Path) -> str:
    """Return the lines of Python that load a student by the file beside its weights and run it on ``IMAGE``."""
    told = preprocessing_of(json.loads((folder / "config.json").read_text(encoding="utf-8"))["preprocessing"])
    height, width = told.image_size
    words = {
        "SIZE": str((width, height)),
        "FILTER": told.interpolation.upper(),
        "MEAN": str(list(told.mean)),
        "STD": str(list(told.std)),
    }
    return filled(_SNIPPET, words)


def settings_of(place: Place) -> dict[str, Any]:
    """Return what makes the network of a name or a folder, with all its arguments.

    Raises:
        UserError: it has no such argument, or the folder's config is damaged.
    """
    saved = _saved(place)
    network = str(saved.get("network", place.architecture))
    valid = _defaults(network)
    for key in place.arguments:
        if key not in valid:
            raise UserError(
                f"{place.name}: there is no argument {key!r}. {did_you_mean(key, valid)}".rstrip(),
                f"Its arguments: {', '.join(valid)}.",
            )
    arguments = {**valid, **saved.get("arguments", {}), **place.arguments}
    return {"library": "generators", "network": network, "arguments": arguments}


def _model(
    module: nn.Module, origin: Any, preprocessing: Preprocessing, settings: Mapping[str, Any]
) -> TranslatorModel:
    return TranslatorModel(module, origin, preprocessing, task_of("image", "image").name, settings)


def _make(place: Place, settings: Mapping[str, Any]) -> nn.Module:
    with building(place.name):
        module: nn.Module = TRANSLATORS[settings["network"]](**settings["arguments"])
    return module


def _defaults(network: str) -> dict[str, Any]:
    parameters = inspect.signature(TRANSLATORS[network]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def _saved(place: Place) -> dict[str, Any]:
    """Return the ``config.json`` of a folder; nothing for a network by name."""
    if place.folder is None:
        return {}

    def check(saved: Mapping[str, Any]) -> None:
        if saved["network"] not in TRANSLATORS or not isinstance(saved["arguments"], dict):
            raise ValueError(f"there is no network {saved['network']!r}, or its arguments are none")

    return read_network(place.folder, check)


def _preprocessing(place: Place) -> Preprocessing:
    saved = _saved(place)
    return preprocessing_of(saved["preprocessing"]) if saved else PREPROCESSING


def _checkpoint_of(place: Place) -> Checkpoint:
    assert place.folder is not None, "names have no weights"
    return read_checkpoint(place.folder / "model.safetensors", source=str(place.folder))
