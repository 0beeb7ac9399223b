"""What the options of all methods have in common: pairs of layers, and the base of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import LABELS, LabelKind, ModelFacts
from kdcli.base.names import OrthogonalMap, ProjectorName
from kdcli.base.reads import DISTILLATION
from kdcli.base.tasks import TASKS
from kdcli.config.section import Positive, Section, as_text

if TYPE_CHECKING:
    from kdcli.config.situation import Situation

INVERTED_RATE = 0.01
"""Learning rate of an inverted projector relative to the student's, from small trials: one as fast as the student soon
mapped the teacher onto a few directions that are easy to match."""


def projector_rate(name: ProjectorName) -> float:
    """Return the usual learning rate of a projector relative to the student's."""
    return INVERTED_RATE if name == "inverted" else 1.0


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
    of any layer, such as ``blocks.4``, averaged likewise, or its number in ``kdcli models layers NAME``; -1 is the
    last. Methods that read maps read them before they are averaged.
    """

    student: Tap = "pooled"
    """The student's side."""
    teacher: Tap = "pooled"
    """The teacher's side."""


ReadsLayers = Literal["nothing", "features", "maps"]


@dataclass(frozen=True)
class Needs:
    """What a method can't do without.

    Attributes:
        teacher: a teacher; methods that need none read none.
        common_labels: that both models have the same labels; it reads the logits of both.
        all_logits: all logits of a sample at once, which a causal language model does not have in memory.
        labels: the samples' labels, of any of these kinds, the usual one first; it leaves out samples without. Empty
            where it reads none.
        whole_images: images as they are, without mixup and cutmix.
        distillation_head: a student with a distillation token.
        stages: the ends of both models' stages, where no layers are named.
    """

    teacher: bool = True
    common_labels: bool = False
    all_logits: bool = False
    labels: tuple[LabelKind, ...] = ()
    whole_images: bool = False
    distillation_head: bool = False
    stages: bool = False


