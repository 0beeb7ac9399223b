"""What a model returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from kdcli.base.reads import LOGITS, VOCABULARY, Reads
from kdcli.losses.vocabulary import VocabularyLogits
from kdcli.models.taps import Edges, edges_of, mean_over_places


@dataclass
class ModelOutput:
    """What a model returned: what was read of it, and nothing else.

    Attributes:
        features: tap -> (B, d); of a task over tokens B counts tokens.
        maps: tap -> (B, C, H, W).
        heads: name -> what the head gives. ``logits`` and ``distillation`` are (B, C), of a task over tokens (N, C), of
            a task over positions (B, C, H, W); ``vocabulary`` is a :class:`VocabularyLogits`. A model of another task
            has heads of other names, such as ``depth``.
        edges: tap -> where in the model's own pass its features and its map were taken from, so that the gradients of
            two losses can be compared there; empty without gradient, and in a compiled pass.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Any] = field(default_factory=dict)
    edges: dict[str, Edges] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor | None:
        """The head of classes, (B, C); None where it was not read."""
        return self.heads.get(LOGITS)

    @property
    def vocabulary(self) -> VocabularyLogits | None:
        """The head of a causal language model; None where it was not read."""
        return self.heads.get(VOCABULARY)

    def only(self, reads: Reads) -> ModelOutput:
        """Return what is read of the outputs; edges stay as they are."""
        return replace(
            self,
            features={name: self.features[name] for name in reads.features},
            maps={name: self.maps[name] for name in reads.maps},
            heads={name: self.heads[name] for name in reads.heads},
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> ModelOutput:
        """Return the outputs with ``function`` of every tensor; edges and heads that are no tensors stay."""
        return replace(
            self,
            features={name: function(value) for name, value in self.features.items()},
            maps={name: function(value) for name, value in self.maps.items()},
            heads={name: function(head) if isinstance(head, Tensor) else head for name, head in self.heads.items()},
        )


def pooled_output(maps: Tensor, reads: Reads) -> ModelOutput:
    """Return an output with all that ``reads`` asks of ``pooled``, out of a network's last maps (B, C, H, W)."""
    output = ModelOutput()
    if "pooled" in reads.taps:
        output.edges["pooled"] = edges_of(maps)
    if "pooled" in reads.features:
        output.features["pooled"] = mean_over_places(maps, "NCHW", 0)
    if "pooled" in reads.maps:
        output.maps["pooled"] = maps
    return output
