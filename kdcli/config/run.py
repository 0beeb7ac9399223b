"""Every option of a run, as frozen pydantic models. No torch here.

A config comes from a recipe (YAML), from ``--set key=value`` and from command-line options, in that order of
precedence from low to high; :func:`parse_config` reports every problem at once.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import MAX_IMAGE_SIZE, MAX_TEXT_LENGTH, OVER_TOKENS, Interpolation
from kdcli.base.text import check_name, short_repr

Relation = Literal["same", "cross", "random", "none"]
ProjectorName = Literal["linear", "mlp", "orthogonal", "inverted"]
NormalizeName = Literal["none", "layer_norm", "standardize", "whiten"]
DistanceName = Literal["mse", "smooth_l1", "log_sum"]
DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
OrthogonalMap = Literal["retraction", "matrix_exp", "cayley", "householder"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
MaxLength = Annotated[int, Field(ge=2, le=MAX_TEXT_LENGTH)]
Pooling = Literal["cls", "mean", "max", "last", "pooler"]
Task = Literal[
    "image-classification",
    "image-embedding",
    "text-classification",
    "sentence-embedding",
    "token-classification",
    "masked-lm",
    "causal-lm",
]
LABEL_FREE = ("image-embedding", "sentence-embedding")
"""The tasks that read no labels: the student reproduces the teacher's embedding space."""
ImageSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
Name = Annotated[str, AfterValidator(check_name)]


def _check_path(path: Path) -> Path:
    check_name(str(path))
    return path


Location = Annotated[Path, AfterValidator(_check_path)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, numbers are finite, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _texts(value: Any) -> Any:
    """Return a list of texts for one value or several: a label number may stand for a class."""
    return [_text(item) for item in value] if isinstance(value, (list, tuple)) else [_text(value)]


class TeacherConfig(Section):
    """The model that is imitated. ``name`` is ``none`` for no teacher."""

    name: Name
    weights: Name | None = None
    """Local checkpoint, ``.safetensors`` or ``.pth``; ``package:NAME/PATH`` is a file inside an installed package. Also
    as ``NAME?weights=FILE``; a file that tells its architecture may be the name itself."""
    image_size: ImageSize | None = None
    """Side of its input in pixels, at most 4096; by default what its weights' file tells, else the model's own."""
    mean: tuple[float, float, float] | None = None
    """Of red, green and blue, of pixels scaled to [0, 1]; by default likewise, as the four after it."""
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Interpolation | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    """An image of other proportions is cropped, squashed or given borders."""
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] | None = None
    """An image is resized to ``image_size / crop_pct`` before the crop."""
    max_length: MaxLength | None = None
    """Longest text in tokens; by default the model's own, at most 512."""
    pooling: Pooling | None = None
    """How the features of a text's tokens become one vector; by default as the model means it."""
    label_names: Annotated[tuple[str, ...], BeforeValidator(_texts)] | None = None
    """Names of its classes in the order of its outputs; by default those that the model carries."""
    unchecked: bool = False
    """Take it although it was measured to do no better than guessing."""
    prompt: str | None = None
    """What stands before every text; by default what sentence-transformers' folder has as its default prompt."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class StudentConfig(Section):
    """The model that is trained."""

    name: Name
    source: Annotated[TeacherConfig, BeforeValidator(_named)] | None = None
    """The model that ``teacher?layers=...&width=...`` is made of; by default the run's teacher."""
    pretrained: bool = False
    image_size: ImageSize | None = None
    """Side of its input in pixels, at most 4096; by default the model's own."""
    max_length: MaxLength | None = None
    """Longest text in tokens; by default the model's own, at most 512."""
    pooling: Pooling | None = None
    """How the features of a text's tokens become one vector; by default as the model means it."""
    tokenizer: Annotated[TeacherConfig, BeforeValidator(_named)] | None = None
    """The model of text whose tokenizer it takes where it has none of its own; by default the run's teacher."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Rate of stochastic depth, for architectures that have it; by default the architecture's own."""

    @property
    def is_from_teacher(self) -> bool:
        """Whether it is a smaller copy of a teacher."""
        return self.name.startswith("teacher?")


class SplitsConfig(Section):
    """What the data's own splits are called: folders, files (without suffix too) or splits of a table."""

    train: Name | None = None
    validation: Name | None = None
    test: Name | None = None


