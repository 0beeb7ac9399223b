"""The layers of a model that can be tapped, in the order in which they run; and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdcli.base.errors import UserError
from kdcli.config.methods import FeaturePair, MethodOptions, find_choice
from kdcli.config.run import RunConfig
from kdcli.models.base import Inputs, Model
from kdcli.models.taps import tensor_of

_NESTS = (nn.Sequential, nn.ModuleList)
_DEEPEST_NEST = 2
"""Stages, and blocks in them: ``stages.0.blocks.1``."""
_INDEX = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Layer:
    """A layer that can be tapped.

    Attributes:
        name: of the submodule, as ``feature_layers`` takes it.
        kind: its class.
        width: of its features.
        grid: (height, width) of its positions, class and register tokens left out; (number,) of what is no image's;
            () for one vector.
    """

    name: str
    kind: str
    width: int
    grid: tuple[int, ...]


def list_layers(model: Model, *, every: bool = False) -> list[Layer]:
    """Return the layers of ``model`` that run once for an image and return features, first the one that is done first.

    Args:
        model: as loaded.
        every: every submodule. Otherwise stages and blocks: the outermost modules and the items of sequences and lists,
            two nests deep, that have parameters and return features for several positions; their place in the list is
            their number.
    """
    names = [name for name, _ in model.module.named_modules() if name] if every else _stages_and_blocks(model.module)
    example = model.example()
    outputs, order = model._watch(names, example)
    found = [_layer(model, name, outputs[name], example) for name in dict.fromkeys(order)]
    return [layer for layer in found if layer is not None and (every or layer.grid)]


def resolve_indices(model: Model, names: Iterable[str]) -> dict[str, str]:
    """Return ``names`` with the layer's name for each number; ``-1`` is the last of :func:`list_layers`.

    Raises:
        UserError: there is no layer of that number.
    """
    resolved = {name: name for name in names}
    indices = [name for name in resolved if _INDEX.fullmatch(name)]
    layers = list_layers(model) if indices else []
    for index in indices:
        if not -len(layers) <= int(index) < len(layers):
            raise UserError(
                f"{model.facts.name} has no layer {index}: its layers are 0 to {len(layers) - 1},"
                f" or -1 to {-len(layers)}.",
                "'kdcli models layers NAME' lists them.",
            )
        resolved[index] = layers[int(index)].name
    return resolved


def _stages_and_blocks(root: nn.Module) -> list[str]:
    """Return the names of the outermost modules and of the items of nests.

    Inside of other modules an item has to have modules of its own: a block, and not the convolution of a shortcut.
    """
    names: list[str] = []

    def visit(module: nn.Module, path: str, nests: int, inside: bool) -> None:
        for name, child in module.named_children():
            is_item = isinstance(module, _NESTS)
            is_part = inside and next(child.children(), None) is None
            has_parameters = next(child.parameters(), None) is not None
            if has_parameters and (module is root or (is_item and nests < _DEEPEST_NEST and not is_part)):
                names.append(path + name)
            visit(child, f"{path}{name}.", nests + is_item, inside or not isinstance(child, _NESTS))

    visit(root, "", 0, False)
    return names


def _layer(model: Model, name: str, outputs: list[Any], example: Inputs) -> Layer | None:
    """Describe a layer by what it returned for ``example``; None where it can't be tapped."""
    try:
        tap, width = model._describe_layer(name, outputs, example)
    except UserError:
        return None
    grid: tuple[int, ...] = tap.grid or ()
    if tap.grid is None and tap.layout == "NLC":
        grid = (tensor_of(outputs[0]).shape[1] - tap.num_prefix,)
    return Layer(name, type(model.module.get_submodule(name)).__name__, width, grid)


def _with_layer_names(config: RunConfig, teacher: Model | None, student: Model) -> RunConfig:
    """Put the layers' names in place of their numbers, so that the plan and the run folder have nothing but names."""

    def named(pairs: tuple[FeaturePair, ...]) -> tuple[FeaturePair, ...]:
        for side, model in (("teacher", teacher), ("student", student)):
            if model is not None:
                names = resolve_indices(model, [getattr(pair, side) for pair in pairs])
                pairs = tuple(pair.model_copy(update={side: names[getattr(pair, side)]}) for pair in pairs)
        return pairs

    def with_names(methods: tuple[MethodOptions, ...]) -> tuple[MethodOptions, ...]:
        return tuple(options.renamed(named) for options in methods)

    changes: dict[str, Any] = {}
    if config.feature_layers:
        changes["feature_layers"] = named(config.feature_layers)
    if config.methods is not None:
        changes["methods"] = with_names(config.methods)
    if config.embedding is not None:
        changes["embedding"] = config.embedding.model_copy(update={"methods": with_names(config.embedding.methods)})
    return config.model_copy(update=changes)


def open_taps(config: RunConfig, teacher: Model | None, student: Model) -> RunConfig:
    """Open every layer that the config names as features, and the ends of the stages where a method takes them.

    Returns:
        The config with names for the layers' numbers.
    """
    config = _with_layer_names(config, teacher, student)
    methods = (*(config.methods or ()), *(config.embedding.methods if config.embedding else ()))
    asked = find_choice(config.method or "none").options if config.feature_layers is None else None
    takes_stages = any(options.takes_stages for options in methods) or (asked is not None and asked.takes_stages)
    pairs = [*(config.feature_layers or ()), *(pair for options in methods for pair in options.pairs)]
    for side, model in (("teacher", teacher), ("student", student)):
        if model is not None:
            model.open_taps(sorted({getattr(pair, side) for pair in pairs}))
            if takes_stages:
                model.open_stages()
    return config
