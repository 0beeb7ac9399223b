"""What all sections of a config are made of: their base class, and kinds of values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kdcli.base.facts import MAX_IMAGE_SIZE, MAX_TEXT_LENGTH
from kdcli.base.text import check_name

Positive = Annotated[float, Field(gt=0)]


Fraction = Annotated[float, Field(ge=0, le=1)]


Count = Annotated[int, Field(ge=1, lt=2**31)]


MaxLength = Annotated[int, Field(ge=2, le=MAX_TEXT_LENGTH)]


ImageSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]


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


def from_name(value: Any) -> Any:
    """Return a name alone as the section that it names."""
    return {"name": value} if isinstance(value, str) else value


def yaml_no(value: Any) -> Any:
    """Return ``no`` where YAML has read it as false."""
    return "no" if value is False else value  # YAML reads a bare `no` as false
