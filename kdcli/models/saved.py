"""Folders of networks that have no format of their own: ``model.safetensors`` and a ``config.json`` of kdcli's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.models.vision import VisionModel


def write_network(model: VisionModel, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a model's weights, and ``settings`` with its labels and preprocessing as ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.module.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    names = model.facts.label_names
    config = {
        **settings,
        "label_names": None if names is None else list(names),
        "preprocessing": asdict(model.preprocessing),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_network(folder: Path, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Return the ``config.json`` that :func:`write_network` wrote.

    Args:
        folder: of the network.
        check: raises whatever it likes where the settings are unsound.

    Raises:
        UserError: it is damaged.
    """
    file = folder / "config.json"
    try:
        saved = dict(json.loads(file.read_text(encoding="utf-8")))
        str(saved["network"])
        preprocessing_of(saved["preprocessing"])
        check(saved)
    except Exception as error:  # whatever rubbish trips over
        raise UserError(f"{file} is damaged: {type(error).__name__}: {error}.", "Check the folder.") from error
    return saved


def preprocessing_of(saved: Mapping[str, Any]) -> Preprocessing:
    """Return a preprocessing that was saved as json."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    return Preprocessing(**values)


def label_names_of(saved: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes in a config; None where it has none."""
    names = saved.get("label_names")
    return None if names is None else tuple(map(str, names))