class DataConfig(Section):
    """Where the samples come from and how they are split."""

    name: Name
    root: Location | None = None
    """Where ``torchvision:`` data sets lie or are downloaded to."""
    classes: Annotated[tuple[str, ...], BeforeValidator(_texts), Field(min_length=1)] | None = None
    """Take these classes alone: names, numbers and ranges (``0-4,7``; names where classes have such), or a part of them (``part:1/2``,
    ``part:2/2+20%``), as text or as a list; see :func:`kdcli.data.classes.choose_classes`."""
    unlabelled: Location | None = None
    """A folder of further training images without labels."""
    splits: SplitsConfig | None = None
    """Other names of the splits than the usual ones, which :data:`kdcli.data.split_names.SPLIT_NAMES` lists."""
    train_images: Count | None = None
    """Train on so many of the training images, drawn by seed and class; the others are left out."""
    train_texts: Count | None = None
    """Likewise for texts."""
    labels_per_class: Count | None = None
    """Keep so many labels a class, drawn by seed; the other training images stay, unlabelled."""
    labelled_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Where few of the training images have labels, these are repeated to this share of an epoch."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Cut from the training split, by seed and class, where there is no validation split."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Cut from the whole where the data have no splits at all."""
    image_column: Name | None = None
    deep_range: tuple[float, float] | None = None
    """What is black and white in grayscale images of more than 8 bits; by default found from some of the images, as in
    :func:`kdcli.data.images.deep.find_range`, for the whole set and for whatever the run's models are evaluated on."""
    text_column: Name | None = None
    text_pair_column: Name | None = None
    """The second text of a pair, such as the hypothesis beside a premise, for ``text-classification``; by default read
    where both columns have names of pairs, such as ``premise`` and ``hypothesis``, and ``text_column`` isn't set."""
    label_column: Name | None = None
    label_kind: Literal["class", "classes", "number"] | None = None
    """What a text's label is: one class, several (a list, or a string with commas) or a number; by default what the
    column's values say, where they say it clearly."""
    mask_probability: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    """Share of a text's tokens that a masked language model has to predict."""
    subset: Name | None = None
    """Configuration name of a ``hf:`` data set."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Loader processes; by default from the number of CPU cores."""
    strict: bool = False
    """Stop at an unreadable image instead of skipping it."""

    @model_validator(mode="after")
    def _check_range(self) -> DataConfig:
        if self.deep_range is not None and not self.deep_range[0] < self.deep_range[1]:
            raise ValueError(f"deep_range goes up, from black to white, and is {list(self.deep_range)}")
        return self


class AugmentConfig(Section):
    """Training augmentation; one augmented sample serves both models."""

    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.35, 1.0)
    """Area kept by the random resized crop; ``[1, 1]`` crops nothing."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    pad: Annotated[int, Field(ge=0, le=512)] = 0
    """Pixels of black around the resized image before a crop of its own size is taken at random."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    policy: Literal["none", "trivial", "rand", "three"] = "none"
    """``trivial`` is TrivialAugmentWide, ``rand`` is RandAugment; ``three`` is 3-Augment (Touvron et al., *DeiT III*,
    arXiv 2204.07118): one of greyscale, solarisation and blur, always."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    erase: Fraction = 0.0
    """Probability of random erasing."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup's Beta distribution; 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix's Beta distribution; 0 is off. With both, each batch gets one of them at random."""


def _pair(value: Any) -> Any:
    if isinstance(value, str) and value.count(":") == 1:
        student, teacher = value.split(":")
        return {"student": student or "pooled", "teacher": teacher or "pooled"}
    if isinstance(value, (str, int, float)):
        raise ValueError("input should be STUDENT:TEACHER, such as pooled:layer3 or 4:-1")
    return value


Tap = Annotated[str, BeforeValidator(_text)]


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

    layers: Annotated[tuple[Annotated[FeaturePair, BeforeValidator(_pair)], ...], Field(min_length=1)] | None = None
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


