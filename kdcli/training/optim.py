"""Optimiser and schedule, by timm's factories."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer

from kdcli.base.errors import UserError, did_you_mean
from kdcli.config.training import OptimConfig

POLY_POWER = 0.9
"""Of the schedule ``poly`` by default, as DeepLab's authors chose (arXiv 1606.00915, section 4.1.2)."""


_FUSED = ("adam", "adamw", "sgd", "momentum")
_FUSED_ON = ("cpu", "cuda", "mps")


def can_fuse(optim: OptimConfig, device: torch.device) -> bool:
    """Whether torch has a kernel on ``device`` that steps all weights of this optimiser at once."""
    return device.type in _FUSED_ON and optim.optimizer.lower() in _FUSED


def make_optimizer(groups: list[dict[str, Any]], optim: OptimConfig, *, fused: bool = False) -> Optimizer:
    """Return timm's optimiser.

    Args:
        groups: of parameters on their device, each with its ``lr`` and ``weight_decay``.
        optim: which one, with what.
        fused: steps all weights at once, where :func:`can_fuse` of this optimiser.

    Raises:
        UserError: for a name that timm doesn't have, or one that needs more than gradients.
    """
    # Here, as timm.optim imports torch's compiler, which a dry run has no use for.
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    valid, name = [str(name) for name in list_optimizers()], optim.optimizer.lower().removeprefix("lookahead_")
    if name not in valid:
        raise UserError(
            f"There is no optimiser {optim.optimizer!r}. {did_you_mean(optim.optimizer, valid)}".rstrip(),
            "Any name of timm.optim.list_optimizers() works, such as adamw, sgd or lamb.",
        )
    info = get_optimizer_info(name)
    if optim.betas is not None and not (info.has_betas and info.num_betas == len(optim.betas)):
        raise UserError(
            f"optim.betas is set, and the optimiser {optim.optimizer!r} has no two of them.",
            "Leave it out, or use adam or adamw.",
        )
    extra: dict[str, Any] = {} if optim.betas is None else {"betas": optim.betas}
    if fused and can_fuse(optim, groups[0]["params"][0].device):
        extra["fused"] = True
    try:
        optimizer = create_optimizer_v2(
            groups,
            opt=optim.optimizer,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            **extra,
        )
    except (ImportError, AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The optimiser {optim.optimizer!r} can't be used: {error}", "Use adamw, sgd or lamb."
        ) from None
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"The optimiser {optim.optimizer!r} needs second derivatives.", "Use adamw, sgd or lamb.")
    return optimizer


def make_schedule(optimizer: Optimizer, optim: OptimConfig, updates: int) -> Any:
    """Return timm's schedule over ``updates`` optimiser steps, warm-up included."""
    from timm.scheduler import create_scheduler_v2

    # timm's multi-step schedule decays one step before a milestone.
    milestones = [round(share * updates) + 1 for share in optim.milestones or ()]
    choices: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine", {}),
        "linear": ("poly", {"decay_rate": 1.0}),  # timm calls the power so
        "poly": ("poly", {"decay_rate": POLY_POWER if optim.power is None else optim.power}),
        "step": ("multistep", {"decay_rate": optim.decay_rate, "decay_milestones": milestones})
        if milestones
        else ("step", {"decay_rate": optim.decay_rate, "decay_epochs": math.ceil(updates / 3)}),
        "constant": ("step", {"decay_rate": 1.0}),
    }
    name, extra = choices[optim.schedule]
    held = round(optim.hold * updates)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=updates - held,
        updates_per_epoch=1,
        step_on_epochs=False,
        warmup_epochs=round(optim.warmup * updates),
        warmup_lr=optim.lr * optim.min_lr_ratio,
        min_lr=optim.lr * optim.min_lr_ratio,
        **extra,
    )
    schedule.step_update(0)
    return _Held(schedule, round(optim.warmup * updates), held) if held else schedule


class _Held:
    """A schedule that stands still for a while.

    Args:
        schedule: timm's, over the other steps.
        start: the step at which it stands.
        steps: for how many.
    """

    def __init__(self, schedule: Any, start: int, steps: int) -> None:
        self._schedule, self._start, self._steps = schedule, start, steps

    def step_update(self, num_updates: int) -> None:
        """Set the rates to those after so many optimiser steps."""
        passed = min(max(num_updates - self._start, 0), self._steps)
        self._schedule.step_update(num_updates - passed)
