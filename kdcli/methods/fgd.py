"""Focal and global knowledge distillation for detectors (Yang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli import losses
from kdcli.base.facts import Preprocessing
from kdcli.config.methods import FGDOptions
from kdcli.methods.aligned import AlignedMethod
from kdcli.methods.base import Context
from kdcli.methods.share import Share, mean_of
from kdcli.models.outputs import ModelOutput


class FGD(AlignedMethod):
    """Errors at objects and background, of attentions, and of the maps with their global context, for each level.

    Of one level it is ``w_o L_objects + w_b L_background + w_a L_attention`` (:func:`kdcli.losses.fgd_focal`) ``+ w_r
    Σ (G_t(t) − G_s(s))²``, of each sample, where ``G`` adds what :class:`GlobalContext` makes of the whole map.

    Attributes:
        size: (height, width) of the images that boxes are in pixels of: those of a batch, which both models share.
        student_contexts, teacher_contexts: one for each level.
    """

    def __init__(self, options: FGDOptions, context: Context) -> None:
        super().__init__(options, context)
        if options.projector is None:  # which comes with statistics of the batch
            self.scope = "local"
        assert context.teacher is not None
        shared = context.student.preprocessing.shared_with(context.teacher.preprocessing)
        assert isinstance(shared, Preprocessing), "boxes are of images"
        self.size = shared.image_size
        self.weights = (options.objects, options.background, options.attention)
        self.relation = options.relation
        self.temperature = options.temperature
        self.student_contexts, self.teacher_contexts = (
            nn.ModuleList(GlobalContext(width) for width in self.channels) for _ in range(2)
        )

    def forward(  # type: ignore[override]  # targets of detection are lists
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        targets: Sequence[Mapping[str, Any]],
        samples: Tensor,
    ) -> Tensor | Share:
        """Return the loss.

        Args:
            student: its outputs.
            teacher: its outputs.
            targets: of each image ``boxes`` (n, 4): left, top, right, bottom in pixels; there may be none.
            samples: not read.
        """
        boxes = [target["boxes"] for target in targets]
        total: Any = 0
        levels = zip(self.student_contexts, self.teacher_contexts, self.pairs(student, teacher), strict=True)
        for of_student, of_teacher, (ours, theirs) in levels:
            grid = ours.shape[2], ours.shape[3]
            objects, background = (weights.to(ours.device) for weights in losses.box_weights(boxes, self.size, grid))
            terms = losses.fgd_focal(ours, theirs, objects, background, temperature=self.temperature)
            relation = losses.squared_error(of_student(ours), of_teacher(theirs))
            total = total + sum(weight * term for weight, term in zip(self.weights, terms, strict=True))
            total = total + self.relation * relation
        return Share.of(total) if self.scope == "local" else mean_of(total)


class GlobalContext(nn.Module):
    """``x + W_2 relu(LN(W_1 Σ_p softmax(w · x_p) x_p))``: a block of GCNet (Cao et al., 2019), as FGD has it.

    The last layer starts at zero, so that nothing is added at first.

    Args:
        width: channels; those between the two layers are half as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.attend = nn.Conv2d(width, 1, kernel_size=1)
        nn.init.kaiming_normal_(self.attend.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.attend.bias)  # type: ignore[arg-type]  # it has one
        self.transform = nn.Sequential(
            nn.Linear(width, half), nn.LayerNorm(half), nn.ReLU(), last := nn.Linear(half, width)
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, C, H, W) with their context added."""
        places = F.softmax(self.attend(maps).flatten(start_dim=2).float(), dim=2)
        context = torch.einsum("bcp,bkp->bc", maps.flatten(start_dim=2).float(), places)
        return maps + self.transform(context)[:, :, None, None]


build = FGD
