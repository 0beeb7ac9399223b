"""What a finished run came to: the schema of ``result.json``, one for writing and for reading. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, model_validator


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

    def to_json(self, *, as_read: bool = False) -> dict[str, Any]:
        """Return the content of ``result.json``; ``as_read`` leaves out what was not in the file."""
        # pydantic's own JSON writes no names that are not UTF-8
        text = json.dumps(self.model_dump(mode="json", exclude_unset=as_read))
        content: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
        return content


class Finished(Saved):
    """What every finished run leaves beside its numbers.

    Attributes:
        files: SHA-256 of the run's other files, by which a change in one is noticed.
        data: of every split the number of its samples and a digest of their content and labels.
        teacher_weights: a digest of the teacher's tensors; None without a teacher.
        forced: what had changed where ``--force`` went on all the same, a sentence each.
        checksum: of all the rest, by which a change in ``result.json`` itself is noticed; empty before it is written.
    """

    files: dict[str, str] = {}
    data: dict[str, dict[str, int | str]] = {}
    teacher_weights: str | None = None
    forced: list[str] = []
    checksum: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A file of an earlier version has no keys of this one.
        if self.checksum and self.checksum != _sum_of(self.to_json(as_read=True)):
            raise ValueError("its checksum is another")
        return self

    def with_checksums(self, files: dict[str, str]) -> Self:
        """Return it with the checksums of the run's other files and its own."""
        complete = self.model_copy(update={"files": files})
        return complete.model_copy(update={"checksum": _sum_of(complete.to_json())})

    def to_json(self, *, as_read: bool = False) -> dict[str, Any]:
        """Return the content of ``result.json``, the numbers first; ``as_read`` leaves out what was not in the file."""
        content = super().to_json(as_read=as_read)
        return {name: content[name] for name in sorted(content, key=lambda name: name in Finished.model_fields)}


def _sum_of(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class Mean(Saved):
    """A mean or a difference, and the ends of its 95 % interval, where it has one."""

    mean: float
    low: float | None
    high: float | None


Verdict = Literal["helped", "unclear", "harmed"]


class Outcome(Saved):
    """How a student that was distilled stands to the same student alone.

    Attributes:
        verdict: whether the interval of ``metric``'s difference lies above zero, below zero, or neither.
        sentence: the same in words, with the interval.
        split: that both were measured on.
        metric: by which the best students were chosen.
        samples: of the split, that the intervals are over; 0 without one.
        differences: distilled minus alone by metric, with the intervals by bootstrap over the samples.
        tries: what to try next, a phrase each; nothing where distillation helped.
    """

    verdict: Verdict
    sentence: str
    split: str
    metric: str
    samples: int
    differences: dict[str, Mean]
    tries: list[str]


class Result(Finished):
    """What a run came to.

    Attributes:
        validation: metrics of the best student on the validation split, with its ``epoch`` and ``step``.
        test: its metrics on the test split; empty when there is none, or when it is left alone.
        steps: batches.
        seconds: of training, validations included, over all of a resumed run's parts.
        skipped: distinct files that could not be read.
        embedding: of the earlier stage, where there was one: its best student's validation metrics and ``epoch``, its
            ``steps`` and ``seconds``.
        teacher: the teacher's own metrics by split, ``validation`` and ``test``, where it predicts what the student
            does.
        teacher_samples: of the splits that it was measured on a part of, how many samples that is.
        outcome: beside the student alone, where that was trained too.
        last: validation metrics of the last student, of a task whose best one is chosen by a number that luck has a
            part in; empty for others.
    """

    validation: Metrics
    test: Metrics
    steps: int
    seconds: float
    skipped: int
    embedding: Metrics = {}
    teacher: dict[str, Metrics] = {}
    teacher_samples: dict[str, int] = {}
    outcome: Outcome | None = None
    last: Metrics = {}


class EpisodesResult(Finished):
    """What a run of episodes came to: their number, each arm's accuracy, and the paired differences of two arms.

    The intervals are t-intervals over the episodes; one episode has none.
    """

    episodes: int
    accuracy: dict[str, Mean]
    distilled_minus_fine_tuned: Mean
