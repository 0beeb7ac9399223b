"""What the plan takes where the config names no methods, and why: data that is looked up, to be changed here alone.

Weights with ``weighting="gradient"`` are ratios of gradients, chosen on the development settings of
``tests/benchmarks/pairs.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcli.config.methods.base import INVERTED_RATE, MethodSection
from kdcli.config.methods.depth import DenseRegressionOptions
from kdcli.config.methods.features import ProjectionOptions, SpectralOptions
from kdcli.config.methods.generation import GanOptions
from kdcli.config.methods.images import CycleGANOptions, ImageRegressionOptions
from kdcli.config.methods.labels import SupervisedOptions
from kdcli.config.methods.logits import LogitKDOptions
from kdcli.config.methods.refilled import LocalClassifierOptions

OTHER_CLASSES = "other classes"
"""The relation cross where teacher and student both classify the same kind of samples."""

STANDARDIZE_REASON = (
    "Every channel gets mean 0 and variance 1 over the batch: none of the teacher's dominates by scale, and the"
    " student's can't shrink to the trivial optimum at zero."
)
WEIGHTING_REASON = (
    " Its weight is a ratio: where the student's features are taken, its gradient is kept at {weight:g} of the labels'."
)


@dataclass(frozen=True)
class FeatureDefault:
    """A projection with the sentences that say why it is this one, and why the features are normalised so."""

    options: ProjectionOptions
    reason: str
    normalize_reason: str


_INVERTED = ProjectionOptions(
    projector="inverted",
    normalize="standardize",
    normalize_student="standardize",
    distance="mse",
    weight=0.3,
    weighting="gradient",
    lr_scale=INVERTED_RATE,
)
_STANDARDIZED = {"normalize": "standardize", "normalize_student": "standardize"}
FEATURES: Mapping[str, FeatureDefault] = {
    "same": FeatureDefault(
        ProjectionOptions(
            projector="orthogonal", normalize="layer_norm", distance="smooth_l1", weight=0.5, weighting="gradient"
        ),
        "Teacher and student solve the same task: an orthogonal map preserves every inner product of the student's"
        " features, so nothing they learn is lost to the projector (VkD).",
        "LayerNorm on pooled teacher features is the discriminative setting of VkD.",
    ),
    "cross": FeatureDefault(
        _INVERTED,
        "The teacher knows another task: the map acts on the teacher, so training can drop what the student's task"
        " does not need (Learning to Project).",
        STANDARDIZE_REASON,
    ),
    OTHER_CLASSES: FeatureDefault(
        ProjectionOptions(
            projector="orthogonal",
            normalize="standardize",
            normalize_student="standardize",
            distance="mse",
            weight=1.0,
            weighting="gradient",
        ),
        "The teacher knows other classes: of inverted, orthogonal and REFILLED the orthogonal map was the best"
        " when an ImageNet teacher met new classes (recipes/claims).",
        STANDARDIZE_REASON,
    ),
    "random": FeatureDefault(
        _INVERTED.with_weight(0.1),
        "The teacher is untrained: the map acts on the teacher and training can drop its useless directions"
        " (Learning to Project).",
        STANDARDIZE_REASON,
    ),
}
"""The loss on features by relation; of ``cross`` there are two kinds."""

STANDARDIZE_MAPS_REASON = (
    "Every channel gets mean 0 and variance 1 over all positions of the batch, as VkD does for detectors: none of the"
    " teacher's dominates by scale, and the student's can't shrink to the trivial optimum at zero."
)


def _on_maps(default: FeatureDefault, **changes: Any) -> FeatureDefault:
    """Return the same at every position, where labels say where in an image something is."""
    options = default.options.model_copy(update={"reads": "maps", **changes})
    return FeatureDefault(options, default.reason, STANDARDIZE_MAPS_REASON)


DENSE_FEATURES: Mapping[str, FeatureDefault] = {
    relation: _on_maps(default) if relation != "same" else _on_maps(default, **_STANDARDIZED)
    for relation, default in FEATURES.items()
}
"""The same of dense labels: of pixels, depths and boxes."""

PREDICTIONS_REASON = (
    "Both models answer the same question at every pixel, and the answers are distilled. Distilled features of such a"
    " teacher took points away from masks and gave depth nothing (recipes/claims); --projector adds them."
)
"""Why features are left out where a teacher gives a class or a depth of every pixel."""

LABELS = SupervisedOptions()
"""The loss on classes."""
UNSMOOTHED_LABELS = SupervisedOptions(label_smoothing=0.0)
"""The loss on numbers and tokens."""
SAMPLES = GanOptions(diff_augment=("translation", "cutout"))
"""The loss where more samples are to be made, with DiffAugment's policy for CIFAR."""
SAMPLES_REASON = (
    "A discriminator tells real images from made ones; what both see is augmented alike, which few images need the most"
    " (DiffAugment)."
)
MATCHED_SAMPLES = SAMPLES.model_copy(update={"projector": "orthogonal"})
"""The same where a teacher's features keep the discriminator from learning few images by heart."""
MATCHED_REASON = (
    "The discriminator's features are matched to the teacher's of the same images, whitened, through an orthogonal map,"
    " as VkD's author describes for few images."
)
COMMON_LOGITS = LogitKDOptions()
"""The loss on logits over common labels."""
SAME_DEPTH = DenseRegressionOptions(weight=0.5)
"""The loss on depth where the teacher gives it too."""
SAME_IMAGE = ImageRegressionOptions(weight=0.5)
"""The loss on images where the teacher makes some too."""
UNPAIRED = CycleGANOptions()
"""What images of two kinds without pairs are learnt by, in place of a loss on labels."""
TEACHER_FREE_REASON = (
    "Without a teacher the student learns from the labels alone. Suppressing the least significant directions of its"
    " features (Learning to Project) cost 0.6 points in both settings of classes in recipes/bench, and did masks, depth"
    " and images no certain good (recipes/claims). --method spectral_regularization adds it."
)
"""Why nothing is added to the labels where there is no teacher."""