def _or_extension(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Accept the names of installed methods beside kdcli's own."""
    return value if isinstance(value, str) and _method_extension(value) is not None else handler(value)


class OptimConfig(Section):
    """Optimiser and schedule, by timm's factories."""

    optimizer: Name = "adamw"
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Fraction = 0.9
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """``step`` multiplies the rate by ``decay_rate`` at each milestone."""
    milestones: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] | None = None
    """Of ``step``, in shares of all steps; by default after each third."""
    decay_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of ``step``."""
    warmup: Fraction = 0.05
    """Share of all steps."""
    min_lr_ratio: Fraction = 0.01
    clip_grad: Positive | None = 1.0
    """Largest norm of the whole gradient."""

    @model_validator(mode="after")
    def _check_milestones(self) -> OptimConfig:
        if self.milestones is not None and self.schedule != "step":
            raise ValueError("milestones are for schedule: step")
        if list(self.milestones or ()) != sorted(set(self.milestones or ())):
            raise ValueError("milestones go up")
        return self


class EmbeddingConfig(Section):
    """A stage before the run's own, in ``RUN/embedding``, for the student's features: its best student is the start.

    The best is chosen by the accuracy of nearest class means on the validation images.
    """

    epochs: Annotated[int, Field(ge=0, lt=2**31)]
    methods: tuple[MethodOptions, ...] = (StochasticTripletOptions(),)
    optim: OptimConfig | None = None
    """By default the run's own."""


def _yaml_no(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a bare `no` as false


class TrainConfig(Section):
    """How long and on what."""

    epochs: Annotated[int, Field(ge=0, lt=2**31)] = 100
    """Without any the student is evaluated as it starts."""
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] = 128
    """Images of one forward pass, over all processes."""
    accumulation: Count = 1
    """Batches of one optimiser step. Each has the same weight, also where they differ in their number of tokens."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the student's weights; the average is then the result."""
    mixed_precision: Annotated[Literal["auto", "no", "fp16", "bf16"], BeforeValidator(_yaml_no)] = "auto"
    device: Name = "auto"
    num_processes: Count | None = None
    """Training processes on this machine; by default one for each GPU, or one on the CPU."""
    sync_batchnorm: bool = True
    """Batch normalisation over the batches of all processes, on GPUs; a CPU has none of it."""
    checkpoint_every: Annotated[str, BeforeValidator(_text), Field(pattern=r"^[1-9]\d*[smh]?$")] = "10m"
    """Steps (``200``) or time (``30s``, ``10m``, ``2h``) between checkpoints; one is also written at the end."""
    keep_checkpoints: Count = 2
    """How many checkpoints to keep; the older ones are removed."""
    channels_last: bool = False
    compile: bool = False
    track: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    """Where losses, metrics and learning rate also go; TensorBoard writes to ``RUN/tracking``."""
    validate_every: Count = 1
    """Epochs between validations; the last epoch is always validated."""


class EpisodesConfig(Section):
    """Many small tasks drawn from one data set; a student is trained for each of them."""

    ways: Annotated[int, Field(ge=2, lt=2**31)]
    """Classes of an episode."""
    shots: Count
    """Labelled training images of each class."""
    number: Count = 100
    queries: Count = 15
    """Images of each class that the arms are tested on."""
    split: Literal["test", "validation"] = "test"
    """Where the queries come from; choose hyperparameters on ``validation``."""


_MODEL_PREFIXES = re.compile(r"^(random:)?(timm:|hf:)?")


def load_task(name: str) -> Any:
    """Return another package's task, a class like :class:`kdcli.tasks.Task`.

    Its attribute ``like`` is the task of kdcli whose data and models it has.

    Raises:
        UserError: there is no such extension, or it is no task.
    """
    entry = extensions.find("tasks", name, own=typing.get_args(Task))
    if entry is None:
        nearest = did_you_mean(name, [*typing.get_args(Task), *extensions.names("tasks")])
        raise UserError(
            f"There is no task {short_repr(name)} of another package. {nearest}".rstrip(),
            "Install the package that it comes from; 'kdcli extensions' lists what is installed.",
        )
    task = entry.load()
    if not isinstance(task, type) or getattr(task, "like", None) not in typing.get_args(Task):
        raise entry.unfit(f"a class whose attribute 'like' is one of {', '.join(typing.get_args(Task))}")
    return task


