"""What the options of all methods have in common: pairs of layers, and the base of each kind."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdcli.base.names import ProjectorName
from kdcli.config.section import Positive, Section, as_text

INVERTED_RATE = 0.01
"""Learning rate of an inverted projector relative to the student's, from small trials: one as fast as the student soon
mapped the teacher onto a few directions that are easy to match."""


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


class LogitOptions(MethodSection):
    """Base of the methods on logits; both models must have the same labels."""

    reads_logits: ClassVar[bool] = True
    trains_classifier: ClassVar[bool] = True
    why_no_projector: ClassVar[str] = "compares logits over common labels, which need no map"


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
