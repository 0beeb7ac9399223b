"""The options of the methods for dense tasks: on maps, and on logits of positions.

Where both models have other grids, the teacher's map comes to the student's, bilinearly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kdcli.base.errors import UserError
from kdcli.config.methods.base import LogitOptions, MapOptions, Needs
from kdcli.config.section import Count, Positive

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


class _OverPositionsOptions(MapOptions):
    """Base of the methods that compare the positions of a map with one another: of a single one there is nothing."""

    or_else: ClassVar[str] = ""
    """What else leaves more positions, for a hint."""

    def side(self, length: int) -> int:
        """Return how many positions are left of a side of so many."""
        return length

    def check(self, situation: Situation) -> None:
        """Refuse also maps of a single position."""
        super().check(situation)
        if situation.teacher is None:
            return
        for pair in self.pairs:
            grid = situation.student.grids[pair.student]
            if self.projector is not None:  # it works on the common grid
                theirs = situation.teacher.grids[pair.teacher]
                grid = min(grid[0], theirs[0]), min(grid[1], theirs[1])
            if math.prod(map(self.side, grid)) < 2:
                raise UserError(
                    f"{situation.key}: {self.method} compares the positions of a map with one another, and of"
                    f" {pair.student}, {grid[0]}x{grid[1]}, a single one is left: the loss would always be 0.",
                    f"Name a layer with a larger map (--feature-layers STUDENT:TEACHER){self.or_else}, or take larger"
                    " images.",
                )


class CWDOptions(_OverPositionsOptions):
    """Channel-wise distillation (Shu et al., ICCV 2021) of features; the authors' temperature and weight.

    Where the widths differ, a learnt 1x1 convolution maps the student's channels to the teacher's.
    """

    method: Literal["cwd"] = "cwd"
    weight: Positive = 50.0
    temperature: Positive = 4.0
    """What is divided by it before the softmax over positions: higher is softer."""


class CWDLogitsOptions(LogitOptions):
    """Channel-wise distillation (Shu et al., ICCV 2021) of the maps of logits; the authors' temperature and weight."""

    method: Literal["cwd_logits"] = "cwd_logits"
    weight: Positive = 3.0
    temperature: Positive = 4.0
    """What is divided by it before the softmax over positions: higher is softer."""

    def check(self, situation: Situation) -> None:
        """Refuse also logits that are of no positions."""
        super().check(situation)
        if situation.data.label_kind != "pixels":
            raise UserError(
                f"{situation.key}: {self.method} compares where in an image each class is likely, and the logits of the"
                f" task {situation.data.task} have no positions.",
                "Use logit_kd.",
            )


class SKDOptions(_OverPositionsOptions):
    """Pair-wise similarities of positions (Structured Knowledge Distillation, Liu et al., CVPR 2019).

    Its other terms are ``logit_kd`` and an adversarial one, which kdcli does not have. The weight is the authors'.
    """

    method: Literal["skd"] = "skd"
    weight: Positive = 10.0
    pool: Annotated[float, Field(gt=0)] = 2.0
    """Side of the windows of maximum pooling, in positions; below 1 a share of the map's sides: the authors' later code
    has 0.5, which leaves 2x2 positions."""

    module: ClassVar[str] = "pairwise"
    or_else: ClassVar[str] = ", pool less (pool: 1 under methods)"

    @model_validator(mode="after")
    def _check_pool(self) -> SKDOptions:
        if self.pool >= 1 and self.pool != int(self.pool):
            raise ValueError("pool is a whole number of positions, or a share below 1")
        return self

    def side(self, length: int) -> int:
        """Return how many positions the pooling leaves of a side of so many."""
        window = max(1, int(length * self.pool)) if self.pool < 1 else min(int(self.pool), length)
        return math.ceil(length / window)


