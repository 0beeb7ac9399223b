"""Models whose linear layers are kept in 8 or 4 bits, by bitsandbytes through transformers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import nn

from kdcli.base.errors import UserError


def check_installed() -> None:
    """Refuse where bitsandbytes is not installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "teacher.quantization needs bitsandbytes, which is not installed.", "pip install 'kdcli[quantization]'"
        )


def settle_layers(name: str, module: nn.Module) -> None:
    """Let a quantised model be moved between devices, and compute alike on all CPUs.

    Raises:
        UserError: it has no layer that is quantised.
    """
    layers = [layer for layer in module.modules() if is_packed(layer)]
    if not layers:
        raise UserError(f"teacher.quantization is set, and {name} has no linear layers to quantise.", "Leave it out.")
    for layer in layers:
        if hasattr(layer, "state"):
            layer.register_forward_pre_hook(follow)
        else:
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # another order of weights and sums


def follow(layer: Any, inputs: Any) -> None:
    """Put all parts of an 8-bit layer where its weight is: where a whole model is moved, bitsandbytes leaves some."""
    device = layer.weight.device
    for holder in (layer.state, layer.weight):
        for name in ("CB", "SCB"):
            part = getattr(holder, name, None)
            if part is not None and part.device != device:
                setattr(holder, name, part.to(device))


def is_packed(layer: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is no matrix of floating numbers.

    A weight that is computed anew whenever it is asked for, as a spectral normalisation's, is left alone: asking takes
    a step of its power iteration.
    """
    weight = layer._parameters.get("weight") if isinstance(layer, nn.Linear) else None
    return weight is not None and not weight.is_floating_point()


def count_parameters(module: nn.Module) -> int:
    """Return the number of a model's parameters; of quantised ones as many as they stand for."""
    packed: dict[int, int] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and is_packed(layer):
            packed[id(layer.weight)] = layer.in_features * layer.out_features
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a model's tensors as they are."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())
