"""A batch of images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(eq=False)
class Batch:
    """Images on a common canvas, with their targets.

    Attributes:
        images: uint8 ``(B, 3, H, W)``; after mixing float32 in [0, 255].
        targets: int64 ``(B,)`` class indices, ``UNLABELLED`` for none; after mixing float32 ``(B, C + 1)``, each row a
            distribution over the C classes and, in the last column, no label.
        indices: int64 ``(B,)``, which samples of the source these are; a sample that stands in for an unreadable one
            has its own index.
        skipped: names of the images that couldn't be read on the way.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on ``device``; copies from pinned memory don't wait."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            indices=self.indices.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; torch's DataLoader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            targets=self.targets.pin_memory(),
            indices=self.indices.pin_memory(),
        )
