"""What every batch has, whatever its samples are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

EVALUATION = -1
"""The view of a sample as it is evaluated; see :meth:`kdcli.data.source.Source.views`."""


@dataclass(eq=False, kw_only=True)
class AnyBatch:
    """Some samples of a source, with their targets: what a loader yields and a model prepares.

    What a batch holds of a sample is a function of (sample, view), for one source, seed and augmentation.

    Attributes:
        targets: a tensor, or a list with each sample's own where they differ in shape.
        samples: int64 ``(B,)``, the samples' ids; see :attr:`kdcli.data.source.Source.ids`. One that stands in for
            another that can't be read has its own.
        view: int64 ``(B,)``, which augmentation of each sample this is; by default that of evaluation.
        skipped: names of the samples that couldn't be read on the way.
        host: ``samples`` and ``view`` as they were before they went to a device: reading them there would wait for it.
    """

    targets: Any
    samples: Tensor
    view: Tensor = field(default=None)  # type: ignore[assignment]  # made below
    skipped: list[str] = field(default_factory=list)
    host: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.view is None:
            self.view = torch.full_like(self.samples, EVALUATION)

    @property
    def has_rows(self) -> bool:
        """Whether targets, features and logits have a row for each token or word, in each process another number."""
        return False

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def can_mix(self) -> bool:
        """Whether two of its samples can be mixed, and their targets with them."""
        return False

    def pixels(self, side: int) -> Tensor | None:
        """Return images shrunk to ``side x side`` as features, float64 (B, 3 * side * side); None of other samples."""
        return None

    def plain_texts(self) -> list[str]:
        """Return every sample as one text; nothing of samples that are no texts."""
        return []

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on ``device``; copies from pinned memory don't wait."""
        moved = self._with(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, host=self.host or (self.samples, self.view))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; torch's DataLoader calls this."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with all of its tensors changed."""
        changed: dict[str, Any] = {"targets": _changed(self.targets, change)}
        for entry in fields(self):
            if isinstance(value := getattr(self, entry.name), Tensor):
                changed[entry.name] = change(value)
        return replace(self, **changed)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a list's or mapping's tensors changed, however deep; all else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if isinstance(value, dict):
        return {name: _changed(item, change) for name, item in value.items()}
    return value
