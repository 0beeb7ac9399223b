"""Batch normalisations of a frozen model folded into the convolutions before them, where that is exact."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcli.base.reads import Reads
from kdcli.models.base import Inputs, Model

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
"""These very classes: a subclass may do something else."""


@dataclass(frozen=True)
class Foldable:
    """A convolution, and the batch normalisation that alone takes what it returns; by their names."""

    convolution: str
    norm: str


def find_foldable(model: Model, inputs: Inputs, reads: Reads) -> list[Foldable]:
    """Return the pairs in ``model`` that are one convolution, as a pass for ``reads`` shows.

    That is where the convolution runs once, with its own weight as it is (it is not standardised, nor shared), and
    where what it returns goes nowhere but into the normalisation: no other operation and no open tap reads it.

    Args:
        model: frozen, in eval mode.
        inputs: of a sample, on the model's device.
        reads: what is read of it.
    """
    modules = dict(model.module.named_modules())
    seen = _Seen()
    handles = [module.register_forward_hook(seen.hook(name)) for name, module in modules.items() if _is_read(module)]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), seen:
            model(inputs, reads)
    finally:
        for handle in handles:
            handle.remove()
    convolutions = _by_weight(modules, _CONVOLUTIONS)
    norms = {
        id(m.running_mean): name for name, m in modules.items() if type(m) in _NORMS and m.running_mean is not None
    }
    shared = Counter(id(p) for _, p in model.module.named_parameters(remove_duplicate=False))
    found = []
    for weight, output in seen.convolved:
        name = convolutions.get(weight)
        readers = seen.readers[output]
        if name is None or shared[weight] > 1 or seen.uses[weight] > 1 or len(readers) != 1 or output in seen.tapped:
            continue
        (norm,) = readers
        if norm in norms and seen.uses[norm] == 1:
            found.append(Foldable(name, norms[norm]))
    return found


def fold(model: Model, pairs: list[Foldable]) -> Model:
    """Return a copy of ``model`` with ``pairs`` folded; open taps, and hooks in general, stay where they are.

    Its outputs differ by the rounding of the products of weights and scales alone.

    Args:
        model: frozen, in eval mode.
        pairs: of :func:`find_foldable`.
    """
    folded = copy.deepcopy(model)
    for pair in pairs:
        convolution: Any = folded.module.get_submodule(pair.convolution)
        norm: Any = folded.module.get_submodule(pair.norm)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        norm.forward = MethodType(_rest_of_norm, norm)
    return folded.eval().requires_grad_(False)


def _rest_of_norm(norm: Any, features: Tensor) -> Tensor:
    """What a folded normalisation still does: timm's have an activation inside."""
    if isinstance(norm, BatchNormAct2d):
        return norm.act(norm.drop(features))
    return features


def _is_read(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _by_weight(modules: dict[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> dict[int, str]:
    """Return modules by the ids of their weights; a weight that is made anew for each pass is none to fold into."""
    found = {name: module for name, module in modules.items() if isinstance(module, kinds)}
    return {id(m.weight): name for name, m in found.items() if isinstance(m.weight, nn.Parameter)}


class _Seen(TorchDispatchMode):
    """What a pass does with the outputs of its convolutions.

    Attributes:
        convolved: the weight and the output of every convolution, by their ids.
        readers: of a convolution's output: for each operation that takes it the running mean of the normalisation that
            it is, or 0.
        uses: how often an operation takes a tensor, by its id: of weights and running means.
        tapped: outputs that a hook of the model's has seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolved: list[tuple[int, int]] = []
        self.readers: dict[int, list[int]] = {}
        self.uses: Counter[int] = Counter()
        self.tapped: set[int] = set()
        self._kept: list[Tensor] = []
        """Tensors stay, so that no other one gets their ids."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        output = func(*args, **(kwargs or {}))
        self._kept += [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        is_norm = "batch_norm" in str(func)
        for tensor in _tensors((args, kwargs)):
            self.uses[id(tensor)] += 1
            if id(tensor) in self.readers:
                self.readers[id(tensor)].append(id(args[3]) if is_norm and tensor is args[0] else 0)
        if func is torch.ops.aten.convolution.default:
            self.convolved.append((id(args[1]), id(output)))
            self.readers[id(output)] = []
        return output

    def hook(self, name: str) -> Any:
        """Return a hook that notes what a module's own hooks are shown."""

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            shown = (output, inputs if module._forward_pre_hooks else ())
            self.tapped.update(id(tensor) for tensor in _tensors(shown))

        return look


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