class RunConfig(Section):
    """One run of ``kdcli distill``."""

    task: Task = "image-classification"
    """Or the name of another package's task, which is then ``task_extension``, and the one that it is like ``task``."""
    task_extension: Name | None = None
    """Another package's loss and metrics, in place of those of ``task``."""
    teacher: Annotated[TeacherConfig, BeforeValidator(_named)]
    student: Annotated[StudentConfig, BeforeValidator(_named)]
    data: Annotated[DataConfig, BeforeValidator(_named)]
    eval_data: Annotated[DataConfig, BeforeValidator(_named)] | None = None
    """Of ``image-embedding``: labelled images by which the final test measures the student's features, beside the
    teacher's and the untrained student's; by default ``data``, where they have labels. ``none`` measures nothing."""
    output: Location | None = None
    """The run folder; by default a name of its own under ``runs/``."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    relation: Literal["auto", "same", "cross", "random", "none"] = "auto"
    projector: Literal["auto", "none", "linear", "mlp", "orthogonal", "inverted"] = "auto"
    """Of the plan's projection, or of the one ``method`` that is asked for; ``none`` distils without features."""
    normalize: Literal["auto", "none", "layer_norm", "standardize", "whiten"] = "auto"
    feature_layers: tuple[Annotated[FeaturePair, BeforeValidator(_pair)], ...] | None = None
    """Which features are distilled; by default the method's own. Each pair has a projector or regressor of its own."""
    feature_weight: Positive | None = None
    """Weight of the feature loss; by default the plan's. Several projections share it. Few labels call for more of it."""
    method: Annotated[MethodName, WrapValidator(_or_extension)] | None = None
    """The labels' loss and this one alone, with its defaults; ``none`` is the labels' loss alone, ``projection`` the
    projector that the plan chooses, ``log_sum`` a linear one with that distance where ``projector`` says no other,
    ``refilled`` has two stages."""
    methods: tuple[MethodOptions, ...] | None = None
    """The losses; by default the plan chooses them from the relation."""
    embedding: EmbeddingConfig | None = None
    """A stage before this one that trains the student's features alone."""
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    baseline: bool = False
    """Also train the same student alone, for the same budget, and report both."""
    episodes: EpisodesConfig | None = None
    """Middle-shot learning, as in REFILLED: a student for each of many small tasks, instead of one for all the data."""
    test: bool = True
    """Evaluate the best student on the test split, once, at the end; without it, validation is all there is."""
    description: str = ""
    """What a recipe is for, in one line."""

    @model_validator(mode="before")
    @classmethod
    def _find_task(cls, values: Any) -> Any:
        """Put the task that an extension is like in its place."""
        if not isinstance(values, dict):
            return values
        name = values.get("task")
        if not isinstance(name, str) or extensions.find("tasks", name, own=typing.get_args(Task)) is None:
            return values
        return {**values, "task": load_task(name).like, "task_extension": name}

    @model_validator(mode="after")
    def _check_task(self) -> RunConfig:
        if self.task_extension is not None and (like := load_task(self.task_extension).like) != self.task:
            raise ValueError(f"task_extension {self.task_extension} is for task: {like}")
        return self

    @property
    def reads_images(self) -> bool:
        """Whether its samples are images."""
        return self.task.startswith("image-")

    @property
    def trains_classifier(self) -> bool:
        """Whether any of the methods, once they are written out, trains the student's classifier."""
        return any(options.trains_classifier for options in self.methods or ())

    @property
    def leaves_classifier_untrained(self) -> bool:
        """Whether the student has a classifier that none of the methods trains."""
        return self.task not in LABEL_FREE and not self.trains_classifier

    def with_absolute_paths(self) -> RunConfig:
        """Return the config with its local files and folders written out, so that it means the same from anywhere.

        A bare model name stays as it is, also where a folder of that name exists: it is looked up in timm first.
        """

        def absolute(value: Any) -> Any:
            return value if value is None or not Path(value).exists() else type(value)(Path(value).resolve())

        def absolute_name(name: str) -> str:
            model, mark, query = name.partition("?")
            target = _MODEL_PREFIXES.sub("", model)
            return model.removesuffix(target) + (absolute(target) if "/" in target else target) + mark + query

        def absolute_teacher(teacher: TeacherConfig) -> TeacherConfig:
            update = {"name": absolute_name(teacher.name), "weights": absolute(teacher.weights)}
            return teacher.model_copy(update=update)

        def absolute_data(data: DataConfig) -> DataConfig:
            return data.model_copy(update={key: absolute(getattr(data, key)) for key in ("name", "root", "unlabelled")})

        student = self.student
        source = None if student.source is None else absolute_teacher(student.source)
        tokenizer = None if student.tokenizer is None else absolute_teacher(student.tokenizer)
        return self.model_copy(
            update={
                "teacher": absolute_teacher(self.teacher),
                "student": student.model_copy(
                    update={"name": absolute_name(student.name), "source": source, "tokenizer": tokenizer}
                ),
                "data": absolute_data(self.data),
                "eval_data": None if self.eval_data is None else absolute_data(self.eval_data),
            }
        )

    def embedding_stage(self) -> RunConfig:
        """Return the config of the earlier stage as a run of its own."""
        assert self.embedding is not None
        stage = self.embedding
        return self.model_copy(
            update={
                "methods": stage.methods,
                "train": self.train.model_copy(update={"epochs": stage.epochs}),
                "optim": stage.optim or self.optim,
                "embedding": None,
                "baseline": False,
                "test": False,
            }
        )

    def alone(self) -> RunConfig:
        """Return the config of the same student trained on its labels alone, for as many steps as all stages have."""
        epochs = self.train.epochs + (self.embedding.epochs if self.embedding is not None else 0)
        supervised = [m for m in self.methods or () if isinstance(m, SupervisedOptions)] or [SupervisedOptions()]
        student = self.student
        if student.is_from_teacher and student.source is None:  # it begins with the same weights
            student = student.model_copy(update={"source": self.teacher})
        is_text = self.task in ("text-classification", *OVER_TOKENS)
        if is_text and student.tokenizer is None and self.teacher.name != "none":
            named = self.teacher.model_copy(update={"weights": None})
            student = student.model_copy(update={"tokenizer": named})
        return self.model_copy(
            update={
                "teacher": TeacherConfig(name="none"),
                "method": None,
                "student": student,
                "methods": tuple(supervised),
                "embedding": None,
                "train": self.train.model_copy(update={"epochs": epochs}),
                "relation": "auto",
                "projector": "auto",
                "normalize": "auto",
                "feature_layers": None,
                "feature_weight": None,
                "baseline": False,
            }
        )