class MethodSection(Section):
    """Base of the options of a method, with all that the plan has to know of its kind."""

    method: str
    weight: Positive = 1.0
    """How much its loss counts; see ``weighting``."""
    weighting: Literal["loss", "gradient"] = "loss"
    """What ``weight`` is: a factor of the loss, or (``gradient``) the ratio of its gradient to that of the losses with
    factors, where both meet in the student: at the features that it reads, or at the logits."""

    module: ClassVar[str] = ""
    """The module of :mod:`kdcli.methods` that builds it; empty for the one of its own name."""
    needs: ClassVar[Needs] = Needs()
    """What it can't do without; :meth:`check` refuses a situation that lacks it."""
    trains_classifier: ClassVar[bool] = False
    """Whether the student learns its classes by this method alone."""
    asks_labels_loss: ClassVar[bool] = False
    """Whether it asks the task for its loss on the labels, which ``data.class_weights`` weigh."""
    reads_student: ClassVar[bool] = True
    """Whether it reads the student's side of ``pairs``."""
    is_asked_for: ClassVar[bool] = True
    """Whether it is one of those that ``--method`` takes."""
    takes_layers: ClassVar[bool] = False
    """Whether ``--feature-layers``, ``--feature-weight`` and ``--projector`` are about it."""
    why_no_projector: ClassVar[str] = ""
    """Why it has no option ``projector``: the end of a sentence that begins with its name."""
    has_adversary: ClassVar[bool] = False
    """Whether something is trained against the student, in a phase of its own."""
    takes_several_labels: ClassVar[bool] = False
    """Of a method on logits, whether its maths is for samples with any number of labels, too."""
    projects_layers: ClassVar[bool] = True
    """Whether its projector is applied to the layers of ``pairs`` themselves."""

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

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layers in ``pairs``: their features averaged over positions, or their maps."""
        return "nothing"

    @property
    def takes_stages(self) -> bool:
        """Whether it reads the ends of the models' stages, and no layers that are named."""
        return False

    @property
    def projector_name(self) -> ProjectorName | None:
        """Its trained map between both sides of ``pairs``; None without one."""
        return None

    @property
    def can_vanish(self) -> bool:
        """Whether the loss is zero where both of its sides are."""
        return False

    @property
    def tuned(self) -> tuple[str, ...]:
        """The options that ``kdcli tune`` tries by itself: how much it counts, if not as the labels alone."""
        return ("weight",) if self.needs.teacher or not self.trains_classifier else ()

    @property
    def remark(self) -> str:
        """What the plan says of it beside the reason: sentences on its settings, as they are."""
        return ""

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        return {"weighting"} if self.weighting == "loss" else set()

    def meaningless(self, situation: Situation) -> Set[str]:
        """The options that mean nothing for these data, whatever they are set to: the plan leaves them out."""
        return set()

    def shown(self) -> dict[str, str]:
        """Return its settings as the plan prints them, by name."""
        values = self._shown_first() | self.model_dump(
            exclude={"method", "student_tap", "teacher_tap", "layers", *self.idle}
        )
        return {key: f"{value:g}" if isinstance(value, float) else f"{value}" for key, value in values.items()}

    def _shown_first(self) -> dict[str, Any]:
        """Return what is shown before the other settings."""
        name = self.projector_name
        if name is None:
            return {}
        return {"projector": name, "direction": "teacher to student" if name == "inverted" else "student to teacher"}

    def describe_projector(self) -> str:
        """Return its projector as model cards name it; empty without one."""
        return ""

    def embedding_map(self) -> tuple[ProjectorName, OrthogonalMap] | None:
        """Return how it maps the student's pooled features into the teacher's space; None where it doesn't."""
        return None

    def with_weight(self, weight: float | None) -> Self:
        """Return the options with this weight; None leaves it."""
        return self if weight is None else self.model_copy(update={"weight": weight})

    def with_projector(self, name: ProjectorName, *, ratio: float | None) -> Self:
        """Return the options with a projector.

        Args:
            name: of the projector; of methods with ``takes_layers`` alone.
            ratio: the weight, as a ratio of gradients, of a method whose own weight is for features without one; None
                where there is nothing to be in proportion to.
        """
        raise NotImplementedError(f"{self.method} takes no projector")

    def tries(self, key: str) -> list[str]:
        """Return what of its own options to try where the teacher did not help, a phrase each.

        Args:
            key: of these options in the config.
        """
        return []

    def without_teacher(self) -> Self:
        """Return the options without any term that reads a teacher, of a method that :attr:`trains_classifier`."""
        return self

    def with_pairs(self, pairs: Sequence[FeaturePair]) -> tuple[Self, ...]:
        """Return the options that bring these pairs of layers together; none leaves the usual ones."""
        return (self,)

    def renamed(self, rename: Callable[[tuple[FeaturePair, ...]], tuple[FeaturePair, ...]]) -> Self:
        """Return the options with other names for the layers that are given."""
        return self

    def settled(self, situation: Situation) -> Self:
        """Return the options with all written out that is left to the models: layers, a projector's rate."""
        return self

    def check(self, situation: Situation) -> None:
        """Refuse a situation that it can't do with.

        Args:
            situation: as the plan has it; the options are :meth:`settled`.

        Raises:
            UserError: it lacks something that the method ``needs``, or a layer that it reads.
        """
        key, needs, student = situation.key, self.needs, situation.student
        if situation.teacher is None and needs.teacher:
            raise UserError(f"{key}: {self.method} needs a teacher, and teacher is none.", "Name one with --teacher.")
        self._check_labels(situation)
        if needs.distillation_head and DISTILLATION not in student.heads:
            raise UserError(
                f"{key}: {self.method} needs a student with a distillation token, and {student.name} has none.",
                "Use one that has, such as deit_tiny_distilled_patch16_224 or levit_128s, or logit_kd for any student.",
            )
        if needs.whole_images and (situation.config.augment.mixup or situation.config.augment.cutmix):
            raise UserError(
                f"{key}: {self.method} takes each image for what it is, and mixup or cutmix is on.",
                "Add --set augment.mixup=0 --set augment.cutmix=0.",
            )
        for pair in self.pairs:
            if self.reads_student:
                self._check_tap(pair.student, student)
            if needs.teacher and situation.teacher is not None:
                self._check_tap(pair.teacher, situation.teacher)

    def _check_labels(self, situation: Situation) -> None:
        key, needs, data = situation.key, self.needs, situation.data
        if data.label_kind == "none" and (needs.labels or self.trains_classifier):
            raise UserError(f"{key}: {self.method} needs labels, and the task {data.task} has none.", "Remove it.")
        if needs.common_labels and data.label_kind == "depth":
            raise UserError(
                f"{key}: {self.method} compares probabilities, and depth has one channel: its softmax is 1 at every"
                " pixel, whatever a model says, so the loss would always be 0.",
                f"Remove {self.method}; dense_regression takes the teacher's depth as a target.",
            )
        if needs.common_labels and data.label_kind == "boxes":
            raise UserError(
                f"{key}: {self.method} compares the logits of one thing by two models, and a detector's are of boxes of"
                " its own choice, which have no counterpart in another's.",
                f"Remove {self.method}; pkd, fgd, mgd and a projection of maps teach a detector by its features.",
            )
        if needs.common_labels and data.label_kind in ("image", "unpaired"):
            raise UserError(
                f"{key}: {self.method} compares probabilities, and an image has none.",
                f"Remove {self.method}; a projection brings features of any two models together.",
            )
        if needs.common_labels and data.label_kind == "classes" and not self.takes_several_labels:
            raise UserError(
                f"{key}: {self.method} compares the probabilities of one class among all, a softmax, and these samples"
                " have any number of labels.",
                f"Use logit_kd in place of {self.method}: it compares every label's own probability.",
            )
        if needs.labels and data.label_kind not in needs.labels:
            raise UserError(
                f"{key}: {self.method} needs {LABELS[needs.labels[0]].needed}, and the labels are"
                f" {data.labels.parts or 'others'}.",
                f"Remove {self.method}.",
            )
        if needs.all_logits and data.label_kind == "tokens" and TASKS[data.task].head == "causal":
            raise UserError(
                f"{key}: {self.method} wants all logits of a vocabulary at once, which would not fit in memory.",
                "Use logit_kd, whose divergence can be chosen.",
            )
        if needs.common_labels and situation.evidence.label_map is None:
            raise UserError(
                f"{key}: {self.method} needs teacher and student to have the same labels. {situation.evidence.reason}",
                f"Remove {self.method}; a projection works across label spaces.",
            )

    def _check_tap(self, tap: str, facts: ModelFacts) -> None:
        if tap not in facts.feature_dims:
            nearest = did_you_mean(tap, facts.feature_dims)
            raise UserError(
                f"{self.method}: {facts.name} has no features {tap!r}. {nearest}".rstrip(),
                f"It offers: {', '.join(facts.feature_dims)}.",
            )
        if self.reads_layers == "maps" and tap not in facts.grids:
            raise UserError(
                f"{self.method} reads maps, and {tap!r} of {facts.name} has no positions.",
                "Name another layer (--feature-layers STUDENT:TEACHER, or layers in a recipe).",
            )

    def build(self, context: Any) -> Any:
        """Return the :class:`~kdcli.methods.base.Method` of these options; for methods of other packages alone.

        Args:
            context: a :class:`~kdcli.methods.base.Context`.
        """
        raise NotImplementedError(f"kdcli.methods builds {self.method}")


