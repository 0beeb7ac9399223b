"""The options of the loss on the labels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdcli.config.methods.base import MethodSection


class SupervisedOptions(MethodSection):
    """The task's own loss on the labels."""

    method: Literal["supervised"] = "supervised"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1

    needs_teacher: ClassVar[bool] = False
    trains_classifier: ClassVar[bool] = True
    reads_unlabelled: ClassVar[bool] = False
    takes_vocabulary: ClassVar[bool] = True
    why_no_projector: ClassVar[str] = "reads the labels alone"