def parse_config(values: dict[str, Any], *, source: str) -> RunConfig:
    """Validate ``values`` into a :class:`RunConfig`.

    Raises:
        UserError: listing every problem with its dotted key, the value, what is allowed and the nearest valid name.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe(problem, values) for problem in error.errors()]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise UserError(
            f"{count} in {source}:\n" + "\n".join(f"  - {line}" for line in lines),
            "'kdcli recipes show quickstart' prints a complete example.",
        ) from None


def _describe(problem: Any, values: Any) -> str:
    path = problem["loc"]
    key = ".".join(str(part) for part in path)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        valid = _keys_at(path[:-1], values)
        hint = did_you_mean(str(path[-1]), valid) or f"Valid here: {', '.join(sorted(valid))}."
        return f"{key}: unknown key. {hint}"
    if kind == "missing":
        return f"{key}: missing, and there is no default."
    if kind == "literal_error":
        allowed = problem["ctx"]["expected"]
        names = [name.strip(" '") for name in allowed.replace(" or ", ", ").split(",")]
        others = extensions.names("tasks") if key == "task" else extensions.names("methods") if key == "method" else []
        installed = f", or of another package: {', '.join(others)}" if others else ""
        nearest = did_you_mean(value, [*names, *others]) if isinstance(value, str) else ""
        return f"{key}: {short_repr(value)} is not one of {allowed}{installed}. {nearest}".rstrip()
    if kind == "unknown_method":
        name = value.get("method") if isinstance(value, dict) else value
        names = [*METHODS, *extensions.names("methods")]
        nearest = did_you_mean(name, names) if isinstance(name, str) else ""
        return f"{key}.method: {short_repr(name)} is not one of {', '.join(names)}. {nearest}".rstrip()
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, got {short_repr(value)}."


def _keys_at(location: tuple[str | int, ...], values: Any) -> list[str]:
    """Return the valid keys of the section that ``location`` points to in ``values``."""
    section: type[Section] = RunConfig
    for part in location:
        values = values[part]
        if section is MethodSection:  # of which the list is made
            section = find_method(values["method"]) or section
        elif isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            if found := _section_of(inner):
                return found
    return None
