"""Folders of networks: ``model.safetensors``, and a ``config.json`` with labels and preprocessing as kdcli has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.models.vision import VisionModel


def write_network(model: VisionModel, folder: Path, settings: Mapping[str, Any], *, prefix: str = "") -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        model: whose weights, labels and preprocessing are written.
        folder: made where it is not there.
        settings: the rest of the config.
        prefix: of the keys of labels and preprocessing, where a library would take them for its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.module.state_dict()
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    names = model.facts.label_names
    config = {
        **settings,
        f"{prefix}label_names": None if names is None else list(names),
        f"{prefix}preprocessing": asdict(model.preprocessing),
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
