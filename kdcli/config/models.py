"""The sections of teacher and student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from kdcli.base.facts import DepthKind, Interpolation
from kdcli.base.names import Quantization
from kdcli.config.section import (
    CHANGEABLE,
    IMAGES,
    TEXTS,
    ImageSize,
    Key,
    MaxLength,
    Name,
    Positive,
    Section,
    as_texts,
    from_name,
    height_and_width,
    is_label_free,
    is_language_model,
)

Pooling = Literal["cls", "mean", "max", "last", "pooler"]

_OF_TOKENS = Key(evaluates=is_language_model)
_OF_POOLING = Key(tasks=lambda task: not task.is_over_tokens, why_not="each token stands for itself")
_OF_PROMPTS = Key(tasks=lambda task: not task.is_over_tokens, why_not="it reads texts as they are")
_OF_INPUT = Key(of_input=True)


class TeacherConfig(Section):
    """The model that is imitated. ``name`` is ``none`` for no teacher."""

    name: Name
    """What the model is called: timm's or the hub's name, a folder, or whatever ``kdcli models search`` lists."""
    weights: Annotated[Name | None, CHANGEABLE] = None
    """Local checkpoint, ``.safetensors`` or ``.pth``; ``package:NAME/PATH`` is a file inside an installed package. Also
    as ``NAME?weights=FILE``; a file that tells its architecture may be the name itself."""
    image_size: Annotated[ImageSize | None, IMAGES] = None
    """Side of its input in pixels, or ``[height, width]``, at most 4096; by default what its weights' file tells, else
    the model's own."""
    mean: Annotated[Annotated[tuple[float, ...], Field(min_length=1, max_length=4)] | None, IMAGES] = None
    """Of red, green and blue, or of each of ``data.channels``, of pixels scaled to [0, 1]; one number is of all. By
    default likewise, as the four after it."""
    std: Annotated[Annotated[tuple[Positive, ...], Field(min_length=1, max_length=4)] | None, IMAGES] = None
    """Of red, green and blue, likewise."""
    interpolation: Annotated[Interpolation | None, IMAGES] = None
    """How an image is resized."""
    crop_mode: Annotated[Literal["center", "squash", "border"] | None, IMAGES] = None
    """An image of other proportions is cropped, squashed or given borders."""
    crop_pct: Annotated[Annotated[float, Field(ge=0.1, le=1)] | None, IMAGES] = None
    """An image is resized to ``image_size / crop_pct`` before the crop."""
    max_length: Annotated[MaxLength | None, TEXTS, _OF_TOKENS] = None
    """Longest text in tokens; by default the model's own, at most 512."""
    pooling: Annotated[Pooling | None, TEXTS, _OF_POOLING] = None
    """How the features of a text's tokens become one vector; by default as the model means it."""
    label_names: Annotated[tuple[str, ...], BeforeValidator(as_texts)] | None = None
    """Names of its classes in the order of its outputs; by default those that the model carries."""
    depth: Annotated[DepthKind | None, IMAGES] = None
    """What its depth is: ``metric``, in metres, or ``inverse``, up to scale and shift; by default what its config or
    its kind tells. Of the kind ``dpt``, which is taken for inverse as MiDaS is, some weights are metric."""
    sharded: Annotated[bool, CHANGEABLE] = False
    """Let the training processes have shares of its weights (FSDP2) and gather each block as it is run, for a teacher
    that does not fit one GPU. Before training it is probed on the CPU."""
    quantization: Quantization | None = None
    """Its linear layers in 8 bits (``int8``) or 4 (``int4``), for less memory, by transformers and bitsandbytes: of
    models of transformers' with published weights. What it knows afterwards is measured before it teaches."""
    unchecked: Annotated[bool, CHANGEABLE] = False
    """Take it although it was measured to do no better than guessing."""
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    """Of its computing; by default that of the training, ``train.mixed_precision``. ``bfloat16`` keeps its weights so
    too, and changes its outputs by about half a percent; ``auto`` takes it where it is measured to be faster and to
    change them by less than one percent. What is measured of the teacher is measured without it."""
    compile: Annotated[bool, CHANGEABLE] = False
    """Run it through ``torch.compile``, which takes minutes of a long run's start."""
    prompt: Annotated[str | None, TEXTS, _OF_PROMPTS] = None
    """What stands before every text; by default what sentence-transformers' folder has as its default prompt."""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """The (height, width) that is asked for."""
        return height_and_width(self.image_size)


class StudentConfig(Section):
    """The model that is trained."""

    name: Name
    """What the model is called: timm's or the hub's name, a folder, or whatever ``kdcli models search`` lists."""
    source: Annotated[Annotated[TeacherConfig, BeforeValidator(from_name)] | None, Key(may_change=False)] = None
    """The model that ``teacher?layers=...&width=...`` is made of; by default the run's teacher."""
    pretrained: bool = False
    """Start from the published weights of that name."""
    image_size: Annotated[ImageSize | None, IMAGES, _OF_INPUT, Key(evaluates=is_label_free)] = None
    """Side of its input in pixels, or ``[height, width]``, at most 4096; by default the model's own."""
    max_length: Annotated[MaxLength | None, TEXTS, _OF_TOKENS, _OF_INPUT] = None
    """Longest text in tokens; by default the model's own, at most 512."""
    pooling: Annotated[Pooling | None, TEXTS, _OF_POOLING] = None
    """How the features of a text's tokens become one vector; by default as the model means it."""
    tokenizer: Annotated[
        Annotated[TeacherConfig, BeforeValidator(from_name)] | None, TEXTS, _OF_TOKENS, Key(may_change=False)
    ] = None
    """The model of text whose tokenizer it takes where it has none of its own; by default the run's teacher."""
    drop_path: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, IMAGES] = None
    """Rate of stochastic depth, for architectures that have it; by default the architecture's own."""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """The (height, width) that is asked for."""
        return height_and_width(self.image_size)

    @property
    def is_from_teacher(self) -> bool:
        """Whether it is a smaller copy of a teacher."""
        return self.name.startswith("teacher?")