class LogitOptions(MethodSection):
    """Base of the methods on logits; both models must have the same labels."""

    needs: ClassVar[Needs] = Needs(common_labels=True, all_logits=True)
    trains_classifier: ClassVar[bool] = True
    why_no_projector: ClassVar[str] = "compares logits over common labels, which need no map"


class LayerOptions(MethodSection):
    """Base of the methods on pairs of layers, whose losses are summed over the pairs."""

    layers: Annotated[tuple[Annotated[FeaturePair, BeforeValidator(pair)], ...], Field(min_length=1)] | None = None
    """``STUDENT:TEACHER``, as many as you like; by default the last features."""
    projector: ProjectorName | None = None
    """A trained map between both sides of each pair, which are standardised then; by default the method is its paper's.

    ``linear``, ``mlp`` and ``orthogonal`` map the student's side to the teacher's width, ``inverted`` the teacher's to
    the student's (Learning to Project, BMVC 2024). See :class:`kdcli.methods.base.LayerMethod`."""
    lr_scale: Positive | None = None
    """Learning rate of the projector relative to the student's; by default that of a ``projection`` with it."""

    takes_layers: ClassVar[bool] = True
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

    @property
    def takes_stages(self) -> bool:
        """Whether it reads the ends of the models' stages, and no layers that are named."""
        return self.needs.stages and self.layers is None

    @property
    def projector_name(self) -> ProjectorName | None:
        """Its trained map between both sides of ``pairs``; None without one."""
        return self.projector

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        replaced = {self.replaced_by_projector} if self.replaced_by_projector else set()
        return super().idle | ({"projector", "lr_scale"} if self.projector is None else replaced)

    def _shown_first(self) -> dict[str, Any]:
        both = {} if self.projector is None else {"normalize": "standardize, both sides"}
        return super()._shown_first() | both

    def describe_projector(self) -> str:
        """Return its projector as model cards name it; empty without one."""
        return "" if self.projector is None else f"{self.projector}, in {self.method}, both sides standardised"

    def with_projector(self, name: ProjectorName, *, ratio: float | None) -> Self:
        """Return the options with a projector, and the ratio for its weight."""
        weight = {} if ratio is None else {"weight": ratio, "weighting": "gradient"}
        return self.model_copy(update={"projector": name, **weight})

    def with_pairs(self, pairs: Sequence[FeaturePair]) -> tuple[Self, ...]:
        """Return the options with these layers."""
        return (self.model_copy(update={"layers": tuple(pairs)}) if pairs else self,)

    def renamed(self, rename: Callable[[tuple[FeaturePair, ...]], tuple[FeaturePair, ...]]) -> Self:
        """Return the options with other names for the layers that are given."""
        return self.model_copy(update={"layers": rename(self.layers)}) if self.layers else self

    def settled(self, situation: Situation) -> Self:
        """Return the options with layers and the projector's rate written out."""
        update: dict[str, Any] = {}
        if self.layers is None:
            student, teacher = situation.student, situation.teacher
            ends: tuple[FeaturePair, ...] = ()
            if self.needs.stages and teacher is not None:
                count = min(len(student.stages), len(teacher.stages))
                stages = zip(student.stages[-count:], teacher.stages[-count:], strict=True)
                ends = tuple(FeaturePair(student=ours, teacher=theirs) for ours, theirs in stages)
            update["layers"] = ends or (FeaturePair(),)
        if self.projector is not None and self.lr_scale is None:
            update["lr_scale"] = projector_rate(self.projector)
        return self.model_copy(update=update)


class MapOptions(LayerOptions):
    """Base of the methods that read maps."""

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layers: maps."""
        return "maps"


class VectorOptions(LayerOptions):
    """Base of the methods that read features averaged over positions."""

    @property
    def reads_layers(self) -> ReadsLayers:
        """What it reads of the layers: features averaged over positions."""
        return "features"
