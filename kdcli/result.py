"""What a finished run came to: the schema of ``result.json``, one for writing and for reading. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator


def _number(value: Any) -> Any:
    return math.nan if value is None else value


Metrics = dict[str, Annotated[float, BeforeValidator(_number)]]
"""Numbers by name. JSON has none that is not finite: it is written as null, and read as NaN."""


UNREADABLE = "unreadable"
"""What the number of samples that were left out is called among a split's metrics, where there are any."""


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics as JSON has them: null for what is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def show_metric(name: str, value: float) -> str:
    """Return a metric's value as it is shown."""
    return f"{value:.0f}" if name == UNREADABLE else f"{value:.4f}"


class Saved(BaseModel, frozen=True, extra="allow", ser_json_inf_nan="null"):
    """Base of what ``result.json`` holds; keys of later versions are kept."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        text = json.dumps(self.model_dump(mode="json"))  # pydantic's own writes no names that are not UTF-8
        content: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
        return content


class Result(Saved):
    """What a run came to.

    Attributes:
        validation: metrics of the best student on the validation split, with its ``epoch`` and ``step``.
        test: its metrics on the test split; empty when there is none, or when it is left alone.
        steps: batches.
        seconds: of training, validations included, over all of a resumed run's parts.
        skipped: distinct files that could not be read.
        embedding: of the earlier stage, where there was one: its best student's validation metrics and ``epoch``, its
            ``steps`` and ``seconds``.
        teacher: the teacher's own metrics by split, ``validation`` and ``test``, where it predicts what the student does.
    """

    validation: Metrics
    test: Metrics
    steps: int
    seconds: float
    skipped: int
    embedding: Metrics = {}
    teacher: dict[str, Metrics] = {}


class Mean(Saved):
    """A mean over episodes, and the ends of its 95 % t-interval; one episode has none."""

    mean: float
    low: float | None
    high: float | None


class EpisodesResult(Saved):
    """What a run of episodes came to: their number, each arm's accuracy, and the paired differences of two arms."""

    episodes: int
    accuracy: dict[str, Mean]
    distilled_minus_fine_tuned: Mean
