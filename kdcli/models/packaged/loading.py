"""Networks of maps with their weights, and saved folders of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from kdcli.base.facts import Preprocessing
from kdcli.base.reads import LOGITS
from kdcli.config.models import TeacherConfig
from kdcli.models.base import Model
from kdcli.models.fit import build_with_weights
from kdcli.models.maps import MapModel
from kdcli.models.origin import phrase_of_file, saved_origin, teacher_origin
from kdcli.models.packaged import craft, hed
from kdcli.models.packaged.model import NETWORKS, map_model
from kdcli.models.packaged.rows import ROWS, Packaged
from kdcli.models.packaged.weights import check_known, check_names
from kdcli.models.place import Place
from kdcli.models.reloaded import Reloaded
from kdcli.models.saved import preprocessing_of, read_network
from kdcli.models.settle import change_input, wanted_input
from kdcli.models.spec import ModelName
from kdcli.models.weights import Checkpoint, read_checkpoint

_READERS = {"hed": hed.read, "craft": craft.read}


def load_teacher(place: Place, name: ModelName, config: TeacherConfig, checkpoint: Checkpoint | None) -> MapModel:
    """Load a network with the package's weights, a saved folder's or a checkpoint's, or untrained."""
    row, preprocessing = _row_of(place)
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    phrase = ""
    module: nn.Module
    if name.random:
        module = NETWORKS[row.name]()
    elif checkpoint is not None or place.folder is not None:
        given = checkpoint or _checkpoint_of(place)
        module, report = build_with_weights(lambda _: NETWORKS[row.name](), given, classifier=lambda _: (0, set()))
        phrase = "" if checkpoint is None else phrase_of_file(checkpoint, report, told, name, 0)
    else:
        module = with_weights(row)
    origin = teacher_origin(place, name, None, image_size=config.input_size, file_phrase=phrase)
    return map_model(module, origin, change_input(preprocessing, wanted), row)


def with_weights(row: Packaged) -> nn.Module:
    """Return a row's network with the package's weights, checked by names, shapes and a known output.

    Raises:
        UserError: the package is not there, or its file is damaged or another.
    """
    module = NETWORKS[row.name]()
    state = _READERS[row.name](row)
    check_names(row, module.state_dict(), state)
    module.load_state_dict(state)
    check_known(row, module)
    return module


def open_saved(place: Place) -> MapModel:
    """Load what :meth:`MapModel.save` wrote."""
    row, preprocessing = _row_of(place)
    module, _ = build_with_weights(
        lambda _: NETWORKS[row.name](), _checkpoint_of(place), classifier=lambda _: (0, set())
    )
    return map_model(module, saved_origin(place, None), preprocessing, row)


def reload(student: Model, folder: Path) -> Iterator[Reloaded]:
    """Make the network anew, with the folder's weights and without kdcli's model around it."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    module = NETWORKS[saved["network"]]().eval()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    images: Any = student.example(2, seed=2)
    with torch.inference_mode():
        yield Reloaded(student.library, "maps", module(images), student(images).heads[LOGITS])


def snippet(folder: Path) -> str:
    """Return the lines that make the network and load its weights."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = NETWORKS[saved["network"]]
    return (
        f"from {kind.__module__} import {kind.__name__}\nfrom safetensors.torch import load_model\n\n"
        f'model = {kind.__name__}().eval()\nload_model(model, "PATH/model.safetensors")\nmaps = model(images)'
    )


def _row_of(place: Place) -> tuple[Packaged, Preprocessing]:
    """Return what a place is of, and how it wants its images.

    Raises:
        UserError: a folder's config is damaged, or names no network.
    """
    if place.folder is None:
        assert place.packaged is not None, "a name has a row"
        return place.packaged, place.packaged.preprocessing

    def check(saved: Mapping[str, Any]) -> None:
        if saved["network"] not in NETWORKS:
            raise ValueError(f"there is no network {saved['network']!r}")

    saved = read_network(place.folder, check)
    return ROWS[saved["network"]], preprocessing_of(saved["preprocessing"])


def _checkpoint_of(place: Place) -> Checkpoint:
    assert place.folder is not None, "names have packages"
    return read_checkpoint(place.folder / "model.safetensors", source=str(place.folder))
