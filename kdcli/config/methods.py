"""The options of every method: a section each."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    SerializeAsAny,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kdcli.base import extensions
from kdcli.base.names import DistanceName, DivergenceName, NormalizeName, OrthogonalMap, ProjectorName
from kdcli.config.section import Count, Name, Positive, Section, as_text


def pair(value: Any) -> Any:
    """Return ``student:teacher`` as the two keys of a pair of layers; all else as it is."""
    if isinstance(value, str) and value.count(":") == 1:
        student, teacher = value.split(":")
        return {"student": student or "pooled", "teacher": teacher or "pooled"}
    if isinstance(value, (str, int, float)):
        raise ValueError("input should be STUDENT:TEACHER, such as pooled:layer3 or 4:-1")
    return value


Tap = Annotated[str, BeforeValidator(as_text)]


class FeaturePair(Section):
    """Two features that are brought together, also written ``STUDENT:TEACHER``.

    Each is ``pooled`` (the last features, averaged over positions), ``embedding`` (the classifier's input) or the name
    of any layer, such as ``blocks.4``, averaged likewise, or its number in ``kdcli models layers NAME``; -1 is the last.
    Methods that read maps read them before they are averaged.
    """

    student: Tap = "pooled"
    teacher: Tap = "pooled"


class MethodSection(Section):
    """Base of the options of a method, with what the plan has to know of its kind."""

    method: str
    weight: Positive = 1.0
    weighting: Literal["loss", "gradient"] = "loss"
    """What ``weight`` is: a factor of the loss, or (``gradient``) the ratio of its gradient to that of the losses with
    factors, where both meet in the student: at the features that it reads, or at the logits."""

    needs_teacher: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = False
    """Of the teacher: both models must have the same labels."""
    trains_classifier: ClassVar[bool] = False
    """Whether the student learns its classes by this method alone."""
    reads_unlabelled: ClassVar[bool] = True
    takes_mixed: ClassVar[bool] = True
    """Whether the images of mixup and cutmix are fit for it."""
    needs_distillation_head: ClassVar[bool] = False
    """Of the student."""
    reads: ClassVar[Literal["nothing", "features", "maps"]] = "nothing"
    """Of the layers in ``pairs``: averaged over positions, or as maps."""
    takes_vocabulary: ClassVar[bool] = False
    """Whether it can do with logits over a vocabulary that are never all there at once."""
    reads_student: ClassVar[bool] = True
    """Whether it reads the student's side of ``pairs``."""
    why_no_projector: ClassVar[str] = ""
    """Why it has no option ``projector``: the end of a sentence that begins with its name."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_projector(cls, values: Any) -> Any:
        asks = isinstance(values, dict) and values.get("projector") is not None
        if asks and cls.why_no_projector and "projector" not in cls.model_fields:
            raise ValueError(f"{cls.model_fields['method'].default} has no projector: it {cls.why_no_projector}")
        return values

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads."""
        return ()

    def build(self, context: Any) -> Any:
        """Return the :class:`~kdcli.methods.base.Method` of these options; for methods of other packages alone.

        Args:
            context: a :class:`~kdcli.methods.base.Context`.
        """
        raise NotImplementedError(f"kdcli.methods builds {self.method}")


class SupervisedOptions(MethodSection):
    """The task's own loss on the labels."""

    method: Literal["supervised"] = "supervised"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1

    needs_teacher: ClassVar[bool] = False
    trains_classifier: ClassVar[bool] = True
    reads_unlabelled: ClassVar[bool] = False
    takes_vocabulary: ClassVar[bool] = True
    why_no_projector: ClassVar[str] = "reads the labels alone"


class ProjectionOptions(MethodSection):
    """Feature distillation through a projector."""

    method: Literal["projection"] = "projection"
    projector: ProjectorName
    normalize: NormalizeName = "standardize"
    """Applied to the teacher's features."""
    normalize_student: NormalizeName = "none"
    """Applied to the student's side."""
    distance: DistanceName = "mse"
    log_sum_alpha: Positive = 4.0
    orthogonal_map: OrthogonalMap = "retraction"
    lr_scale: Positive = 1.0
    """Learning rate of the projector relative to the student's."""
    student_tap: Name = "pooled"
    teacher_tap: Name = "pooled"

    reads: ClassVar[Literal["nothing", "features", "maps"]] = "features"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads."""
        return (FeaturePair(student=self.student_tap, teacher=self.teacher_tap),)


class SpectralOptions(MethodSection):
    """Spectral regularisation of the student's features; needs no teacher."""

    method: Literal["spectral_regularization"] = "spectral_regularization"
    weight: Positive = 0.1
    rank: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of min(batch, width) that is not suppressed."""
    student_tap: Name = "pooled"

    needs_teacher: ClassVar[bool] = False
    reads: ClassVar[Literal["nothing", "features", "maps"]] = "features"
    why_no_projector: ClassVar[str] = "reads the student's features alone"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The student's features that it reads; it has no teacher."""
        return (FeaturePair(student=self.student_tap),)


class StochasticTripletOptions(MethodSection):
    """REFILLED's embedding stage: the teacher's comparisons of triplets that are hard for the student."""

    method: Literal["stochastic_triplet_kl"] = "stochastic_triplet_kl"
    weight: Positive = 500.0
    """The authors' factor, of the mean over triplets."""
    temperature: Positive = 4.0
    mining: Literal["semi_hard", "nearest_farther", "tuples"] = "semi_hard"
    """Which triplets: all semi-hard ones, for each pair one negative, or for each pair its semi-hard negatives at once."""
    margin: Positive = 0.2
    """Of semi-hard negatives, in distances on the unit sphere; ``nearest_farther`` has none."""
    student_tap: Name | None = None
    """By default ``embedding``, and ``pooled`` of a model without a classifier."""
    teacher_tap: Name | None = None
    """Likewise."""

    reads_unlabelled: ClassVar[bool] = False
    takes_mixed: ClassVar[bool] = False
    reads: ClassVar[Literal["nothing", "features", "maps"]] = "features"
    why_no_projector: ClassVar[str] = (
        "trains features alone, and a map that is trained with them could make all comparisons alike"
    )

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads, once the plan has written the taps out."""
        return (FeaturePair(student=self.student_tap or "pooled", teacher=self.teacher_tap or "pooled"),)


class LocalClassifierOptions(MethodSection):
    """REFILLED's classifier stage: the classifier that the teacher's class centres make, for the classes in the batch."""

    method: Literal["local_classifier_kl"] = "local_classifier_kl"
    weight: Positive = 100.0
    temperature: Positive = 2.0
    centers: Literal["local", "global"] = "local"
    """Of the batch, as in the paper; or of all labelled training images, as in the authors' later code."""
    teacher_tap: Name | None = None
    """By default ``embedding``, and ``pooled`` of a model without a classifier."""

    trains_classifier: ClassVar[bool] = True
    reads_unlabelled: ClassVar[bool] = False
    takes_mixed: ClassVar[bool] = False
    reads: ClassVar[Literal["nothing", "features", "maps"]] = "features"
    reads_student: ClassVar[bool] = False
    why_no_projector: ClassVar[str] = "compares logits with class centres, never features with features"

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The teacher's features that it reads, once the plan has written the tap out."""
        return (FeaturePair(teacher=self.teacher_tap or "pooled"),)


class LogitOptions(MethodSection):
    """Base of the methods on logits; both models must have the same labels."""

    reads_logits: ClassVar[bool] = True
    trains_classifier: ClassVar[bool] = True
    why_no_projector: ClassVar[str] = "compares logits over common labels, which need no map"


class LogitKDOptions(LogitOptions):
    """Hinton's distillation of logits."""

    method: Literal["logit_kd"] = "logit_kd"
    temperature: Positive = 1.0
    divergence: DivergenceName = "forward_kl"
    """Of the student's probabilities from the teacher's: ``forward_kl`` is KL(teacher || student)."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share in the mixture of ``jensen_shannon`` (Agarwal et al., ICLR 2024); the others have none."""

    takes_vocabulary: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_beta(self) -> LogitKDOptions:
        if self.beta != type(self).model_fields["beta"].default and self.divergence != "jensen_shannon":
            raise ValueError("beta is for divergence: jensen_shannon")
        return self


class DKDOptions(LogitOptions):
    """Decoupled distillation (Zhao et al., CVPR 2022) of the labelled images.

    Defaults are the paper's for CIFAR-100 with a ResNet-32x4 teacher; on ImageNet it has temperature 1 and beta 0.5. The
    authors raise the weight over the first epochs; here it is constant.
    """

    method: Literal["dkd"] = "dkd"
    temperature: Positive = 4.0
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the label's class against the others."""
    beta: Annotated[float, Field(ge=0)] = 8.0
    """Weight of what is between the others."""

    reads_unlabelled: ClassVar[bool] = False
    takes_mixed: ClassVar[bool] = False


class DISTOptions(LogitOptions):
    """DIST (Huang et al., NeurIPS 2022). The weight stands for the paper's 2 of both relations."""

    method: Literal["dist"] = "dist"
    weight: Positive = 2.0
    temperature: Positive = 1.0
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

    trains_classifier: ClassVar[bool] = False
    needs_distillation_head: ClassVar[bool] = True


class LayerOptions(MethodSection):
    """Base of the methods on pairs of layers, whose losses are summed over the pairs."""

    layers: Annotated[tuple[Annotated[FeaturePair, BeforeValidator(pair)], ...], Field(min_length=1)] | None = None
    """``STUDENT:TEACHER``, as many as you like; by default the last features."""
    projector: ProjectorName | None = None
    """A trained map between both sides of each pair, which are standardised then; by default the method is its paper's.

    ``linear``, ``mlp`` and ``orthogonal`` map the student's side to the teacher's width, ``inverted`` the teacher's to the
    student's (Learning to Project, BMVC 2024). See :class:`kdcli.methods.base.LayerMethod`."""
    lr_scale: Positive | None = None
    """Learning rate of the projector relative to the student's; by default that of a ``projection`` with this projector."""

    by_stage: ClassVar[bool] = False
    """Whether the default are the ends of the stages, in place of the last features."""
    replaced_by_projector: ClassVar[str | None] = None
    """The option of the method's own map, which a projector takes the place of."""

    @model_validator(mode="after")
    def _check_projector(self) -> Self:
        if self.projector is None:
            if self.lr_scale is not None:
                raise ValueError("lr_scale is of a projector, and there is none")
        elif (name := self.replaced_by_projector) and getattr(self, name) != type(self).model_fields[name].default:
            raise ValueError(f"{name} has no effect with a projector, which takes its place")
        return self

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The features that it reads."""
        return self.layers or ()


class MapOptions(LayerOptions):
    """Base of the methods that read maps."""

    reads: ClassVar[Literal["nothing", "features", "maps"]] = "maps"


class VectorOptions(LayerOptions):
    """Base of the methods that read features averaged over positions."""

    reads: ClassVar[Literal["nothing", "features", "maps"]] = "features"


class FitNetOptions(MapOptions):
    """Hints (FitNets, Romero et al., ICLR 2015), trained together with the labels.

    The weight goes with the mean error, and is that of Tian et al. (ICLR 2020) for their comparison, as is the default
    regressor; the paper has the sum, with weight 1, in a stage of its own.
    """

    method: Literal["fitnet"] = "fitnet"
    weight: Positive = 100.0
    regressor: Literal["benchmark", "convolutional", "linear"] = "benchmark"
    """``convolutional``, the paper's, has the kernel that takes the student's grid to the teacher's. ``benchmark`` has a
    3x3 convolution of stride 2 where the student's grid is twice the teacher's, a transposed one of 4x4 where it is half,
    else the paper's, and batch normalisation and ReLU after it. ``linear`` maps the channels of each position of the
    common grid."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over a sample's elements: the mean of squares, or the paper's half of their sum."""

    replaced_by_projector: ClassVar[str | None] = "regressor"


class AttentionTransferOptions(MapOptions):
    """Attention transfer (Zagoruyko and Komodakis, ICLR 2017).

    Power, weight and the ends of the stages are those of Tian et al. (ICLR 2020) for their comparison.
    """

    method: Literal["attention_transfer"] = "attention_transfer"
    weight: Positive = 1000.0
    power: Annotated[float, Field(ge=1)] = 2.0

    by_stage: ClassVar[bool] = True


class NSTOptions(MapOptions):
    """Neuron selectivity transfer (Huang and Wang, 2017); weight and layers are Tian et al.'s (ICLR 2020)."""

    method: Literal["nst"] = "nst"
    weight: Positive = 50.0
    kernel: Literal["polynomial", "linear"] = "polynomial"

    by_stage: ClassVar[bool] = True


class VIDOptions(MapOptions):
    """Variational information distillation (Ahn et al., CVPR 2019).

    Initial variance, weight and layers are those of Tian et al. (ICLR 2020) for their comparison.
    """

    method: Literal["vid"] = "vid"
    initial_variance: Annotated[float, Field(gt=1e-5)] = 5.0

    by_stage: ClassVar[bool] = True


class SimilarityPreservingOptions(MapOptions):
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019); the paper's weight."""

    method: Literal["similarity_preserving"] = "similarity_preserving"
    weight: Positive = 3000.0


