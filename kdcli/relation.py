"""How the teacher's task stands to the student's. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from kdcli.config import Relation
from kdcli.facts import DataFacts, ModelFacts


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


def find_relation(teacher: ModelFacts | None, data: DataFacts) -> RelationEvidence:
    """Compare the teacher's task and label space with those of the data."""
    if teacher is None:
        return RelationEvidence("none", "There is no teacher.", None)
    if not teacher.pretrained:
        return RelationEvidence("random", "The teacher's weights are untrained.", None)
    if data.label_kind == "none":
        reason = (
            "No labels are read: the student is to reproduce the teacher's embedding space, whatever it was made for."
        )
        return RelationEvidence("same", reason, None)
    if teacher.task != data.task:
        return RelationEvidence("cross", f"The teacher is for {teacher.task}, the data are for {data.task}.", None)
    if data.label_kind == "tokens":
        reason = "Both predict the tokens of one vocabulary: their tokenizers are the same."
        return RelationEvidence("same", reason, ())
    label_map, reason = map_labels(teacher, data)
    # A softmax over logits says nothing where a sample has several labels or a number.
    shared = label_map if data.label_kind in ("class", "words") else None
    return RelationEvidence("same" if label_map else "cross", reason, shared)


def map_labels(model: ModelFacts, data: DataFacts, *, role: str = "teacher") -> tuple[tuple[int, ...] | None, str]:
    """Return the model's class of each of the data's classes (None when the label spaces differ) and why.

    ``role`` is what the sentence calls the model.
    """
    if data.label_kind == "number":
        if model.num_classes == 1:
            return (0,), f"The {role} gives one number, and the data have one."
        return None, f"The data have a number for each sample, and the {role} has {model.num_classes} classes."
    ours = [_normal(name) for name in data.class_names]
    if model.num_classes != len(ours):
        return None, f"The {role} knows {model.num_classes} classes, the data have {len(ours)}."
    if model.label_names is None:
        reason = f"Both have {len(ours)} classes; the {role} carries no label names, so their order is taken as equal."
        return tuple(range(len(ours))), reason
    theirs = [_normal(name) for name in model.label_names]
    if theirs == ours:
        return tuple(range(len(ours))), f"Both have the same {len(ours)} labels."
    if len(set(theirs)) == len(theirs) and set(theirs) == set(ours):
        reason = f"Both have the same {len(ours)} labels; the {role}'s logits are put into the data's order."
        return tuple(theirs.index(name) for name in ours), reason
    foreign = [name for name, normal in zip(data.class_names, ours, strict=True) if normal not in set(theirs)]
    example = f"the {role} has no label {foreign[0]!r}" if foreign else "their names are not unique"
    return None, f"Both have {len(ours)} classes, but {example}."


def num_shared_labels(model: ModelFacts, data: DataFacts) -> int:
    """Return how many of the data's labels are among the model's; 0 where it carries no names."""
    theirs = {_normal(name) for name in model.label_names or ()}
    return sum(_normal(name) in theirs for name in data.class_names)


def _normal(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
