"""Randomness as a pure function of what it is for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def stable_seed(*key: int | str) -> int:
    """Return 63 bits that depend on ``key`` alone: not on the process, the platform or Python's own hash."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stable_share(*key: int | str) -> float:
    """Return a number in [0, 1) that depends on ``key`` alone, spread evenly over keys."""
    return stable_seed(*key) / 2**63


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed Python's, numpy's and torch's generators, on the CPU and on ``device``; those of other devices stay.

    ``torch.manual_seed`` seeds all there are, and where none is in use it keeps a stack trace each time.

    Args:
        seed: below 2**32.
        device: that is computed on.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Within the block, torch's global CPU generator is seeded by ``key``; afterwards it is as it was before.

    Generators of accelerators are neither read nor changed, which ``torch.manual_seed`` would do: with no loader
    processes this runs in the middle of training, where dropout draws from them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stable_seed(*key))
        yield


def draw(
    samples: Tensor, view: Tensor, size: int, *key: int | str, uniform: bool = False, bound: float | None = None
) -> Tensor:
    """Return standard normal numbers, float32 (B, ``size``) on the device of ``samples``.

    Each row is a function of the sample's id, its view and ``key`` alone: not of the batch or the process.

    Args:
        samples: int64 (B,), ids.
        view: int64 (B,), which augmentation of each.
        size: numbers of each sample.
        key: what else they depend on, such as a seed.
        uniform: numbers in [0, 1) instead.
        bound: of normal ones: those beyond it, on either side, are drawn again.
    """
    rows = torch.empty(len(samples), size)
    generator = torch.Generator()
    for row, number, turn in zip(rows, samples.tolist(), view.tolist(), strict=True):
        generator.manual_seed(stable_seed(*key, number, turn))
        if uniform:
            row.uniform_(generator=generator)
        elif bound is None:
            row.normal_(generator=generator)
        else:
            torch.nn.init.trunc_normal_(row, 0.0, 1.0, -bound, bound, generator=generator)
    return rows.to(samples.device)