class ReviewKDOptions(MapOptions):
    """Knowledge review (Chen et al., CVPR 2021); the authors' weight for ImageNet."""

    method: Literal["review_kd"] = "review_kd"
    width: Count = 512
    """Most channels of the fusion modules."""
    pooled: bool = True
    """Whether the deepest layer's average over positions is a level of its own, deeper still."""

    by_stage: ClassVar[bool] = True


class PKTOptions(VectorOptions):
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018).

    The weight is Tian et al.'s (ICLR 2020): 30000 for a mean over all pairs of a batch of 64, here a mean over samples.
    """

    method: Literal["pkt"] = "pkt"
    weight: Positive = 470.0


class CorrelationCongruenceOptions(VectorOptions):
    """Correlation congruence (Peng et al., ICCV 2019); the paper's kernel. The weight is ours."""

    method: Literal["correlation_congruence"] = "correlation_congruence"
    weight: Positive = 100.0
    gamma: Positive = 0.4
    order: Annotated[int, Field(ge=1, le=16)] = 2


class RKDDistanceOptions(VectorOptions):
    """Distance-wise relational distillation (Park et al., CVPR 2019); the authors' weight for classification."""

    method: Literal["rkd_distance"] = "rkd_distance"
    weight: Positive = 25.0


class RKDAngleOptions(VectorOptions):
    """Angle-wise relational distillation (Park et al., CVPR 2019); the authors' weight for classification."""

    method: Literal["rkd_angle"] = "rkd_angle"
    weight: Positive = 50.0


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
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the old embedding in the stored one."""

    takes_mixed: ClassVar[bool] = False
    replaced_by_projector: ClassVar[str | None] = "width"


METHODS: dict[str, type[MethodSection]] = {
    section.model_fields["method"].default: section
    for section in (
        SupervisedOptions,
        ProjectionOptions,
        SpectralOptions,
        LogitKDOptions,
        DKDOptions,
        DISTOptions,
        DeiTOptions,
        FitNetOptions,
        AttentionTransferOptions,
        NSTOptions,
        VIDOptions,
        SimilarityPreservingOptions,
        ReviewKDOptions,
        PKTOptions,
        CorrelationCongruenceOptions,
        RKDDistanceOptions,
        RKDAngleOptions,
        CRDOptions,
        StochasticTripletOptions,
        LocalClassifierOptions,
    )
}
"""The options of every method of kdcli by its name; :func:`find_method` also knows those of other packages."""


def _method_extension(name: str) -> extensions.Extension | None:
    return extensions.find("methods", name, own={*METHODS, *typing.get_args(MethodName)})


def find_method(name: str) -> type[MethodSection] | None:
    """Return the options of a method by its name, of kdcli's own or of an installed package's; None for neither.

    Raises:
        UserError: another package's method can't be had.
    """
    entry = _method_extension(name)
    if entry is None:
        return METHODS.get(name)
    section = entry.load()
    if not (isinstance(section, type) and issubclass(section, MethodSection)):
        raise entry.unfit("a subclass of kdcli.config.run.MethodSection")
    if section.build is MethodSection.build:
        raise entry.unfit("whole: its method build(context) is missing")
    if section.model_fields["method"].default != name:
        raise entry.unfit(f"made for this name: its option 'method' must have the default {name!r}")
    if required := [key for key, field in section.model_fields.items() if field.is_required()]:
        raise entry.unfit(f"usable by its name alone: {', '.join(required)} must have a default")
    return section


def _read_method(value: Any) -> MethodSection:
    """Read the options of the method that ``value`` names."""
    if isinstance(value, MethodSection):
        return value
    name = value.get("method") if isinstance(value, dict) else value
    if isinstance(value, dict) and isinstance(name, str) and (section := find_method(name)) is not None:
        return section.model_validate(value)
    raise PydanticCustomError("unknown_method", "Input should be a mapping with a method")


MethodOptions = Annotated[SerializeAsAny[MethodSection], PlainValidator(_read_method)]
"""The options of any method, read by its name."""


MethodName = Literal[
    "none",
    "projection",
    "log_sum",
    "spectral_regularization",
    "logit_kd",
    "dkd",
    "dist",
    "deit",
    "fitnet",
    "attention_transfer",
    "nst",
    "vid",
    "similarity_preserving",
    "review_kd",
    "pkt",
    "correlation_congruence",
    "rkd_distance",
    "rkd_angle",
    "crd",
    "refilled",
]


def or_extension(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Accept the names of installed methods beside kdcli's own."""
    return value if isinstance(value, str) and _method_extension(value) is not None else handler(value)


def any_reads_unlabelled(methods: Sequence[MethodOptions]) -> bool:
    """Return whether any of the methods reads samples without a label."""
    return any(options.reads_unlabelled for options in methods)


def named_methods(methods: Sequence[MethodOptions]) -> dict[str, MethodOptions]:
    """Return the methods by name: their kind, numbered from the second of a kind."""
    named: dict[str, MethodOptions] = {}
    for options in methods:
        same_kind = sum(name.partition("-")[0] == options.method for name in named)
        named[f"{options.method}-{same_kind + 1}" if same_kind else options.method] = options
    return named
