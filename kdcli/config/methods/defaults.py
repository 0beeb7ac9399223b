"""What the plan takes where the config names no methods, and why: data that is looked up, to be changed here alone.

Weights with ``weighting="gradient"`` are ratios of gradients, chosen on the development settings of
``tests/benchmarks/pairs.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdcli.config.methods.base import INVERTED_RATE
from kdcli.config.methods.features import ProjectionOptions, SpectralOptions
from kdcli.config.methods.labels import SupervisedOptions
from kdcli.config.methods.logits import LogitKDOptions
from kdcli.config.methods.refilled import LocalClassifierOptions

OTHER_CLASSES = "other classes"
"""The relation cross where teacher and student both classify the same kind of samples."""

STANDARDIZE_REASON = (
    "Every channel gets mean 0 and variance 1 over the batch: none of the teacher's dominates by scale, and the student's"
    " can't shrink to the trivial optimum at zero."
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
        ProjectionOptions(
            projector="inverted",
            normalize="standardize",
            normalize_student="standardize",
            distance="mse",
            weight=0.3,
            weighting="gradient",
            lr_scale=INVERTED_RATE,
        ),
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
        ProjectionOptions(
            projector="inverted",
            normalize="standardize",
            normalize_student="standardize",
            distance="mse",
            weight=0.1,
            weighting="gradient",
            lr_scale=INVERTED_RATE,
        ),
        "The teacher is untrained: the map acts on the teacher and training can drop its useless directions"
        " (Learning to Project).",
        STANDARDIZE_REASON,
    ),
}
"""The loss on features by relation; of ``cross`` there are two kinds."""

LABELS = SupervisedOptions()
"""The loss on classes; numbers and tokens are not smoothed."""
COMMON_LOGITS = LogitKDOptions()
"""The loss on logits over common labels."""
TEACHER_FREE = SpectralOptions()
"""The loss beside that on the labels, where there is no teacher."""
TEACHER_FREE_REASON = "Without a teacher the student's least significant directions are suppressed."

LOG_SUM = ProjectionOptions(
    projector="linear", normalize="standardize", normalize_student="standardize", distance="log_sum"
)
"""``--method log_sum``."""

# The authors' code smooths no labels. Their factor of 100 lets the student collapse where data are few (recipes/claims);
# a ratio is safe.
REFILLED = (SupervisedOptions(label_smoothing=0), LocalClassifierOptions(weight=1.0, weighting="gradient"))
"""``--method refilled``, after the embedding stage."""
REFILLED_REASONS = {
    "stochastic_triplet_kl": "The teacher's comparisons of the triplets that are hard for the student shape its features;"
    " no label's name is read, only which images are of one class.",
    "supervised": "The labels of the data, beside the teacher's view of them.",
    "local_classifier_kl": "The teacher's similarities to the centres of the classes in a batch take the place of logits"
    " that it may not have. Its gradient is as large as that of the labels at the student's logits; the authors' factor of"
    " 100 can be too much for few images.",
}