@dataclass(frozen=True)
class Seen:
    """What the default plan made of students in recipes/bench, against each student alone.

    Attributes:
        settings: pairs of teacher and data with this relation.
        lowest: mean difference of the test accuracy over the seeds, in points, in the setting where it is lowest.
        highest: where it is highest.
    """

    settings: int
    lowest: float
    highest: float

    @property
    def value(self) -> str:
        """What the plan shows."""
        return f"{self.lowest:+.1f} to {self.highest:+.1f} points"

    @property
    def reason(self) -> str:
        """Where it comes from, and what it does not say."""
        return (
            f"What the default plan added to small students' accuracy in {self.settings} pairs of teacher and data of"
            " this kind (recipes/bench). Yours can differ: --baseline trains the student alone too."
        )


SEEN: Mapping[str, Seen] = {
    "same": Seen(2, 2.6, 4.4),
    OTHER_CLASSES: Seen(7, -0.2, 3.3),
    "cross": Seen(3, -0.2, 0.3),
    "random": Seen(2, -0.3, -0.2),
}
"""By relation, as ``FEATURES``, of those with a teacher; a test holds it to ``recipes/bench/results.jsonl``."""


@dataclass(frozen=True)
class SeenDense:
    """What dense labels' students gained in recipes/claims with what the plan takes, against each student alone.

    Attributes:
        metric: whose points these are, a hundredth each.
        lowest: mean difference over three seeds where it is lowest.
        highest: where it is highest.
        what: was distilled.
    """

    metric: str
    lowest: float
    highest: float
    what: str

    @property
    def value(self) -> str:
        """What the plan shows."""
        if self.lowest == self.highest:
            return f"{self.lowest:+.1f} points of {self.metric}"
        return f"{self.lowest:+.1f} to {self.highest:+.1f} points of {self.metric}"

    @property
    def reason(self) -> str:
        """Where it comes from, and what it does not say."""
        return (
            f"What {self.what} added to small untrained students, with few labels and many, at other weights and over"
            " three seeds, mostly within noise (recipes/claims). Yours can differ: --baseline trains the student"
            " alone too."
        )


