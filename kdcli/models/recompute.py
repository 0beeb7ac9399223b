"""Activation checkpointing: what lies inside a model's blocks is computed again in the backward pass, and not kept.

The libraries' own checkpointing is used, without re-entrant autograd. What a second pass through a block must not do
again is held off here: to update running statistics, and to keep features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdcli.base.errors import UserError


class _Statistics:
    """Hooks around a normalisation that leave its running statistics as they were after a pass that is a second one.

    Module and hooks share it, so ``deepcopy`` copies it with them; nothing of it is in the state dict.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def before(self, module: nn.Module, inputs: Any) -> None:
        """Keep the buffers of ``module``, if this is a second pass."""
        if is_recomputing():
            self.kept = [(buffer, buffer.clone()) for buffer in module.buffers(recurse=False)]

    def after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Put them back."""
        kept, self.kept = self.kept, []
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def is_recomputing() -> bool:
    """Whether this is called within a backward pass: then a forward pass is a second one."""
    return bool(torch._C._current_graph_task_id() != -1)  # as torch.utils.checkpoint itself asks


def keep_statistics(module: nn.Module) -> None:
    """Let no second pass through ``module`` update running statistics; its batch normalisations are hooked once."""
    for part in module.modules():
        if isinstance(part, _NormBase) and not any(
            isinstance(getattr(hook, "__self__", None), _Statistics) for hook in part._forward_pre_hooks.values()
        ):
            statistics = _Statistics()
            part.register_forward_pre_hook(statistics.before)
            # A second pass ends within a layer, by an exception, where nothing more is needed of it.
            part.register_forward_hook(statistics.after, always_call=True)


def no_recomputing(name: str, why: str) -> UserError:
    """Return the error for a model that can't be checkpointed."""
    return UserError(
        f"train.activation_checkpointing is set, and {name} can't have it: {why}.",
        "Leave it out; a smaller --batch-size with train.accumulation takes less memory too.",
    )
