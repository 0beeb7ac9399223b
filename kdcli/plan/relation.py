"""How the teacher's task stands to the student's. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from kdcli.base.facts import DataFacts, ModelFacts
from kdcli.base.names import Relation


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
    size, width = len(data.class_names), model.num_classes
    if model.label_names is None:
        if width != size:
            return (
                None,
                f"The {role} knows {width} classes, the data have {size}. {describe_shared(model, data, role=role)}",
            )
        reason = f"Both have {size} classes; the {role} carries no label names, so their order is taken as equal."
        return tuple(range(size)), reason
    theirs = [*map(_normal, model.label_names)]
    if model.label_names == data.class_names or (
        theirs == [*map(_normal, data.class_names)] and len(set(theirs)) == size
    ):
        return tuple(range(size)), f"Both have the same {size} labels."
    matches = _match_labels(model, data)
    label_map = tuple(match.place for match in matches if match is not None)
    if len(label_map) == size == len(set(label_map)):
        how = f"by {' and '.join(dict.fromkeys(match.how for match in matches if match is not None))}"
        if width == size:
            return label_map, (
                f"Both have the same {size} labels{'' if how == 'by name' else f', {how}'}; the {role}'s logits are put into"
                " the data's order."
            )
        return label_map, (
            f"All your {size} labels are among the {role}'s {width}, {how}: its logits are those of these {size} alone, with"
            " a softmax over them."
        )
    if width != size:
        return (
            None,
            f"The {role} knows {width} classes, the data have {size}. {describe_shared(model, data, role=role)}",
        )
    foreign = [name for name, match in zip(data.class_names, matches, strict=True) if match is None]
    example = f"the {role} has no label {foreign[0]!r}" if foreign else "their names are not unique"
    return None, f"Both have {size} classes, but {example}. {describe_shared(model, data, role=role)}"


def num_shared_labels(model: ModelFacts, data: DataFacts) -> int:
    """Return how many of the data's labels are among the model's; 0 where it carries no names."""
    return sum(match is not None for match in _match_labels(model, data))


def describe_shared(model: ModelFacts, data: DataFacts, *, role: str = "teacher") -> str:
    """Return a sentence on how many of the data's labels are among the model's."""
    if model.label_names is None:
        return f"The {role} carries no label names to compare."
    size, shared = len(data.class_names), num_shared_labels(model, data)
    return f"{shared or 'None'} of your {size} labels {'is' if shared == 1 else 'are'} among the {role}'s {model.num_classes}."


@dataclass(frozen=True)
class _Match:
    """The model's class of a label, and by what it was found."""

    place: int
    how: str


def _match_labels(model: ModelFacts, data: DataFacts) -> tuple[_Match | None, ...]:
    """Return the model's class of every label of the data, None where there is none, or more than one.

    Names are compared before other names of the classes (WordNet ids, their words), those before the first of several
    synonyms, and that before the others; in a larger label space those of the first three ranks together, so that
    ImageNet's cardigan is no dog. A folder such as ``n02085620-Chihuahua`` also goes by its id. Where both have the same
    names as they are written, these alone count: -1 is not 1 then.
    """
    names = model.label_names or ()
    place = {name: number for number, name in enumerate(names)}
    if len(place) == len(names) and place.keys() == set(data.class_names):
        return tuple(_Match(place[name], "name") for name in data.class_names)
    return _match(model.label_names or (), model.label_aliases or (), data.class_names)


@cache
def _match(names: tuple[str, ...], aliases: tuple[str, ...], labels: tuple[str, ...]) -> tuple[_Match | None, ...]:
    written = [
        [("name", [name]) for name in names],
        [("WordNet id" if _WNID.fullmatch(alias) else "name", [alias]) for alias in aliases],
        [("first synonym", [text.split(",")[0]]) for text in (*names, *aliases)],
        [("synonym", text.split(",")[1:]) for text in (*names, *aliases)],
    ]
    tiers: list[dict[str, set[_Match]]] = []
    for entries in written:
        tier: dict[str, set[_Match]] = {}
        for number, (how, texts) in enumerate(entries):
            for text in filter(None, map(_normal, texts)):
                tier.setdefault(text, set()).add(_Match(number % len(names), how))
        tiers.append(tier)
    if len(names) != len(labels):
        merged: dict[str, set[_Match]] = {}
        for tier in reversed(tiers[:3]):
            for text, found in tier.items():
                merged[text] = merged.get(text, set()) | found
        tiers = [merged, tiers[3]]

    def match(label: str) -> _Match | None:
        wnid = _WNID.match(label)
        for key in (_normal(label), *([wnid[0]] if wnid else [])):
            for tier in tiers:
                if found := tier.get(key):
                    how = min(found, key=lambda match: _RANKS.index(match.how))
                    return how if len({match.place for match in found}) == 1 else None
        return None

    return tuple(match(label) for label in labels)


_RANKS = ("name", "WordNet id", "first synonym", "synonym")
_WNID = re.compile(r"n[0-9]{8}(?![0-9A-Za-z])")


def _normal(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
