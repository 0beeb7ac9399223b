"""Where a model is: its library and its name or folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError, check_are_files, reading
from kdcli.base.text import short_repr
from kdcli.models.spec import Library, format_query


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Attributes:
        library: whose model it is.
        name: resolved, with the library: ``timm:resnet50.a1_in1k``, ``hf:org/name``, ``cifar:resnet20``.
        architecture: a name in timm's registry, with or without a tag, or a kind of model of transformers, with its
            default config; None for a folder.
        folder: with ``config.json``, and weights unless only the architecture was asked for; None for the registry.
        run: the run folder of ``kdcli distill`` whose best student is meant; None for anything else.
        arguments: of timm's constructor, or of transformers' config, that differ from the architecture's own.
    """

    library: Library
    name: str
    architecture: str | None = None
    folder: Path | None = None
    run: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def with_arguments(self, arguments: Mapping[str, Any]) -> Place:
        """Return the same place with its architecture changed further, in its name too."""
        merged = {**self.arguments, **arguments}
        return replace(self, name=self.name.partition("?")[0] + format_query(merged), arguments=merged)


def library_of(folder: Path) -> Library:
    """Return whose native format ``folder`` is in.

    Raises:
        UserError: it has no ``config.json`` of timm or transformers, or something in it is no file.
    """
    path = folder / "config.json"
    with reading(path):
        check_are_files(folder)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} has no config.json.", "Give a folder that timm or transformers saved.") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}", "Give a folder that timm or transformers saved.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no mapping.", "Give a folder that timm or transformers saved.")
    if "architecture" in config and "model_type" in config:
        raise UserError(
            f"{folder} was saved by transformers, which wrapped a model of timm.",
            f"Name the model and give its weights: {short_repr(config['architecture'])}, and as --teacher-weights the"
            " folder's model.safetensors.",
        )
    if "architecture" in config:
        return "timm"
    if "model_type" in config:
        return "transformers"
    raise UserError(
        f"{path} has neither 'architecture' (timm) nor 'model_type' (transformers).",
        "Give a folder that timm or transformers saved.",
    )
