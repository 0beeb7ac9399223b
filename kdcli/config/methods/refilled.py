"""The options of REFILLED's two stages."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from kdcli.base.facts import ModelFacts
from kdcli.config.methods.base import FeaturePair, MethodSection, Needs, ReadsLayers
from kdcli.config.section import Name, Positive

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


class StochasticTripletOptions(MethodSection):
    """REFILLED's embedding stage: the teacher's comparisons of triplets that are hard for the student."""

    method: Literal["stochastic_triplet_kl"] = "stochastic_triplet_kl"
    weight: Positive = 500.0
    """The authors' factor, of the mean over triplets."""
    temperature: Positive = 4.0
    """What is compared is divided by it before the softmax: higher is softer."""
    mining: Literal["semi_hard", "nearest_farther", "tuples"] = "semi_hard"
    """Which triplets: all semi-hard ones; one negative for each pair; or all semi-hard negatives of a pair at once."""
    margin: Positive = 0.2
    """Of semi-hard negatives, in distances on the unit sphere; ``nearest_farther`` has none."""
    student_tap: Name | None = None
    """By default ``embedding``, and ``pooled`` of a model without a classifier."""
    teacher_tap: Name | None = None
    """Likewise."""

    needs: ClassVar[Needs] = Needs(labels=("class",), whole_images=True)
    is_asked_for: ClassVar[bool] = False
    why_no_projector: ClassVar[str] = (
        "trains features alone, and a map that is trained with them could make all comparisons alike"
    )

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layers: features averaged over positions."""
        return "features"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads, once the plan has written the taps out."""
        return (FeaturePair(student=self.student_tap or "pooled", teacher=self.teacher_tap or "pooled"),)

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        return super().idle | ({"margin"} if self.mining == "nearest_farther" else set())

    def settled(self, situation: Situation) -> Self:
        """Return the options with both taps written out."""
        update = {"student_tap": self.student_tap or _last(situation.student)}
        if situation.teacher is not None:
            update["teacher_tap"] = self.teacher_tap or _last(situation.teacher)
        return self.model_copy(update=update)


class LocalClassifierOptions(MethodSection):
    """REFILLED's classifier stage: what the teacher's centres of the classes in the batch say of each sample."""

    method: Literal["local_classifier_kl"] = "local_classifier_kl"
    weight: Positive = 100.0
    temperature: Positive = 2.0
    """What is compared is divided by it before the softmax: higher is softer."""
    centers: Literal["local", "global"] = "local"
    """Of the batch, as in the paper; or of all labelled training images, as in the authors' later code."""
    teacher_tap: Name | None = None
    """By default ``embedding``, and ``pooled`` of a model without a classifier."""

    trains_classifier: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(labels=("class",), whole_images=True)
    reads_student: ClassVar[bool] = False
    is_asked_for: ClassVar[bool] = False
    why_no_projector: ClassVar[str] = "compares logits with class centres, never features with features"

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layers: features averaged over positions."""
        return "features"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The teacher's features that it reads, once the plan has written the tap out."""
        return (FeaturePair(teacher=self.teacher_tap or "pooled"),)

    def settled(self, situation: Situation) -> Self:
        """Return the options with the tap written out."""
        if situation.teacher is None or self.teacher_tap is not None:
            return self
        return self.model_copy(update={"teacher_tap": _last(situation.teacher)})


def _last(model: ModelFacts) -> str:
    """Return the classifier's input, where there is a classifier."""
    return "embedding" if "embedding" in model.feature_dims else "pooled"
