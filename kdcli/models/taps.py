"""Layers whose outputs are read, and their layout."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from kdcli.base.errors import UserError

Layout = Literal["vector", "NCHW", "NHWC", "NLC", "NCL"]
"""Of a tensor of features: which of its axes are positions, to be averaged over."""


Edges = tuple[GradientEdge, ...]


def edges_of(*tensors: Tensor) -> Edges:
    """Return where in the graph ``tensors`` stand as they are now, whatever is written over them later."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return ()
    return tuple(get_gradient_edge(tensor) for tensor in tensors if tensor.requires_grad)


def mean_over_places(features: Tensor, layout: Layout, num_prefix: int) -> Tensor:
    """Return the mean over positions, (B, d); of a sequence without its first ``num_prefix`` tokens."""
    if layout == "vector":
        return features
    if layout == "NLC":
        return features[:, num_prefix:].mean(dim=1)
    if layout == "NCL":
        return features.mean(dim=2)
    return features.mean(dim=(2, 3) if layout == "NCHW" else (1, 2))


def map_of_places(features: Tensor, layout: Layout, num_prefix: int, grid: tuple[int, int]) -> Tensor:
    """Return the features of every position of ``grid``, (B, d, H, W); sequences without their first tokens."""
    if layout == "NCHW":
        return features
    if layout == "NHWC":
        return features.permute(0, 3, 1, 2)
    if layout == "NLC":
        features = features[:, num_prefix:].transpose(1, 2)
    return features.unflatten(2, grid)


def grid_of(features: Tensor, layout: Layout, num_prefix: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the rows and columns of positions of ``features``; None for vectors.

    A sequence whose length is no grid of square patches of the image is a column.
    """
    if layout == "vector":
        return None
    shape = features.shape
    if layout in ("NCHW", "NHWC"):
        return (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])
    length = shape[2] if layout == "NCL" else shape[1] - num_prefix
    height, width = image_size
    sides = range(1, min(height, width) + 1)
    whole = ((height // side, width // side) for side in sides)
    padded = ((math.ceil(height / side), math.ceil(width / side)) for side in sides)
    return next(((a, b) for a, b in (*whole, *padded) if a * b == length), (length, 1))


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Reached(Exception):
    """The last layer that was asked for has run."""


class LayerTap:
    """A forward hook that keeps what is wanted of a layer's output, and can end the pass there.

    The layer and the model share it, so ``deepcopy`` copies it with them; nothing of it is in the state dict.
    """

    def __init__(self, layout: Layout, num_prefix: int, grid: tuple[int, int] | None) -> None:
        self.layout = layout
        self.num_prefix = num_prefix
        self.grid = grid
        self.wants_mean = False
        self.wants_map = False
        self.is_end = False
        self.is_in_block = False
        """Whether it may lie in a block whose activations are not kept; then its own are, all the same."""
        self.kept: tuple[Tensor | None, Tensor | None, Edges] | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep what is wanted of the output of ``module``."""
        if not (self.wants_mean or self.wants_map):
            return
        with saved_tensors_hooks(_same, _same) if self.is_in_block else nullcontext():
            self._keep(output)
        if self.is_end:
            raise Reached

    def _keep(self, output: Any) -> None:
        mean = of_places = None
        edges = edges_of(tensor_of(output))
        features = self.features_of(output)
        # Not averaged, it is the layer's own memory, which an in-place activation after it overwrites.
        if self.wants_map or self.layout == "vector":
            features = features.clone()
        if self.wants_mean:
            mean = self._mean(features)
        if self.wants_map:
            assert self.grid is not None
            of_places = map_of_places(features, self.layout, self.num_prefix, self.grid)
        self.kept = mean, of_places, edges

    def features_of(self, output: Any) -> Tensor:
        """Return the features, in the tap's layout, out of what the layer returns."""
        features: Tensor = tensor_of(output)
        return features

    def _mean(self, features: Tensor) -> Tensor:
        return mean_over_places(features, self.layout, self.num_prefix)

    def take(self) -> tuple[Tensor | None, Tensor | None, Edges]:
        """Return the features (B, d) and the map (B, d, H, W), where they were wanted, and their edges; forget them."""
        kept, self.kept = self.kept, None
        if kept is None:
            raise RuntimeError("the layer that was to be tapped did not run")
        return kept


class HeadTap:
    """A forward hook that keeps a classifier's logits while it is armed; shared and copied as a :class:`LayerTap`."""

    def __init__(self) -> None:
        self.armed = False
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the logits (B, C), once it is armed."""
        if self.armed:
            self.value = output

    def take(self) -> Tensor:
        """Return the logits (B, C), and forget them."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the classifier that was to be read did not run")
        return value


def describe_layer(model: str, name: str, outputs: list[Any], image: Tensor, num_prefix: int) -> tuple[LayerTap, int]:
    """Return the hook for a layer and its width, from what it returned for ``image`` (1, 3, H, W)."""
    output = tensor_of(run_once(model, name, outputs, "an image"))
    height, width = image.shape[2:]

    def tap(layout: Layout, num_prefix: int, channels: int) -> tuple[LayerTap, int]:
        return LayerTap(layout, num_prefix, grid_of(output, layout, num_prefix, (height, width))), channels

    if isinstance(output, Tensor) and output.ndim and len(output) == 1:
        if output.ndim == 2:
            return tap("vector", 0, output.shape[1])
        if output.ndim == 3:
            length = output.shape[1] - num_prefix
            grids = {(height // patch) * (width // patch) for patch in range(1, min(height, width) + 1)}
            return tap("NLC", num_prefix if length in grids else 0, output.shape[2])
        if output.ndim == 4:
            _, a, b, c = output.shape
            if abs(b * width - c * height) <= max(height, width):  # positions have the image's proportions
                return tap("NCHW", 0, a)
            if abs(a * width - b * height) <= max(height, width):
                return tap("NHWC", 0, c)
    shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise UserError(f"{model}: the layer {name!r} returns {shape}, not features of the image.", "Name another layer.")


def last_of(module: nn.Module) -> nn.Module:
    """Return the part whose output is the module's: of a sequence its last, which timm's checkpointing runs alone."""
    while type(module).forward is nn.Sequential.forward and len(module):  # type: ignore[arg-type]
        module = module[-1]  # type: ignore[index]
    return module


def run_once(model: str, name: str, outputs: list[Any], sample: str) -> Any:
    """Return the only output of a layer; UserError where it ran more often, or never, for ``sample``."""
    if len(outputs) != 1:
        times = "never" if not outputs else f"{len(outputs)} times"
        raise UserError(
            f"{model}: the layer {name!r} runs {times} for {sample}; only one that runs once can be tapped.",
            "Name a layer around it or inside of it.",
        )
    return outputs[0]


def tensor_of(output: Any) -> Any:
    """Return a layer's tensor out of what it returns: a tensor, a sequence that begins with one, a named output."""
    while not isinstance(output, Tensor) and isinstance(output, (tuple, list)) and output:
        output = output[0]
    return getattr(output, "last_hidden_state", output)
