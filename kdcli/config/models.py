"""The sections of teacher and student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from kdcli.base.facts import Interpolation
from kdcli.config.section import ImageSize, MaxLength, Name, Positive, Section, as_texts, from_name

Pooling = Literal["cls", "mean", "max", "last", "pooler"]


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
    label_names: Annotated[tuple[str, ...], BeforeValidator(as_texts)] | None = None
    """Names of its classes in the order of its outputs; by default those that the model carries."""
    unchecked: bool = False
    """Take it although it was measured to do no better than guessing."""
    prompt: str | None = None
    """What stands before every text; by default what sentence-transformers' folder has as its default prompt."""


class StudentConfig(Section):
    """The model that is trained."""

    name: Name
    source: Annotated[TeacherConfig, BeforeValidator(from_name)] | None = None
    """The model that ``teacher?layers=...&width=...`` is made of; by default the run's teacher."""
    pretrained: bool = False
    image_size: ImageSize | None = None
    """Side of its input in pixels, at most 4096; by default the model's own."""
    max_length: MaxLength | None = None
    """Longest text in tokens; by default the model's own, at most 512."""
    pooling: Pooling | None = None
    """How the features of a text's tokens become one vector; by default as the model means it."""
    tokenizer: Annotated[TeacherConfig, BeforeValidator(from_name)] | None = None
    """The model of text whose tokenizer it takes where it has none of its own; by default the run's teacher."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Rate of stochastic depth, for architectures that have it; by default the architecture's own."""

    @property
    def is_from_teacher(self) -> bool:
        """Whether it is a smaller copy of a teacher."""
        return self.name.startswith("teacher?")