class IFVDOptions(MapOptions):
    """Intra-class feature variation (Wang et al., ECCV 2020): positions against the mean of their class.

    Its other terms are ``logit_kd`` and an adversarial one, which kdcli does not have. The weight is that of Yang et
    al. (CVPR 2022) for their comparison.
    """

    method: Literal["ifvd"] = "ifvd"
    weight: Positive = 20.0

    needs: ClassVar[Needs] = Needs(labels=("pixels",))


class CIRKDOptions(_OverPositionsOptions):
    """Relations between the positions of all images of a batch (CIRKD, Yang et al., CVPR 2022).

    The term without memory; the weight is the authors'. Their pixels and regions of earlier batches are not kept.
    """

    method: Literal["cirkd"] = "cirkd"
    temperature: Positive = 0.1
    """Similarities are divided by it before the softmax: lower is sharper."""
    max_positions: Count = 1024
    """Of an image: larger maps are average-pooled until they have no more, as time grows with its square. The authors
    take all."""

    module: ClassVar[str] = "pairwise"

    def side(self, length: int) -> int:
        """Return about as many: what counts is whether more than one may be left."""
        return length if self.max_positions > 1 else 1


class PKDOptions(MapOptions):
    """Pearson correlation of channels (PKD, Cao et al., NeurIPS 2022); the authors' weight of each level.

    By default the levels are the ends of both models' stages.
    """

    method: Literal["pkd"] = "pkd"
    weight: Positive = 6.0

    module: ClassVar[str] = "pairwise"
    needs: ClassVar[Needs] = Needs(stages=True)

    def check(self, situation: Situation) -> None:
        """Refuse also channels that have no counterpart."""
        super().check(situation)
        if situation.teacher is None or self.projector is not None:
            return
        for pair in self.pairs:
            ours, theirs = situation.student.feature_dims[pair.student], situation.teacher.feature_dims[pair.teacher]
            if ours != theirs:
                raise UserError(
                    f"{situation.key}: {self.method} compares channel by channel, and {pair.student} of the student has"
                    f" {ours} channels, {pair.teacher} of the teacher {theirs}.",
                    "Add a projector (projector: orthogonal), or name layers of one width (layers).",
                )


class _SummedOptions(MapOptions):
    """Base of the detectors' methods, whose errors are summed over channels and positions."""

    needs: ClassVar[Needs] = Needs(stages=True)

    @property
    def remark(self) -> str:
        """That the weights are for maps of one size."""
        if self.weighting == "gradient":
            return ""
        return (
            "Errors are summed over channels and positions: the weight is the authors', for necks of 256 channels and"
            " images of about 800 pixels. For others, weighting: gradient sets its gradient's ratio to the labels'."
        )


class FGDOptions(_SummedOptions):
    """Focal and global distillation of a detector's maps (Yang et al., CVPR 2022).

    The weights of the four terms are the authors' for anchor-based detectors of one stage. By default the levels are
    the ends of both models' stages. Where the widths differ, a learnt 1x1 convolution maps the student's channels.
    """

    method: Literal["fgd"] = "fgd"
    objects: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the errors within boxes."""
    background: Annotated[float, Field(ge=0)] = 5e-4
    """Weight of the errors elsewhere."""
    attention: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the difference of both models' attentions."""
    relation: Annotated[float, Field(ge=0)] = 5e-6
    """Weight of the errors of the maps with their global context."""
    temperature: Positive = 0.5
    """Of the attentions."""

    needs: ClassVar[Needs] = Needs(labels=("boxes",), stages=True)


class MGDOptions(_SummedOptions):
    """Masked generative distillation (Yang et al., ECCV 2022): the teacher's maps out of a part of the student's.

    Weight and share are the authors' for detectors of one stage. By default the levels are the ends of both models'
    stages. Where the widths differ, a learnt 1x1 convolution maps the student's channels.
    """

    method: Literal["mgd"] = "mgd"
    weight: Positive = 2e-5
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.65
    """Share of the positions that are masked."""
