"""How the teacher's task stands to the student's. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, LayerScores, ModelFacts
from kdcli.base.tasks import TASKS
from kdcli.config.run import RunConfig
from kdcli.config.situation import RelationEvidence, Situation


def situation_of(
    config: RunConfig,
    *,
    teacher: ModelFacts | None,
    student: ModelFacts,
    data: DataFacts,
    latencies: tuple[float, float] | None = None,
    layers: LayerScores | None = None,
) -> Situation:
    """Return the situation, with the relation as it is found; see :class:`~kdcli.config.situation.Situation`."""
    return Situation(config, student, data, teacher, find_relation(teacher, data), latencies, layers)


def settle_relation(situation: Situation) -> tuple[Situation, str]:
    """Return the situation with the relation and the common labels that were asked for, and the sentences that say why.

    Raises:
        UserError: what was asked for can't be.
    """
    config, teacher, data, found = situation.config, situation.teacher, situation.data, situation.evidence
    relation, reason, label_map = found.relation, found.reason, found.label_map
    has_classes = data.has_classes
    is_as_wide = teacher is not None and teacher.num_classes == len(data.class_names)
    if config.relation != "auto" and config.relation != relation:
        if (config.relation == "none") != (teacher is None):
            raise UserError(
                f"--relation {config.relation} does not fit --teacher {config.teacher.name}.",
                "The relation is 'none' exactly when the teacher is 'none'.",
            )
        if config.relation == "same" and data.label_kind != "none" and not is_as_wide:
            raise UserError(
                f"--relation same needs one label space for both. {found.reason}",
                "Drop --relation; to force the projector alone, use --projector orthogonal.",
            )
        relation, reason = config.relation, f"Asked for; found on its own: {found.relation}. {found.reason}"
    if relation == "same" and found.relation == "cross" and has_classes and is_as_wide:
        label_map = tuple(range(len(data.class_names)))
        reason += " The teacher's classes are taken to be yours, in this order, because you say so."
    if relation == "cross" and has_classes and TASKS[data.task].target == "label":
        option = "" if data.noun == "image" else f" --task {data.task}"
        reason += f" 'kdcli models probe{option}' compares what the features of this teacher and of others know of"
        reason += " your classes."
    return replace(situation, evidence=RelationEvidence(relation, found.reason, label_map)), reason


def show_relation(situation: Situation) -> str:
    """Return the relation as the plan shows it: of a teacher of another task with the name of that."""
    relation, teacher = situation.evidence.relation, situation.teacher
    if relation != "cross" or teacher is None or teacher.task == situation.data.task:
        return relation
    return f"{relation}: other task ({TASKS[teacher.task].words})"


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
        reason = f"The teacher is for {TASKS[teacher.task].words}, the data are for {TASKS[data.task].words}."
        return RelationEvidence("cross", reason, None)
    if data.label_kind == "tokens":
        reason = "Both predict the tokens of one vocabulary: their tokenizers are the same."
        return RelationEvidence("same", reason, ())
    label_map, reason = map_labels(teacher, data)
    # Logits are those of classes, one by one where a sample has several; a number has none.
    shared = label_map if data.has_classes or data.label_kind == "classes" else None
    return RelationEvidence("cross" if label_map is None else "same", reason, shared)


def map_labels(model: ModelFacts, data: DataFacts, *, role: str = "teacher") -> tuple[tuple[int, ...] | None, str]:
    """Return the model's class of each of the data's classes (None when the label spaces differ) and why.

    ``role`` is what the sentence calls the model.
    """
    if data.label_kind == "number":
        if model.num_classes == 1:
            return (0,), f"The {role} gives one number, and the data have one."
        return None, f"The data have a number for each sample, and the {role} has {model.num_classes} classes."
    if data.label_kind == "depth":
        return (0,), f"The {role} gives a depth for each pixel, and the data have one."
    if data.label_kind in ("image", "unpaired"):
        return (), f"The {role} makes images of images, as the data ask for."
    if data.label_kind == "samples" and not model.num_classes:
        return (), f"The {role} makes images out of random numbers, of no class."
    if data.label_kind == "samples" and model.label_names != data.class_names:
        known, asked = (", ".join(names or ()) or "none" for names in (model.label_names, data.class_names))
        return None, f"The {role} makes images of the classes {known}, and the data have {asked}."
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
                f"Both have the same {size} labels{'' if how == 'by name' else f', {how}'}; the {role}'s logits are"
                " put into the data's order."
            )
        return label_map, (
            f"All your {size} labels are among the {role}'s {width}, {how}: its logits are those of these {size}"
            " alone, with a softmax over them."
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
    verb = "is" if shared == 1 else "are"
    return f"{shared or 'None'} of your {size} labels {verb} among the {role}'s {model.num_classes}."


@dataclass(frozen=True)
class _Match:
    """The model's class of a label, and by what it was found."""

    place: int
    how: str


def _match_labels(model: ModelFacts, data: DataFacts) -> tuple[_Match | None, ...]:
    """Return the model's class of every label of the data, None where there is none, or more than one.

    Names are compared before other names of the classes (WordNet ids, their words), those before the first of several
    synonyms, and that before the others; in a larger label space those of the first three ranks together, so that
    ImageNet's cardigan is no dog. A folder such as ``n02085620-Chihuahua`` also goes by its id. Where both have the
    same names as they are written, these alone count: -1 is not 1 then.
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
