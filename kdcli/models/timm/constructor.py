"""What timm's constructors take, and with what its registry calls them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import timm
import torch
from torch import nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.models.bounds import bounded

_ELSEWHERE = {
    "img_size": "Set student.image_size or teacher.image_size.",
    "drop_path_rate": "Set student.drop_path.",
    "num_classes": "It is the number of the data's classes.",
    "in_chans": "Set data.channels.",
}
"""Arguments that have an option of their own, or no choice."""
_NOT_FOR_USERS = {"self", "cfg", "variant", "pretrained", "device", "dtype", "kwargs", "features_only", *_ELSEWHERE}


@dataclass(frozen=True)
class Constructor:
    """How an architecture of timm is built.

    Attributes:
        values: every argument that the model's class gets, with defaults filled in.
        names: of the arguments that a user may set.
    """

    values: Mapping[str, Any]
    names: tuple[str, ...]


def read_constructor(model: str, arguments: Mapping[str, Any]) -> Constructor:
    """Build ``model`` without memory and note what its class is called with.

    timm keeps no record of that: an architecture is a function that calls the class with what makes it this one.

    Args:
        model: a name for ``timm.create_model``.
        arguments: for it.
    """
    with torch.device("meta"):
        kind = type(timm.create_model(model))
        with _first_call(kind) as values, bounded(model):
            architecture = timm.create_model(model, **arguments)
    names = {*_parameters(kind), *_generator_parameters(architecture)}
    cfg = values.get("cfg")
    if is_dataclass(cfg):
        names |= {field.name for field in fields(cfg)}
    return Constructor(values, tuple(sorted(names - _NOT_FOR_USERS)))


def check_arguments(label: str, model: str, arguments: Mapping[str, Any]) -> None:
    """Refuse names that the constructor of ``model`` does not have.

    Args:
        label: what to call the model.
        model: a name for ``timm.create_model``.
        arguments: that are to be set.

    Raises:
        UserError: with the nearest valid names.
    """
    names = read_constructor(model, {}).names
    for key in arguments:
        if key in _ELSEWHERE:
            raise UserError(f"{label}: {key} is no argument to set in a model's name.", _ELSEWHERE[key])
        if key not in names:
            raise UserError(
                f"{label}: there is no argument {key!r}. {did_you_mean(key, names)}".rstrip(),
                f"Its arguments: {', '.join(names)}.",
            )


@contextmanager
def _first_call(kind: type[nn.Module]) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that the arguments of the next ``kind(...)`` are written to."""
    values: dict[str, Any] = {}
    init: Any = kind.__init__
    signature = inspect.signature(init)

    def noted(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if not values:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            given = {key: value for key, value in bound.arguments.items() if key not in ("self", "args")}
            values.update(given | given.pop("kwargs", {}))
        init(self, *args, **kwargs)

    kind.__init__ = noted  # type: ignore[method-assign]
    try:
        yield values
    finally:
        kind.__init__ = init  # type: ignore[method-assign]


def _parameters(kind: type) -> Iterator[str]:
    """Yield the names that a class and, as far as it hands them on, its bases take."""
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        yield from (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return


def _generator_parameters(model: Any) -> Iterator[str]:
    """Yield what the architecture's function leaves open of a helper that it calls, such as ``depth_multiplier``."""
    entry: Any = timm.model_entrypoint(model.pretrained_cfg["architecture"])
    module = sys.modules[entry.__module__]
    for name in entry.__code__.co_names:
        helper = getattr(module, name, None)
        if name.startswith("_gen_") and inspect.isfunction(helper):
            parameters = inspect.signature(helper).parameters.values()
            yield from (p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD)
