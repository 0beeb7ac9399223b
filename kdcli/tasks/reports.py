"""What is said of one finished model on one split, in detail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kdcli.base.tasks import Modality
from kdcli.data import AnyBatch


@dataclass(frozen=True)
class Layout:
    """How a report is shown.

    Attributes:
        unit: what is counted: ``image``, ``text``, ``word``, ``pixel``.
        rows: label and key of every number of the table, the most important first.
        by_class: title and key of a number for each class; None where there are no classes.
        other_keys: what else a report computes.
        sample: what a model gets at once.
    """

    unit: str
    rows: tuple[tuple[str, str], ...]
    by_class: tuple[str, str] | None = None
    other_keys: tuple[str, ...] = ()
    sample: Modality = "image"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all that a report computes."""
        return (*(key for _, key in self.rows), *((self.by_class[1],) if self.by_class else ()), *self.other_keys)


class Report(Protocol):
    """The detailed metrics of one model on one split, by this process alone."""

    def update(self, outputs: Any, batch: AnyBatch) -> None:
        """Add a batch.

        Args:
            outputs: what the task's ``predict`` returned, brought into the data's order of classes.
            batch: at least one sample.
        """

    def compute(self) -> dict[str, Any]:
        """Return numbers and lists by the keys of the task's :class:`Layout`.

        What is called ``confusion``, counts (C, C) whose rows are true classes, is drawn.
        """

    def counts(self) -> list[int]:
        """Return how many units were measured of every class; of a task without classes their number alone."""

    def notes(self, name: str) -> list[str]:
        """Return what there is to say about the model that the user calls ``name``."""

    def agreement(self, other: Any) -> float | None:
        """Return the share of units that another model's report predicts alike; None where it has no sense."""


class Legend(NamedTuple):
    """What the colours of classes in a picture mean; those of all pictures of a grid are told together, once.

    Attributes:
        entries: by each class's number: its name, and its colour as red, green and blue in 0..255.
    """

    entries: Mapping[int, tuple[str, tuple[int, int, int]]]


class Scale(NamedTuple):
    """What the colours of numbers in a picture mean; equal ones of a grid are drawn once.

    Attributes:
        label: what the numbers are, with their unit.
        low: where the colours begin.
        high: where they end.
        colours: matplotlib's name of them.
    """

    label: str
    low: float
    high: float
    colours: str


class Panel(NamedTuple):
    """One picture of a sample.

    Attributes:
        title: what it shows, in one or more lines.
        image: uint8 (H, W, 3).
        key: what its colours mean, where they mean something.
        role: of the model whose answer it shows, one of each model's; empty where it shows something else.
    """

    title: str
    image: NDArray[np.uint8]
    key: Legend | Scale | None = None
    role: str = ""
