"""What the options of all methods with an adversary have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from kdcli.config.methods.base import MethodSection
from kdcli.config.section import Count, Positive

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdversaryOptions(MethodSection):
    """Base of the options of a method with an adversary, such as a discriminator, in a phase of its own.

    The adversary's schedule is the run's, at its own rate; its optimiser is Adam, without weight decay.
    """

    adversary_lr: Positive = 2e-4
    """Learning rate of the adversary."""
    adversary_betas: tuple[Beta, Beta] = (0.5, 0.999)
    """Of the adversary's Adam."""
    adversary_steps: Count = 1
    """Steps of the adversary for each batch."""

    is_asked_for: ClassVar[bool] = False
    has_adversary: ClassVar[bool] = True
