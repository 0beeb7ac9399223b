"""The options of the generative adversarial network that makes images out of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdcli.base.errors import UserError
from kdcli.base.names import (
    AdversarialName,
    DiffAugmentName,
    DistanceName,
    NormalizeName,
    OrthogonalMap,
    ProjectorName,
)
from kdcli.base.tasks import TASKS
from kdcli.config.methods.adversary import AdversaryOptions, Beta
from kdcli.config.methods.base import FeaturePair, Needs, ReadsLayers, Tap, projector_rate
from kdcli.config.section import Count, Positive

if TYPE_CHECKING:
    from kdcli.config.situation import Situation

Weight = Annotated[float, Field(ge=0)]


def _from_name(value: Any) -> Any:
    """Return ``translation,cutout`` as a list, ``none`` as an empty one."""
    if isinstance(value, str):
        return [] if value.strip() in ("", "none") else [part.strip() for part in value.split(",")]
    return value


class GanOptions(AdversaryOptions):
    """A generator against a discriminator, whose features may be matched to a frozen teacher's.

    The discriminator is BigGAN's for the generator's size, with the classes that the generator has. Of the teacher
    features are read of the very images that the discriminator sees, augmented and resized to its input.
    """

    method: Literal["gan"] = "gan"
    loss: AdversarialName = "hinge"
    """Of both sides."""
    channels: Count | None = None
    """Of the discriminator: its narrowest multiple, by default the generator's; BigGAN has 64 for CIFAR."""
    diff_augment: Annotated[tuple[DiffAugmentName, ...], BeforeValidator(_from_name)] = ()
    """DiffAugment's policy, in order, as a list or ``translation,cutout``: what is done to every image before the
    discriminator sees it. By default nothing."""
    lecam: Weight = 0.0
    """Weight of LeCam's regulariser."""
    projector: ProjectorName | None = None
    """Between the discriminator's features, summed over positions, and the teacher's; without one no features are
    matched. ``inverted`` maps the teacher's to the discriminator's width."""
    normalize: NormalizeName = "whiten"
    """Of the teacher's features, over real images and over made ones each. Of B images whitened features have at most
    B - 1 directions with any variance: where that is fewer than the teacher's width, the distance is smaller by the
    ratio of the two, and calls for more ``feature_weight``."""
    normalize_student: NormalizeName = "none"
    """Of the discriminator's side, likewise."""
    distance: DistanceName = "smooth_l1"
    """Between both sides, once they are projected and normalised."""
    log_sum_alpha: Positive = 4.0
    """Exponent of the distance ``log_sum``."""
    orthogonal_map: OrthogonalMap = "retraction"
    """How an orthogonal projector stays so: brought back after every step, or one of torch's parametrisations."""
    feature_weight: Positive = 10.0
    """Of the distance in the discriminator's loss."""
    matched: Literal["both", "real"] = "both"
    """Whether made images are matched too, or real ones alone."""
    teacher_tap: Tap = "pooled"
    """The teacher's layer, averaged over positions, as in ``layers`` of other methods."""
    lr_scale: Positive | None = None
    """Learning rate of the projector relative to the discriminator's; by default that of a ``projection`` with it."""
    kd_dlgan: Weight = 0.0
    """Weight of KD-DLGAN's generative term, which pulls the discriminator's features of real and of made images to the
    teacher's of both, so that it tells them apart less easily; its authors have 10."""
    adversary_betas: tuple[Beta, Beta] = (0.0, 0.999)

    trains_classifier: ClassVar[bool] = True
    reads_student: ClassVar[bool] = False
    projects_layers: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        if self.projector is None:
            usual = type(self).model_fields
            keys = ("normalize", "normalize_student", "distance", "feature_weight", "matched", "lr_scale")
            for key in keys:
                if getattr(self, key) != usual[key].default:
                    raise ValueError(f"{key} is of features that are matched, and there is no projector")
            if self.teacher_tap != "pooled" and not self.kd_dlgan:
                raise ValueError("teacher_tap is set, and nothing reads the teacher: there is no projector")
        if self.distance != "log_sum" and self.log_sum_alpha != type(self).model_fields["log_sum_alpha"].default:
            raise ValueError("log_sum_alpha is for distance: log_sum")
        if self.projector != "orthogonal" and self.orthogonal_map != "retraction":
            raise ValueError("orthogonal_map is for projector: orthogonal")
        if len(set(self.diff_augment)) < len(self.diff_augment):
            raise ValueError("diff_augment names something twice")
        return self

    @property
    def reads_teacher(self) -> bool:
        """Whether the teacher is run."""
        return self.projector is not None or self.kd_dlgan > 0

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # what it needs depends on the other options
        """What it can't do without: a teacher where any term reads one."""
        return Needs(teacher=self.reads_teacher, labels=("samples",))

    @property
    def pairs(self) -> tuple[FeaturePair, ...]:
        """The teacher's features that it reads; the student's side is the discriminator."""
        return (FeaturePair(teacher=self.teacher_tap),) if self.reads_teacher else ()

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the teacher: features averaged over positions."""
        return "features" if self.reads_teacher else "nothing"

    @property
    def projector_name(self) -> ProjectorName | None:
        """Its trained map between the discriminator's and the teacher's features."""
        return self.projector

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        of_features = {"normalize", "normalize_student", "distance", "feature_weight", "matched", "lr_scale"}
        unused = {
            "diff_augment": not self.diff_augment,
            "lecam": not self.lecam,
            "kd_dlgan": not self.kd_dlgan,
            "log_sum_alpha": self.distance != "log_sum",
            "orthogonal_map": self.projector != "orthogonal",
            "projector": self.projector is None,
            "teacher_tap": not self.reads_teacher,
            **dict.fromkeys(of_features, self.projector is None),
        }
        return super().idle | {name for name, is_unused in unused.items() if is_unused}

    @property
    def tuned(self) -> tuple[str, ...]:
        """The options that ``kdcli tune`` tries by itself: how much the teacher's features count."""
        return ("feature_weight",) if self.projector is not None else ()

    @property
    def remark(self) -> str:
        """What the plan says of whitening beside the reason."""
        if self.projector is None or self.normalize != "whiten":
            return ""
        return (
            "Whitened over fewer images than the teacher has features, B - 1 directions are left, in float32: the"
            " distance is as much smaller, and feature_weight may have to be larger."
        )

    def _shown_first(self) -> dict[str, Any]:
        first: dict[str, Any] = {"loss": self.loss, "channels": f"{self.channels or 'as the generator has'}"}
        if self.projector is not None:
            first |= {"projector": self.projector}
            first["direction"] = (
                "teacher to discriminator" if self.projector == "inverted" else "discriminator to teacher"
            )
        return first

    def shown(self) -> dict[str, str]:
        """Return its settings as the plan prints them, by name."""
        found = super().shown()
        found["channels"] = f"{self.channels or 'as the generator has'}"
        if self.diff_augment:
            found["diff_augment"] = "+".join(self.diff_augment)
        found["adversary_betas"] = " and ".join(f"{beta:g}" for beta in self.adversary_betas)
        return found

    def describe_projector(self) -> str:
        """Return its projector as model cards name it; empty without one."""
        if self.projector is None:
            return ""
        return (
            f"{self.projector}, of the discriminator, teacher features normalised by {self.normalize}, distance"
            f" {self.distance}"
        )

    def with_projector(self, name: ProjectorName, *, ratio: float | None) -> Self:
        """Return the options with a projector; the weight stays."""
        return self.model_copy(update={"projector": name, "lr_scale": projector_rate(name)})

    def tries(self, key: str) -> list[str]:
        """Return another weight of the features, and another normalisation of the teacher's."""
        if self.projector is None:
            return []
        lower, higher = f"{self.feature_weight / 3:.2g}", f"{self.feature_weight * 3:.2g}"
        other = "standardize" if self.normalize == "whiten" else "whiten"
        return [
            f"another weight of the features: --set {key}.feature_weight={higher} or {lower}, in place of"
            f" {self.feature_weight:g}",
            f"the teacher's features normalised otherwise: --set {key}.normalize={other}",
        ]

    def without_teacher(self) -> Self:
        """Return the options of the same network without any term that reads a teacher."""
        usual = type(self).model_fields
        keys = (
            *("projector", "normalize", "normalize_student", "distance", "log_sum_alpha", "orthogonal_map"),
            *("feature_weight", "matched", "teacher_tap", "lr_scale", "kd_dlgan"),
        )
        return self.model_copy(update={key: usual[key].default for key in keys})

    def renamed(self, rename: Callable[[tuple[FeaturePair, ...]], tuple[FeaturePair, ...]]) -> Self:
        """Return the options with another name for the teacher's layer."""
        if not self.reads_teacher:
            return self
        (found,) = rename(self.pairs)
        return self.model_copy(update={"teacher_tap": found.teacher})

    def settled(self, situation: Situation) -> Self:
        """Return the options with the projector's rate written out."""
        if self.projector is None or self.lr_scale is not None:
            return self
        return self.model_copy(update={"lr_scale": projector_rate(self.projector)})

    def check(self, situation: Situation) -> None:
        """Refuse also another task, and a ratio of gradients."""
        key, row = situation.key, TASKS[situation.data.task]
        if row.target != "samples":
            raise UserError(
                f"{key}: {self.method} trains a generator of images out of random numbers, and the task is {row.name}.",
                f"Remove it, or choose --task {next(row.name for row in TASKS.values() if row.target == 'samples')}.",
            )
        super().check(situation)
        if self.weighting == "gradient":
            raise UserError(
                f"{key}: {self.method} has the discriminator's own gradient, and no ratio to that of labels.",
                "Set weighting to loss.",
            )
