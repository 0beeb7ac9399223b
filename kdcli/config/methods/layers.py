"""The options of the methods on pairs of layers: of their maps, or of their features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from kdcli.base.errors import UserError
from kdcli.base.text import human_count
from kdcli.config.methods.base import MapOptions, Needs, VectorOptions
from kdcli.config.section import Count, Positive

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


MOST_WEIGHTS = 2**26
"""Of a convolution that takes one grid to another: 256 MiB in float32."""


class FitNetOptions(MapOptions):
    """Hints (FitNets, Romero et al., ICLR 2015), trained together with the labels.

    The weight goes with the mean error, and is that of Tian et al. (ICLR 2020) for their comparison, as is the default
    regressor; the paper has the sum, with weight 1, in a stage of its own.
    """

    method: Literal["fitnet"] = "fitnet"
    weight: Positive = 100.0
    regressor: Literal["benchmark", "convolutional", "linear"] = "benchmark"
    """``convolutional``, the paper's, has the kernel that takes the student's grid to the teacher's. ``benchmark`` has
    a 3x3 convolution of stride 2 where the student's grid is twice the teacher's, a transposed one of 4x4 where it is
    half, else the paper's, and batch normalisation and ReLU after it. ``linear`` maps the channels of each position of
    the common grid."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over a sample's elements: the mean of squares, or the paper's half of their sum."""

    replaced_by_projector: ClassVar[str | None] = "regressor"

    def check(self, situation: Situation) -> None:
        """Refuse also a regressor whose kernel, as large as the difference of the grids, would fill the memory."""
        super().check(situation)
        teacher = situation.teacher
        if teacher is None or self.regressor == "linear" or self.projector is not None:
            return
        for pair in self.pairs:
            ours, theirs = situation.student.grids[pair.student], teacher.grids[pair.teacher]
            sides = [max(own - other, 0) + 1 for own, other in zip(ours, theirs, strict=True)]
            is_twice = self.regressor == "benchmark" and ours == (2 * theirs[0], 2 * theirs[1])
            widths = situation.student.feature_dims[pair.student], teacher.feature_dims[pair.teacher]
            size = math.prod(sides) * math.prod(widths)
            if not is_twice and size > MOST_WEIGHTS:
                raise UserError(
                    f"{situation.key}: {self.method} would map {pair.student} of the student,"
                    f" {ours[0]}x{ours[1]}, to {pair.teacher} of the teacher, {theirs[0]}x{theirs[1]}, by a kernel of"
                    f" {sides[0]}x{sides[1]} with {human_count(size)} weights.",
                    "Set regressor: linear, which works on the common grid, or name layers with nearer grids.",
                )


class AttentionTransferOptions(MapOptions):
    """Attention transfer (Zagoruyko and Komodakis, ICLR 2017).

    Power, weight and the ends of the stages are those of Tian et al. (ICLR 2020) for their comparison.
    """

    method: Literal["attention_transfer"] = "attention_transfer"
    weight: Positive = 1000.0
    power: Annotated[float, Field(ge=1)] = 2.0
    """Activations are raised to it before they are summed over channels."""

    module: ClassVar[str] = "pairwise"
    needs: ClassVar[Needs] = Needs(stages=True)


class NSTOptions(MapOptions):
    """Neuron selectivity transfer (Huang and Wang, 2017); weight and layers are Tian et al.'s (ICLR 2020)."""

    method: Literal["nst"] = "nst"
    weight: Positive = 50.0
    kernel: Literal["polynomial", "linear"] = "polynomial"
    """Between the activation maps of two channels."""

    module: ClassVar[str] = "pairwise"
    needs: ClassVar[Needs] = Needs(stages=True)


class VIDOptions(MapOptions):
    """Variational information distillation (Ahn et al., CVPR 2019).

    Initial variance, weight and layers are those of Tian et al. (ICLR 2020) for their comparison.
    """

    method: Literal["vid"] = "vid"
    initial_variance: Annotated[float, Field(gt=1e-5)] = 5.0
    """Of the Gaussian around the prediction, before it is learnt."""

    needs: ClassVar[Needs] = Needs(stages=True)


