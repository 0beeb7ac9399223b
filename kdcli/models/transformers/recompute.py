"""transformers' own activation checkpointing."""

from __future__ import annotations

from typing import Any

from kdcli.models.recompute import no_recomputing


def recompute(module: Any, name: str) -> None:
    """Switch it on, without re-entrant autograd.

    Raises:
        UserError: this kind of model has none.
    """
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError:
        raise no_recomputing(name, f"transformers has no checkpoints in its {type(module).__name__}") from None
    if module.main_input_name == "input_ids":
        module.disable_input_require_grads()  # it is for frozen embeddings: a student trains its own
