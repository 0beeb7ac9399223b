"""What all sections of a config are made of: their base class, and kinds of values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kdcli.base.errors import UserError
from kdcli.base.facts import MAX_IMAGE_SIZE, MAX_TEXT_LENGTH
from kdcli.base.tasks import Modality, TaskFacts
from kdcli.base.text import check_name, short_repr


@dataclass(frozen=True)
class Key:
    """Something that an option is for; it stands in the ``Annotated`` metadata of the option's type, beside others.

    What it does not say is None. Of nested sections the outermost that says something has the word.

    Attributes:
        modality: the samples that it is about.
        tasks: which of the tasks on such samples read it.
        why_not: why the others don't: the end of a sentence.
        of_labels: it is about labels.
        of_eval_data: False where it has no effect in ``eval_data``, as all that is about texts.
        may_change: a run may go on with another value: it is about the machine, the length, or what is looked at.
        of_recipe: False where another value makes no other recipe.
        of_training: of data: another value leaves validation and test samples as they are.
        evaluates: for which tasks another value means that metrics are of something else.
        of_these_data: of data: it is about these very files, or their training samples, and not about others.
        of_input: it settles the size at which the student reads its samples.
    """

    modality: Modality | None = None
    tasks: Callable[[TaskFacts], bool] | None = None
    why_not: str | None = None
    of_labels: bool | None = None
    of_eval_data: bool | None = None
    may_change: bool | None = None
    of_recipe: bool | None = None
    of_training: bool | None = None
    evaluates: Callable[[TaskFacts], bool] | None = None
    of_these_data: bool | None = None
    of_input: bool | None = None


IMAGES = Key(modality="image")
TEXTS = Key(modality="text")
CHANGEABLE = Key(may_change=True)
BESIDE_THE_RECIPE = Key(may_change=True, of_recipe=False)
"""Where a run computes, and what is tested, logged and saved."""
SETTLED = Key(of_recipe=False)
"""Measured where a run begins and written into its config, which it goes on with: the machine chooses it."""


def always(task: TaskFacts) -> bool:
    """Whatever the task is."""
    return True


def is_language_model(task: TaskFacts) -> bool:
    """Whether the task's labels are the text's own tokens."""
    return task.is_language_model


def is_label_free(task: TaskFacts) -> bool:
    """Whether the metrics are about the teacher's own space."""
    return task.is_label_free


Positive = Annotated[float, Field(gt=0)]


Fraction = Annotated[float, Field(ge=0, le=1)]


Count = Annotated[int, Field(ge=1, lt=2**31)]


MaxLength = Annotated[int, Field(ge=2, le=MAX_TEXT_LENGTH)]


def _size_of(value: Any) -> int | tuple[int, int]:
    """Return one side where both are the same, so that there is one way to write a size."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value] * 2
    wrong = ValueError(f"input should be a side of 1 to {MAX_IMAGE_SIZE} pixels, or [height, width]")
    if len(sides) != 2:
        raise wrong
    whole = []
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, (int, float, str)):
            raise wrong
        try:
            number = int(side)
            is_whole = isinstance(side, str) or number == side
        except (ValueError, OverflowError):
            raise wrong from None
        if not (is_whole and 1 <= number <= MAX_IMAGE_SIZE):
            raise wrong
        whole.append(number)
    height, width = whole
    return height if height == width else (height, width)


def height_and_width(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the (height, width) in pixels that an :data:`ImageSize` is; None for none."""
    return (size, size) if isinstance(size, int) else size


def read_size(option: str, text: str) -> int | tuple[int, int]:
    """Return the size that a command's option gives as ``N`` or ``HEIGHTxWIDTH``.

    Raises:
        UserError: it is none.
    """
    try:
        return _size_of(text.lower().split("x") if "x" in text.lower() else text)
    except ValueError as error:
        raise UserError(
            f"{option} can't be {short_repr(text)}: {error}.", "For example: 224, or 416x544 (height x width)."
        ) from None


ImageSize = Annotated[int | tuple[int, int], BeforeValidator(_size_of)]
"""One side of a square in pixels, or (height, width)."""


Name = Annotated[str, AfterValidator(check_name)]


def _check_path(path: Path) -> Path:
    check_name(str(path))
    return path


Location = Annotated[Path, AfterValidator(_check_path)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, numbers are finite, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def as_text(value: Any) -> Any:
    """Return a whole number as text: YAML reads ``layer: 4`` so."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def as_texts(value: Any) -> Any:
    """Return a list of texts for one value or several: a label number may stand for a class."""
    return [as_text(item) for item in value] if isinstance(value, (list, tuple)) else [as_text(value)]


def as_list(value: Any) -> Any:
    """Return a list for one value or several."""
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def from_name(value: Any) -> Any:
    """Return a name alone as the section that it names."""
    return {"name": value} if isinstance(value, str) else value


def yaml_no(value: Any) -> Any:
    """Return ``no`` where YAML has read it as false."""
    return "no" if value is False else value  # YAML reads a bare `no` as false