class SimilarityPreservingOptions(MapOptions):
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019); the paper's weight."""

    method: Literal["similarity_preserving"] = "similarity_preserving"
    weight: Positive = 3000.0

    module: ClassVar[str] = "pairwise"


class ReviewKDOptions(MapOptions):
    """Knowledge review (Chen et al., CVPR 2021); the authors' weight for ImageNet."""

    method: Literal["review_kd"] = "review_kd"
    width: Count = 512
    """Most channels of the fusion modules."""
    pooled: bool = True
    """Whether the deepest layer's average over positions is a level of its own, deeper still."""

    needs: ClassVar[Needs] = Needs(stages=True)
    projects_layers: ClassVar[bool] = False

    def check(self, situation: Situation) -> None:
        """Refuse also layers that are not given from shallow to deep, as far as their grids tell."""
        super().check(situation)
        grids = situation.student.grids
        taps = [pair.student for pair in self.pairs if pair.student in grids]
        areas = [math.prod(grids[tap]) for tap in taps]
        if areas != sorted(areas, reverse=True):
            raise UserError(
                f"{situation.key}: review_kd takes layers from shallow to deep, and the student's are"
                f" {', '.join(taps)}.",
                "Give the layer with the largest grid first.",
            )


class PKTOptions(VectorOptions):
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018).

    The weight is Tian et al.'s (ICLR 2020): 30000 for a mean over all pairs of a batch of 64, here a mean over samples.
    """

    method: Literal["pkt"] = "pkt"
    weight: Positive = 470.0

    module: ClassVar[str] = "pairwise"


class CorrelationCongruenceOptions(VectorOptions):
    """Correlation congruence (Peng et al., ICCV 2019); the paper's kernel. The weight is ours."""

    method: Literal["correlation_congruence"] = "correlation_congruence"
    weight: Positive = 100.0
    gamma: Positive = 0.4
    """Of the Gaussian kernel between two samples."""
    order: Annotated[int, Field(ge=1, le=16)] = 2
    """Terms of the kernel's Taylor series."""

    module: ClassVar[str] = "pairwise"


class RKDDistanceOptions(VectorOptions):
    """Distance-wise relational distillation (Park et al., CVPR 2019); the authors' weight for classification."""

    method: Literal["rkd_distance"] = "rkd_distance"
    weight: Positive = 25.0

    module: ClassVar[str] = "pairwise"


class RKDAngleOptions(VectorOptions):
    """Angle-wise relational distillation (Park et al., CVPR 2019); the authors' weight for classification."""

    method: Literal["rkd_angle"] = "rkd_angle"
    weight: Positive = 50.0

    module: ClassVar[str] = "pairwise"


class CRDOptions(VectorOptions):
    """Contrastive representation distillation (Tian et al., ICLR 2020); defaults are those of the authors' code.

    Two embeddings of every training image are kept, 2 x width float32 values; an anchor's negatives take width values
    each while a step is computed.
    """

    method: Literal["crd"] = "crd"
    weight: Positive = 0.8
    width: Count = 128
    """Of the embeddings; with a projector they have the width that it maps to."""
    negatives: Count = 16384
    """For each image; at most as many as there are other training images."""
    from_other_classes: bool = True
    """Draw them from the images that are not known to have the same label; otherwise from all others."""
    temperature: Positive = 0.07
    """Similarities are divided by it before the softmax: lower is sharper."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the old embedding in the stored one."""

    needs: ClassVar[Needs] = Needs(whole_images=True)
    replaced_by_projector: ClassVar[str | None] = "width"

    def check(self, situation: Situation) -> None:
        """Refuse also parts of texts, whose embeddings are not kept, and other classes where samples have none."""
        super().check(situation)
        kind, key = situation.data.label_kind, situation.key
        if kind == "words":
            raise UserError(
                f"{key}: crd keeps an embedding of every sample, and here samples are the words of texts.",
                "Remove crd.",
            )
        if kind == "tokens":
            raise UserError(f"{key}: crd needs one class a sample, and the labels are tokens.", "Remove crd.")
        if kind not in ("class", "none") and self.from_other_classes:
            raise UserError(
                f"{key}: crd draws negatives from other classes, which needs one class a sample, and the labels are"
                f" {situation.data.labels.parts or 'others'}.",
                "Write it out under methods with from_other_classes: false, which draws from all others.",
            )
