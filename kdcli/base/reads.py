"""What is asked of a model: one value, in place of a parameter for each kind of output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

LOGITS = "logits"
"""The head of classes, (B, C), or of a task over tokens or positions (N, C)."""
DEPTH = "depth"
"""The head of a depth for every position, (B, 1, H, W)."""
IMAGE = "image"
"""The head of an image, (B, 3, H, W), from -1 (black) to 1 (white)."""
DISTILLATION = "distillation"
"""The head of a distillation token, (B, C)."""
VOCABULARY = "vocabulary"
"""The head of a causal language model, whose logits are never all there at once."""


@dataclass(frozen=True)
class Reads:
    """What is read of a model's outputs. ``a | b`` is what either reads, and nothing at all is false.

    Attributes:
        features: taps whose features are read, averaged over positions.
        maps: taps whose features are read at every position.
        heads: names of heads out of ``ModelFacts.heads``.
    """

    features: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def __or__(self, other: Reads) -> Reads:
        return Reads(
            _union(self.features, other.features), _union(self.maps, other.maps), _union(self.heads, other.heads)
        )

    def __bool__(self) -> bool:
        return bool(self.features or self.maps or self.heads)

    @property
    def taps(self) -> tuple[str, ...]:
        """The layers that are read, as features or as maps."""
        return _union(self.features, self.maps)


def join(reads: Iterable[Reads]) -> Reads:
    """Return what any of ``reads`` asks for."""
    return reduce(or_, reads, Reads())


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
