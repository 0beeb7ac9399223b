"""Texts of several lengths in one batch, padded on the right, and what the padding may not change."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.models.outputs import ModelOutput

Inputs = dict[str, Tensor]
"""``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``, int64 (B, L), padded on the right."""
_TOLERANCE = 1e-4
"""Largest difference that padding may make, relative to the largest number; rounding makes a hundredth of it."""


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Bring the features of a text's tokens to one vector.

    Args:
        hidden: (B, L, d).
        mask: int64 (B, L), 1 for a token and 0 for padding, which is on the right.
        pooling: ``mean`` or ``max`` over the tokens, ``cls`` for the first or ``last`` for the last one.

    Returns:
        (B, d), in the type of ``hidden``; zeros for a text without tokens, by ``mean``.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = (mask.sum(dim=1) - 1).clamp(min=0)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if pooling == "max":
        return hidden.masked_fill(mask[:, :, None] == 0, -math.inf).amax(dim=1)
    # Summed in float32: half precision loses the small differences of long texts.
    weights = mask[:, :, None].float()
    return ((hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(hidden.dtype)


def last_tokens(ids: Tensor, pad_token: int | None) -> Tensor:
    """Return where transformers' classifiers of decoders look, (B,): the last token but ``pad_token``.

    Args:
        ids: int64 (B, L).
        pad_token: its number by the model's config; None for a batch of one text.
    """
    real = torch.ones_like(ids) if pad_token is None else (ids != pad_token).long()
    return (real * torch.arange(ids.shape[1], device=ids.device)).argmax(dim=1)


def by_length(run: Callable[[Inputs], ModelOutput], inputs: Inputs) -> ModelOutput:
    """Run texts of each length by themselves, without padding, and return all of their outputs in order."""
    lengths = inputs["attention_mask"].sum(dim=1).clamp(min=1)
    groups, outputs = [], []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        groups.append(rows)
        outputs.append(run({name: tensor[rows, :length] for name, tensor in inputs.items()}))
    order = torch.cat(groups).argsort()
    features = {tap: torch.cat([output.features[tap] for output in outputs])[order] for tap in outputs[0].features}
    heads = {name: torch.cat([output.heads[name] for output in outputs])[order] for name in outputs[0].heads}
    edges = {tap: tuple(edge for output in outputs for edge in output.edges[tap]) for tap in outputs[0].edges}
    return ModelOutput(features, heads=heads, edges=edges)


def is_changed_by_padding(run: Callable[[Inputs], list[Tensor]], long: Tensor, short: Tensor, pad_token: int) -> bool:
    """Whether a text's outputs depend on what is longer in its batch.

    Args:
        run: returns outputs (B, ...) of a model in eval mode.
        long: tokens of one text, int64 (1, L).
        short: of another one, int64 (1, l).
        pad_token: its number.
    """
    missing = long.shape[1] - short.shape[1]
    if missing <= 0:
        return False
    ids = torch.cat([long, F.pad(short, (0, missing), value=pad_token)])
    mask = torch.cat([torch.ones_like(long), F.pad(torch.ones_like(short), (0, missing))])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        by_itself = run({"input_ids": short, "attention_mask": torch.ones_like(short)})
        beside = run({"input_ids": ids, "attention_mask": mask})
    return any(
        bool((alone[0] - padded[1]).abs().max() > _TOLERANCE * alone.abs().max().clamp(min=1e-6))
        for alone, padded in zip(by_itself, beside, strict=True)
    )
