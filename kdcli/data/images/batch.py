"""A batch of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kdcli.data.batch import AnyBatch


@dataclass(eq=False, kw_only=True)
class Batch(AnyBatch):
    """Images on a common canvas, with their targets.

    Attributes:
        images: uint8 ``(B, channels, H, W)``, mostly of 3 channels; after mixing float32 in [0, 255].
        targets: int64 ``(B,)`` class indices, ``UNLABELLED`` for none; after mixing float32 ``(B, C + 1)``, each row a
            distribution over the C classes and, in the last column, no label. Masks are ``(B, H, W)``, as large as the
            images; targets of other kinds or of several shapes are a list.
    """

    images: Tensor

    @property
    def can_mix(self) -> bool:
        """Whether the targets are class indices."""
        return isinstance(self.targets, Tensor) and self.targets.ndim == 1 and not self.targets.is_floating_point()

    @property
    def colours(self) -> Tensor:
        """The images for a picture, (B, 3, H, W): greyscale as such, of four channels the first three."""
        return self.images.expand(-1, 3, -1, -1) if self.images.shape[1] == 1 else self.images[:, :3]

    def pixels(self, side: int) -> Tensor:
        """Return the images shrunk to ``side x side`` as features, float64 (B, channels * side * side)."""
        return F.adaptive_avg_pool2d(self.images.double(), side).flatten(1)