_INVERTED_MAPS = "maps through an inverted projector"
SEEN_DENSE: Mapping[tuple[str, str], SeenDense] = {
    ("pixels", "same"): SeenDense("mean IoU", 0.8, 1.1, "the teacher's answers"),
    ("pixels", "cross"): SeenDense("mean IoU", -0.2, 1.1, _INVERTED_MAPS),
    ("pixels", "random"): SeenDense("mean IoU", -0.2, 2.6, _INVERTED_MAPS),
    ("depth", "same"): SeenDense("delta1", -0.5, -0.3, "the teacher's depth"),
    ("depth", "cross"): SeenDense("delta1", -1.7, 0.3, _INVERTED_MAPS),
    ("depth", "random"): SeenDense("delta1", -2.2, -0.7, _INVERTED_MAPS),
    ("boxes", "same"): SeenDense("mAP", 2.7, 2.7, "the neck's maps through orthogonal projectors"),
}
"""By kind of labels and relation; a test holds it to the tables of ``recipes/claims/README.md``."""


@dataclass(frozen=True)
class Choice:
    """What ``--method NAME`` stands for, beside the loss on the labels.

    Attributes:
        options: of the one method, with its defaults; None for the labels alone.
        reason: why it is as it is, beyond that it was asked for.
        by_relation: whether it is the one of ``FEATURES`` that the relation calls for.
    """

    options: MethodSection | None
    reason: str = ""
    by_relation: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether there has to be a teacher; otherwise there may be none."""
        return self.options is not None and self.options.needs.teacher

    @property
    def takes_layers(self) -> bool:
        """Whether ``--feature-layers``, ``--feature-weight`` and ``--projector`` are about it."""
        return self.options is not None and self.options.takes_layers

    @property
    def why_no_projector(self) -> str:
        """The end of a sentence that begins with its name."""
        return LABELS.why_no_projector if self.options is None else self.options.why_no_projector


@dataclass(frozen=True)
class Programme:
    """What ``--method NAME`` stands for where it is a whole: a stage for the features, then methods of its own.

    Attributes:
        title: its name in sentences.
        summary: what it does, in one phrase.
        reason: why it may be taken.
        if_untrained: what is to be said where the teacher is untrained.
        methods: of the second stage, the loss on the labels among them; the first has the defaults of ``embedding``.
        reasons: why, for each method by name, those of the first stage too.
    """

    title: str
    summary: str
    reason: str
    if_untrained: str
    methods: tuple[MethodSection, ...]
    reasons: Mapping[str, str]


CHOICES: Mapping[str, Choice] = {
    "none": Choice(None),
    "projection": Choice(FEATURES["same"].options, by_relation=True),
    "log_sum": Choice(
        ProjectionOptions(
            projector="linear", normalize="standardize", normalize_student="standardize", distance="log_sum"
        ),
        STANDARDIZE_REASON,
    ),
    "spectral_regularization": Choice(
        SpectralOptions(weight=0.03, weighting="gradient"), "No larger ratio was better (recipes/bench)."
    ),
}
"""By name; other names are those of methods."""

PROGRAMMES: Mapping[str, Programme] = {
    "refilled": Programme(
        title="REFILLED",
        summary="features by triplets, then the classifier by class centres",
        reason="it compares images and classes with one another, so the teacher's classes may be yours or others",
        if_untrained="its relations are those of random features, so expect little of it",
        # The authors' code smooths no labels. Their factor of 100 lets the student collapse where data are few
        # (recipes/claims); a ratio is safe.
        methods=(SupervisedOptions(label_smoothing=0), LocalClassifierOptions(weight=1.0, weighting="gradient")),
        reasons={
            "stochastic_triplet_kl": "The teacher's comparisons of the triplets that are hard for the student shape its"
            " features; no label's name is read, only which images are of one class.",
            "supervised": "The labels of the data, beside the teacher's view of them.",
            "local_classifier_kl": "The teacher's similarities to the centres of the classes in a batch take the place"
            " of logits that it may not have. Its gradient is as large as that of the labels at the student's"
            " logits; the authors' factor of 100 can be too much for few images.",
        },
    ),
}
"""By name."""
