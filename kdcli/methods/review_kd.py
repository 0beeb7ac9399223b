"""Knowledge review (Chen et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli import losses
from kdcli.config.methods import LayerOptions, ReviewKDOptions
from kdcli.methods.base import Context, LayerMethod
from kdcli.models.outputs import ModelOutput


class ReviewKD(LayerMethod):
    """The student's layers are fused from the deepest on, each with what the deeper ones came to, and compared.

    Layers are given from shallow to deep; with ``pooled`` the last one's average over positions, a map of 1x1, is the
    deepest level. The loss is the sum of :func:`kdcli.losses.review_kd` over the levels.

    A projector takes the place of the convolution by which each level comes to the teacher's channels, at each
    position: from the fused maps to the teacher's, or, inverted, from the teacher's maps to the fused ones. The
    fusion's own convolutions on the student's side stay, so here an inverted projector isn't the only trained map
    between the two.

    Attributes:
        fusions: one a level, the deepest first; so are the projectors.
    """

    is_aligned = True

    def __init__(self, options: ReviewKDOptions, context: Context) -> None:
        super().__init__(options, context)
        assert context.teacher is not None
        self.pooled = options.pooled
        deepest_first, width = self._levels(options), self._width(options, context)
        self.fusions = nn.ModuleList(
            Fusion(
                context.student.feature_dims[student_tap],
                width,
                context.teacher.feature_dims[teacher_tap] if options.projector is None else None,
                with_deeper=number > 0,
            )
            for number, (student_tap, teacher_tap) in enumerate(deepest_first)
        )

    def _levels(self, options: ReviewKDOptions) -> list[tuple[str, str]]:
        """Return the layers of every level, the deepest first."""
        return [*([self.layers[-1]] if options.pooled else []), *reversed(self.layers)]

    def _width(self, options: ReviewKDOptions, context: Context) -> int:
        """Return the channels of the fused maps."""
        return min(options.width, context.student.feature_dims[self.layers[-1][0]])

    def widths(self, options: LayerOptions, context: Context) -> list[tuple[int, int]]:
        """Return the channels of the fused and of the teacher's map of every level, the deepest first."""
        assert isinstance(options, ReviewKDOptions)
        assert context.teacher is not None
        width, theirs = self._width(options, context), context.teacher.feature_dims
        return [(width, theirs[teacher_tap]) for _, teacher_tap in self._levels(options)]

    def sides(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the student's fusion came to and the teacher's map of every level, the deepest first."""
        levels = list(super().sides(student, teacher))
        if self.pooled:
            levels.append((levels[-1][0].mean((2, 3), keepdim=True), levels[-1][1].mean((2, 3), keepdim=True)))
        fused = None
        for fusion, (ours, theirs) in zip(self.fusions, reversed(levels), strict=True):
            output, fused = fusion(ours, fused, (theirs.shape[2], theirs.shape[3]))
            yield output, theirs

    def values(self, student: ModelOutput, teacher: ModelOutput | None, samples: Tensor) -> Iterator[Tensor]:
        """Yield the loss of each sample at every level, the deepest first; the fusion normalises over the batch."""
        for pair in self.pairs(student, teacher):
            yield losses.review_kd(*pair)


class Fusion(nn.Module):
    """Attention-based fusion (the paper's Fig. 3a): a layer's map and the deeper ones', weighted position by position.

    Args:
        in_width: channels of the layer's map.
        width: channels of what is fused and handed on.
        out_width: the teacher's channels; None where a projector is to come to them.
        with_deeper: whether there is a deeper layer.
    """

    def __init__(self, in_width: int, width: int, out_width: int | None, *, with_deeper: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(in_width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if with_deeper else None
        self.expand = (
            nn.Identity()
            if out_width is None
            else nn.Sequential(nn.Conv2d(width, out_width, 3, padding=1, bias=False), nn.BatchNorm2d(out_width))
        )
        for module in (*self.reduce, *self.expand.children()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)

    def forward(self, own: Tensor, deeper: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return what is compared with the teacher, ``(B, out_width, *grid)``, and what is handed on.

        Without ``out_width`` both are the fused map, ``(B, width, *grid)``.

        Args:
            own: the layer's map, (B, in_width, H, W).
            deeper: what the next deeper layer handed on, (B, width, h, w); None for the deepest.
            grid: the teacher's.
        """
        fused = self.reduce(own)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, deeper], dim=1))
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        if fused.shape[2:] != grid:
            fused = F.interpolate(fused, grid, mode="nearest")
        return self.expand(fused), fused


build = ReviewKD
