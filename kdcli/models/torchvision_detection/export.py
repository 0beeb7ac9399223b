"""A detector loaded again by torchvision alone, and the lines of Python that do it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdcli.models.base import Model
from kdcli.models.detections import BOXES
from kdcli.models.reloaded import Reloaded, check_labels
from kdcli.models.torchvision_detection.calls import imports_of
from kdcli.models.torchvision_detection.networks import NETWORKS


def reload(student: Model, folder: Path) -> Iterator[Reloaded]:
    """Make the detector by torchvision, with its own resizing and normalisation, and run it on images in [0, 1].

    What its heads give is compared, before boxes are chosen, which a rounding could change; and the losses that it
    computes itself of made-up boxes, where nothing in them is drawn.
    """
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    check_labels(saved["label_names"], student)
    module = _made(saved)
    module.load_state_dict(load_file(folder / "model.safetensors"))
    preprocessing: Any = student.preprocessing
    height, width = preprocessing.image_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    with torch.inference_mode():
        expected = student((images - mean) / std).heads[BOXES].raw
        found: dict[str, Tensor] = {}
        head = module.rpn.head if hasattr(module, "rpn") else module.head
        handle = head.register_forward_hook(lambda _, inputs, output: found.update(_named(output)))
        module(list(images))
        handle.remove()
        for name, value in found.items():
            yield Reloaded("torchvision", name.replace("_", " "), value, expected[name])


def snippet(folder: Path) -> str:
    """Return the lines that make the detector and load its weights, with how it wants its images."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = tuple(saved["preprocessing"]["image_size"])
    network = NETWORKS[saved["network"]]
    made = network.made(saved["num_outputs"], saved["arguments"], size)
    imports = sorted([*imports_of(made), "from safetensors.torch import load_model"])
    height, width = size
    lines = [
        *imports,
        "",
        f"model = {made.written()}.eval()",
        *[f"model.transform.{key} = {value!r}" for key, value in _transform(saved).items()],
        'load_model(model, "PATH/model.safetensors")',
        f"# images: a list of (3, {height}, {width}) in [0, 1]; labels count from 1 in the order of config.json's"
        " label_names",
        "boxes = model(images)",
    ]
    return "\n".join(lines)


def _made(saved: dict[str, Any]) -> Any:
    size = tuple(saved["preprocessing"]["image_size"])
    module = NETWORKS[saved["network"]].made(saved["num_outputs"], saved["arguments"], size).make().eval()
    for key, value in _transform(saved).items():
        setattr(module.transform, key, value)
    return module


def _transform(saved: dict[str, Any]) -> dict[str, Any]:
    """Return what torchvision's resizing and normalisation has to be told, where its functions take no size."""
    preprocessing = saved["preprocessing"]
    height, width = preprocessing["image_size"]
    return {
        "fixed_size": (width, height),
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
    }


def _named(output: Any) -> dict[str, Tensor]:
    """Return what a head gives by name: a mapping, or the objectness and the deltas of every level."""
    if isinstance(output, dict):
        return dict(output)
    objectness, deltas = output
    found = {f"objectness.{number}": value for number, value in enumerate(objectness)}
    return found | {f"deltas.{number}": value for number, value in enumerate(deltas)}
