"""The options of the methods on logits."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kdcli.base.errors import UserError
from kdcli.base.names import DivergenceName
from kdcli.config.methods.base import LogitOptions, Needs
from kdcli.config.section import Positive

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


class LogitKDOptions(LogitOptions):
    """Hinton's distillation of logits.

    Where logits are of positions, as in segmentation, it is pixel KD: a mean over all positions of the student's map,
    those without a label too, as in the code of CIRKD; the teacher's logits come to the student's grid. Where samples
    have any number of labels, it is the divergence of each label's own probability, a sigmoid.
    """

    method: Literal["logit_kd"] = "logit_kd"
    temperature: Positive = 1.0
    """Logits are divided by it before the softmax: higher is softer."""
    divergence: DivergenceName = "forward_kl"
    """Of the student's probabilities from the teacher's: ``forward_kl`` is KL(teacher || student)."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share in the mixture of ``jensen_shannon`` (Agarwal et al., ICLR 2024); the others have none."""

    needs: ClassVar[Needs] = replace(LogitOptions.needs, all_logits=False)
    takes_several_labels: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_beta(self) -> LogitKDOptions:
        if self.beta != type(self).model_fields["beta"].default and self.divergence != "jensen_shannon":
            raise ValueError("beta is for divergence: jensen_shannon")
        return self

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        return super().idle | ({"beta"} if self.divergence != "jensen_shannon" else set())


class DKDOptions(LogitOptions):
    """Decoupled distillation (Zhao et al., CVPR 2022) of the labelled images.

    Defaults are the paper's for CIFAR-100 with a ResNet-32x4 teacher; on ImageNet it has temperature 1 and beta 0.5.
    The authors raise the weight over the first epochs; here it is constant.
    """

    method: Literal["dkd"] = "dkd"
    temperature: Positive = 4.0
    """Logits are divided by it before the softmax: higher is softer."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the label's class against the others."""
    beta: Annotated[float, Field(ge=0)] = 8.0
    """Weight of what is between the others."""

    needs: ClassVar[Needs] = replace(LogitOptions.needs, labels=("class", "words"), whole_images=True)

    def check(self, situation: Situation) -> None:
        """Refuse also a single class."""
        super().check(situation)
        if len(situation.data.class_names) < 2:
            raise UserError(
                f"{situation.key}: dkd compares a class with the others, and the data have one.", "Remove dkd."
            )


class DISTOptions(LogitOptions):
    """DIST (Huang et al., NeurIPS 2022). The weight stands for the paper's 2 of both relations."""

    method: Literal["dist"] = "dist"
    weight: Positive = 2.0
    temperature: Positive = 1.0
    """Logits are divided by it before the softmax: higher is softer."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the relation between the classes of a sample."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the relation between the samples of a class."""


class DeiTOptions(LogitOptions):
    """DeiT's distillation token (Touvron et al., ICML 2021), for students that have one.

    The token's head learns from the teacher, the class token's from all else; evaluation takes the mean of both. The
    weight is that of hard distillation, equal to the supervised loss's; the paper's soft one is 0.1 beside 0.9.
    """

    method: Literal["deit"] = "deit"
    kind: Literal["hard", "soft"] = "hard"
    """``hard`` is the teacher's predicted class, ``soft`` all of its probabilities."""
    temperature: Positive = 3.0
    """Of soft distillation."""

    needs: ClassVar[Needs] = replace(LogitOptions.needs, distillation_head=True)
    trains_classifier: ClassVar[bool] = False

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        return super().idle | ({"temperature"} if self.kind == "hard" else set())
