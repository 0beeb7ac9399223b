"""What one image costs: multiply-accumulates, the activations that training keeps, and time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

from kdcli.models.quantization import is_packed

T = TypeVar("T")


@dataclass(frozen=True)
class Measured(Generic[T]):
    """Costs of a forward pass, and what it returned.

    Attributes:
        result: of the forward pass.
        macs: multiply-accumulates: half of the FLOPs that torch counts for convolutions, matrix products, recurrent
            layers and attention, whichever kernel runs them. Masked positions count in full, element-wise work nothing.
        activation_bytes: of the distinct storages that autograd keeps for the backward pass, parameters and buffers
            left out.
    """

    result: T
    macs: int
    activation_bytes: int


def measure(module: nn.Module, forward: Callable[[], T], *, mode: Literal["eval", "train"] = "eval") -> Measured[T]:
    """Run ``forward``, a pass through ``module``, once and count.

    In eval mode, so that batch statistics stay as they are and a batch of one image works, and with gradients for every
    parameter. Module modes, ``requires_grad`` and torch's CPU generator are as before afterwards.

    Args:
        module: whose costs they are.
        forward: the pass.
        mode: ``train`` puts all but batch normalisations into training mode.
    """
    own = {StorageWeakRef(t.untyped_storage()) for t in (*module.parameters(), *module.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept.setdefault(StorageWeakRef(storage), storage.nbytes())
        # Nothing is handed back, for nothing is run backward: so a large model's graph takes no memory here.

    counter = _Counter(display=False, custom_mapping=_FORMULAS)
    with (
        _as_in_training(module, mode),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        saved_tensors_hooks(keep, _no_backward),
        counter,
    ):
        packed = [part for part in module.modules() if is_packed(part)]
        with _counted(packed, counter.get_total_flops) as more:
            result = forward()
    activations = sum(size for storage, size in kept.items() if storage not in own)
    return Measured(result, (counter.get_total_flops() + sum(more)) // 2, activations)


@contextmanager
def _counted(layers: Sequence[nn.Module], total: Callable[[], int]) -> Iterator[list[int]]:
    """Count quantised linear layers as the matrix products that they stand for, whatever of their kernels is counted.

    Args:
        layers: that are quantised.
        total: returns the FLOPs counted so far.

    Yields:
        What is to be added, grown by every pass through a layer.
    """
    more: list[int] = []

    def before(layer: nn.Module, inputs: Any) -> None:
        more.append(total())

    def after(layer: Any, inputs: Any, output: Tensor) -> None:
        more.append(more.pop() - total() + 2 * output.numel() * layer.in_features)

    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield more
    finally:
        for handle in handles:
            handle.remove()


class _Mode(_FlopCounterMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    __torch_dispatch__ = inspect.unwrap(_FlopCounterMode.__torch_dispatch__)


class _Counter(FlopCounterMode):
    """torch's counter, without the mark on its mode that makes the first operator import torch's compiler: two CPU
    seconds of every start.
    """

    def __enter__(self) -> _Counter:
        self.flop_counts.clear()
        self.mod_tracker.__enter__()
        self.mode = _Mode(self)
        self.mode.__enter__()
        return self


@torch.inference_mode()
def time_passes(
    forward: Callable[[], object],
    *,
    device: torch.device,
    most: int,
    seconds: float,
    warm_up: int = 1,
    fewest: int = 1,
) -> Tensor:
    """Time repeated forward passes.

    Args:
        forward: a pass of a model in eval mode, whose inputs are on ``device`` already.
        device: to wait for.
        most: number of timed passes.
        seconds: after the ``fewest`` passes it stops when they have taken so long together.
        warm_up: passes before, not timed.
        fewest: number of passes, however long they take.

    Returns:
        The seconds of every pass, float64 (passes,).
    """

    def one_pass() -> float:
        _synchronize(device)
        start = time.perf_counter()
        forward()
        _synchronize(device)
        return time.perf_counter() - start

    for _ in range(warm_up):
        one_pass()
    times: list[float] = []
    while len(times) < fewest or (len(times) < most and sum(times) < seconds):
        times.append(one_pass())
    return torch.tensor(times, dtype=torch.float64)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Two FLOPs for every multiply-accumulate of query x key and of weights x value; shapes (B, heads, N, d).

    Keys and values may have fewer heads than queries: each is used by several.
    """
    batch, heads, num_queries, width = query
    return 2 * batch * heads * num_queries * key[2] * (width + value[3])


def _expert_flops(inputs: torch.Size, weights: torch.Size, *_: Any, **__: Any) -> int:
    """Two FLOPs for every multiply-accumulate of rows (N, d), each with one of the matrices (experts, d, e)."""
    return 2 * inputs[0] * inputs[1] * weights[2]


def _recurrent_flops(inputs: torch.Size, weights: torch.Size, recurrent: torch.Size, *_: Any, **__: Any) -> int:
    """Inputs (T, B, d); at every step each row is multiplied by both matrices, (gates, d) and (gates, hidden)."""
    return 2 * inputs[0] * inputs[1] * (weights.numel() + recurrent.numel())


def _matrix_vector_flops(matrix: torch.Size, *_: Any, **__: Any) -> int:
    """A matrix (n, d) with a vector (d,)."""
    return 2 * matrix.numel()


# For kernels to which torch has no formula, in some of its versions or for some shapes: so a count depends on neither.
_aten = torch.ops.aten
_FORMULAS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention: _attention_flops,
    _aten._scaled_dot_product_efficient_attention: _attention_flops,
    _aten._scaled_dot_product_cudnn_attention: _attention_flops,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention_flops,
    _aten._scaled_dot_product_attention_math_for_mps: _attention_flops,
    _aten._grouped_mm: _expert_flops,
    _aten.mkldnn_rnn_layer: _recurrent_flops,
    _aten.mv: _matrix_vector_flops,
}


def _no_backward(_: None) -> Tensor:
    raise RuntimeError("a measured pass keeps no activations: it can't be run backward")


@contextmanager
def _as_in_training(module: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Every floating parameter wants its gradient, and batch statistics stay as they are; restored on exit."""
    modes = [(m, m.training) for m in module.modules()]
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        module.train(mode == "train")
        for m, _ in modes:
            if isinstance(m, _NormBase):
                m.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for m, training in modes:
            m.training = training
