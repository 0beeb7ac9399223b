"""A plan: its decisions, each with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdcli.base.names import Relation
from kdcli.base.result import finite
from kdcli.config.methods import MethodOptions
from kdcli.config.run import RunConfig
from kdcli.config.training import EmbeddingConfig

TeacherOutputs = Literal["live", "stored"]
"""The teacher is run on every batch, or once on every sample."""


@dataclass(frozen=True)
class Decision:
    """One thing that was decided.

    Attributes:
        name: what.
        value: what it is.
        reason: why, in a sentence or more.
        warning: what of the reason a user must not miss; it is shown wherever the plan is.
        brief: what the summary says in place of the value, see :mod:`kdcli.plan.summary`; by default the value.
    """

    name: str
    value: str
    reason: str
    warning: str = ""
    brief: str = ""

    def to_json(self) -> dict[str, str]:
        """Return its part of ``plan.json``."""
        told = {"name": self.name, "value": self.value, "reason": self.reason}
        return told | ({"warning": self.warning} if self.warning else {})


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before training starts.

    Attributes:
        relation: the teacher's task against the student's.
        label_map: the teacher's class of each of the student's classes, or None.
        methods: the losses with their weights and options.
        embedding: the stage before, with its own; None without one.
        decisions: in the order in which they are shown.
        unread: features of the student's that are distilled although its classifier reads others.
        teacher_metrics: of the teacher itself on validation samples, before the first step; None where it was not
            measured.
        teacher_samples: on how many, where it is not the whole split.
        teacher_outputs: how the teacher's outputs are come by.
        teacher_probe: what its features tell of the classes, see :mod:`kdcli.training.teachers.probe`; None where that
            was not asked.
    """

    relation: Relation
    label_map: tuple[int, ...] | None
    methods: tuple[MethodOptions, ...]
    embedding: EmbeddingConfig | None
    decisions: tuple[Decision, ...]
    unread: tuple[str, ...] = ()
    teacher_metrics: Mapping[str, float] | None = None
    teacher_samples: int | None = None
    teacher_outputs: TeacherOutputs = "live"
    teacher_probe: Mapping[str, Any] | None = None

    @property
    def every_method(self) -> tuple[MethodOptions, ...]:
        """The losses of the stage before, where there is one, and of the run."""
        return (*(() if self.embedding is None else self.embedding.methods), *self.methods)

    def with_decisions(self, decisions: Sequence[Decision]) -> Plan:
        """Return the plan with more decisions at its end."""
        return replace(self, decisions=(*self.decisions, *decisions))

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return ``config`` with the plan's methods written out: it gives the same plan again."""
        chosen: dict[str, Any] = {"methods": self.methods, "projector": "auto", "normalize": "auto"}
        chosen |= {"feature_layers": None, "feature_weight": None, "method": None, "embedding": self.embedding}
        return config.model_copy(update=chosen)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``plan.json``."""
        return {
            "relation": self.relation,
            "label_map": self.label_map,
            "methods": [options.model_dump(mode="json") for options in self.methods],
            "embedding": None if self.embedding is None else self.embedding.model_dump(mode="json"),
            "unread": list(self.unread),
            "teacher_metrics": None if self.teacher_metrics is None else finite(self.teacher_metrics),
            "teacher_samples": self.teacher_samples,
            "teacher_probe": None if self.teacher_probe is None else dict(self.teacher_probe),
            "decisions": [decision.to_json() for decision in self.decisions],
        }
