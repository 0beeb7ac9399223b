"""The options of methods for images that are made of other images."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import Preprocessing
from kdcli.base.names import AdversarialName
from kdcli.base.reads import IMAGE
from kdcli.base.tasks import TASKS
from kdcli.config.methods.adversary import AdversaryOptions
from kdcli.config.methods.base import MethodSection, Needs
from kdcli.config.section import Count, Name, Positive

if TYPE_CHECKING:
    from kdcli.config.situation import Situation


def _from_name(value: object) -> object:
    """Return a loss's name alone as the sum of it."""
    return {value: 1.0} if isinstance(value, str) else value


class ImageRegressionOptions(MethodSection):
    """The teacher's image as a target, for every image that it translates: also for those without one of their own."""

    method: Literal["image_regression"] = "image_regression"
    loss: Annotated[Mapping[str, Positive], BeforeValidator(_from_name), Field(min_length=1)] = {"l1": 1.0}
    """A loss of the task by name, or several with a weight each, whose sum it is."""

    needs: ClassVar[Needs] = Needs()
    trains_classifier: ClassVar[bool] = True
    why_no_projector: ClassVar[str] = "compares images, which need no map"

    def shown(self) -> dict[str, str]:
        """Return its settings as the plan prints them, by name; the losses as a sum."""
        terms = (name if weight == 1 else f"{weight:g} {name}" for name, weight in self.loss.items())
        return super().shown() | {"loss": " + ".join(terms)}

    def check(self, situation: Situation) -> None:
        """Refuse also models that make no image, or a teacher that has not learnt to."""
        super().check(situation)
        teacher, losses = situation.teacher, TASKS[situation.data.task].losses
        assert teacher is not None, "it needs one"
        if IMAGE not in situation.student.heads:
            raise UserError(
                f"{situation.key}: {self.method} is about images that are made, and the task is {situation.data.task}.",
                f"Remove {self.method}.",
            )
        for name in self.loss:
            if name not in losses:
                raise UserError(
                    f"{situation.key}: {self.method} has no loss {name!r}. {did_you_mean(name, losses)}".rstrip(),
                    f"Valid: {', '.join(losses)}.",
                )
        if IMAGE not in teacher.heads:
            raise UserError(
                f"{situation.key}: {self.method} needs a teacher that makes images, and {teacher.name} is for"
                f" {teacher.task}.",
                f"Remove {self.method}; a projection works across tasks.",
            )
        if not teacher.pretrained:
            raise UserError(
                f"{situation.key}: {self.method} has the student repeat the teacher's images, and {teacher.name} is"
                " untrained.",
                f"Remove {self.method}, or name a trained teacher.",
            )


class PatchOptions(AdversaryOptions):
    """Base of the methods whose discriminators judge patches of images (PatchGAN: Isola et al., CVPR 2017)."""

    loss: AdversarialName = "lsgan"
    """What generator and discriminator minimise; the discriminator's is halved, as in CycleGAN."""
    discriminator_channels: Count = 64
    """Channels of the first layer of a discriminator; twice as many with each, up to eight times as many."""
    discriminator_layers: Annotated[int, Field(ge=1, le=8)] | None = None
    """Layers that halve the sides: 3 judge patches of 70x70 pixels, 2 of 34x34, 1 of 16x16. By default 3, and fewer
    for images of less than 24 pixels."""

    trains_classifier: ClassVar[bool] = True
    is_asked_for: ClassVar[bool] = True

    def settled(self, situation: Situation) -> Self:
        """Return the options with the discriminators' layers."""
        if self.discriminator_layers is not None:
            return self
        fitting = [layers for layers in (1, 2, 3) if min(_sides(situation)) >= _least(layers)]
        return self.model_copy(update={"discriminator_layers": max(fitting, default=1)})

    def check(self, situation: Situation) -> None:
        """Refuse also images that are too small for the discriminator's layers."""
        super().check(situation)
        assert self.discriminator_layers is not None, "it is settled"
        if IMAGE not in situation.student.heads:
            raise UserError(
                f"{situation.key}: {self.method} is about images that are made of others, and the task is"
                f" {situation.data.task}.",
                f"Remove {self.method}.",
            )
        sides, least = _sides(situation), _least(self.discriminator_layers)
        if min(sides) < least:
            raise UserError(
                f"{situation.key}: a discriminator of {self.discriminator_layers} layers needs images of {least} pixels"
                f" or more, and the student's are {'x'.join(map(str, sides))}.",
                "Set discriminator_layers to fewer, or a larger student.image_size.",
            )


def _sides(situation: Situation) -> tuple[int, int]:
    """Return the (height, width) of the student's images."""
    wanted = situation.student.preprocessing
    assert isinstance(wanted, Preprocessing), "it is a model of images"
    return wanted.image_size


def _least(layers: int) -> int:
    """Return the pixels that a side has at least for so many layers: the last normalisation wants two places."""
    return 3 * 2**layers


class AdversarialOptions(PatchOptions):
    """A discriminator of pairs (input, image): whether the image is the input's own target, or the student's.

    pix2pix (Isola et al., CVPR 2017) has a loss ``l1`` with 100 times its weight beside it.
    """

    method: Literal["adversarial"] = "adversarial"
    weight: Positive = 0.01

    needs: ClassVar[Needs] = Needs(teacher=False, labels=("image",))
    why_no_projector: ClassVar[str] = "judges images, which need no map"


class CycleGANOptions(PatchOptions):
    """Translation without pairs, there and back again (CycleGAN: Zhu et al., ICCV 2017).

    A second generator translates back; a discriminator for each kind of images tells made ones from real ones.
    """

    method: Literal["cycle_gan"] = "cycle_gan"
    cycle: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the mean absolute difference of an image and what comes back of it, in both directions."""
    identity: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the difference of an image and what is made of it where it is of the wanted kind already, relative to
    ``cycle``."""
    pool: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Made images that are kept for each discriminator: half of those that it sees are of earlier steps."""
    second: Name | None = None
    """The generator that translates back, by name; by default one like the student. It is untrained at the start."""

    needs: ClassVar[Needs] = Needs(teacher=False, labels=("unpaired",))
    why_no_projector: ClassVar[str] = "judges images, which need no map"

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect, as the others are set."""
        return super().idle | ({"second"} if self.second is None else set())

    def settled(self, situation: Situation) -> Self:
        """Return the options with the second generator's name, too."""
        found = super().settled(situation)
        return found if found.second is not None else found.model_copy(update={"second": situation.student.name})
