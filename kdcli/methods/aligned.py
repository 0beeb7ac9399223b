"""Methods that compare maps channel by channel and position by position, of models that have others of both."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from kdcli import losses
from kdcli.config.methods import LayerOptions
from kdcli.methods.base import Context, LayerMethod
from kdcli.models.outputs import ModelOutput


class AlignedMethod(LayerMethod):
    """A method on pairs of maps that come to the same channels and positions.

    The teacher's map is resized to the student's grid. Where the widths differ, a learnt 1x1 convolution maps the
    student's channels to the teacher's, as papers do; a projector takes its place.

    Attributes:
        alignments: one a pair; they change nothing where the widths are the same, and with a projector.
        channels: of what is compared, of each pair.
    """

    is_aligned = True

    def __init__(self, options: LayerOptions, context: Context) -> None:
        super().__init__(options, context)
        self.alignments, self.channels = nn.ModuleList(), []
        for narrow, wide in self.widths(options, context):
            is_same = narrow == wide or options.projector is not None
            self.alignments.append(nn.Identity() if is_same else nn.Conv2d(narrow, wide, kernel_size=1))
            self.channels.append(narrow if options.projector == "inverted" else wide)

    def pairs(self, student: ModelOutput, teacher: ModelOutput | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield both maps of each pair of layers, (B, C, H, W) of the same shape."""
        for alignment, (ours, theirs) in zip(self.alignments, super().pairs(student, teacher), strict=True):
            yield alignment(ours), losses.resized(theirs, ours.shape[2:])
