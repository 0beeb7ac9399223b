"""All that a plan is made from. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdcli.base.facts import DataFacts, LayerScores, ModelFacts
from kdcli.base.names import Relation
from kdcli.config.run import RunConfig


@dataclass(frozen=True)
class RelationEvidence:
    """The relation, the sentence that says why, and how the label spaces fit.

    Attributes:
        relation: ``same``, ``cross``, ``random`` or ``none``.
        reason: one sentence.
        label_map: for each of the student's classes the teacher's class of the same label; empty where both predict
            the same tokens; None when the label spaces differ or the teacher has no labels.
    """

    relation: Relation
    reason: str
    label_map: tuple[int, ...] | None


@dataclass(frozen=True)
class Situation:
    """What is asked for, and what is known of models and data.

    Attributes:
        config: of the run.
        student: what is trained.
        data: what it is trained on.
        teacher: None without one.
        evidence: how the teacher's task stands to the data's, as it was found.
        latencies: of teacher and student, in milliseconds for one sample on this machine, where they were measured.
        layers: what the teacher's layers know of the classes, where one of them is to be chosen.
        key: the config's key of the methods that are looked at, for messages.
    """

    config: RunConfig
    student: ModelFacts
    data: DataFacts
    teacher: ModelFacts | None
    evidence: RelationEvidence
    latencies: tuple[float, float] | None = None
    layers: LayerScores | None = None
    key: str = "methods"

    def at(self, key: str) -> Situation:
        """Return the same, looking at the methods of this key."""
        return replace(self, key=key)
