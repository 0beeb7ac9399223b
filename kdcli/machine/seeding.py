"""Randomness as a pure function of what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stable_seed(*key: int | str) -> int:
    """Return 63 bits that depend on ``key`` alone: not on the process, the platform or Python's own hash."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stable_share(*key: int | str) -> float:
    """Return a number in [0, 1) that depends on ``key`` alone, spread evenly over keys."""
    return stable_seed(*key) / 2**63


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Within the block, torch's global CPU generator is seeded by ``key``; afterwards it is as it was before.

    Generators of accelerators are neither read nor changed, which ``torch.manual_seed`` would do: with no loader
    processes this runs in the middle of training, where dropout draws from them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stable_seed(*key))
        yield
