"""What one image costs: multiply-accumulates and the activations that training keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")

# Without a formula of torch's own up to 2.11.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Measured(Generic[T]):
    """Costs of a forward pass, and what it returned.

    Attributes:
        result: of the forward pass.
        macs: multiply-accumulates: half of the FLOPs that torch counts for convolutions, matrix products and
            attention. Element-wise work counts nothing.
        activation_bytes: of the distinct storages that autograd keeps for the backward pass, parameters and buffers
            left out.
    """

    result: T
    macs: int
    activation_bytes: int


def measure(module: nn.Module, forward: Callable[[], T]) -> Measured[T]:
    """Run ``forward``, a pass through ``module``, once and count.

    In eval mode, so that batch statistics stay as they are and a batch of one image works, and with gradients for every
    parameter. Module modes, ``requires_grad`` and torch's CPU generator are as before afterwards.
    """
    own = {StorageWeakRef(t.untyped_storage()) for t in (*module.parameters(), *module.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept.setdefault(StorageWeakRef(storage), storage.nbytes())
        # Nothing is handed back, for nothing is run backward: so a large model's graph takes no memory here.

    counter = FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops})
    with (
        _as_in_training(module),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        saved_tensors_hooks(keep, _no_backward),
        counter,
    ):
        result = forward()
    activations = sum(size for storage, size in kept.items() if storage not in own)
    return Measured(result, counter.get_total_flops() // 2, activations)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Two FLOPs for every multiply-accumulate of query x key and of weights x value; shapes (B, heads, N, d)."""
    batch, heads, num_queries, width = query
    return 2 * batch * heads * num_queries * key[2] * (width + value[3])


def _no_backward(_: None) -> Tensor:
    raise RuntimeError("a measured pass keeps no activations: it can't be run backward")


@contextmanager
def _as_in_training(module: nn.Module) -> Iterator[None]:
    """Eval mode, but every floating parameter wants its gradient; restored on exit."""
    modes = [(m, m.training) for m in module.modules()]
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        module.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for m, training in modes:
            m.training = training
