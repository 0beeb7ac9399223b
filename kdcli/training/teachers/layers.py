"""Which of the teacher's layers knows most of the student's classes: measured on a sample, before the plan is made."""

from __future__ import annotations

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, LayerScores
from kdcli.config.run import RunConfig
from kdcli.data import ImageData, TextData
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.plan.decide import takes_default_layers
from kdcli.plan.relation import find_relation
from kdcli.training.teachers.features import probe_features

_POOLED = "pooled"


def score_layers(
    config: RunConfig, teacher: Model | None, data: ImageData | TextData, team: Team
) -> LayerScores | None:
    """Measure the ends of the teacher's stages, and open them as taps, where the plan has to choose among them.

    That is where features alone are distilled, from a teacher of images that does not have the data's classes, and
    nobody says from which layer. An accuracy is that of nearest class means, each sample left out of its own class's
    mean, on standardised features: it needs two labels a class, no training and no choice of strengths. Only labelled
    training images are looked at.

    Args:
        config: of the run.
        teacher: its classes and stages.
        data: opened.
        team: the main process measures, and all take the same layer.

    Returns:
        None where there is nothing to choose, or too few labels to choose by.
    """
    if teacher is None or not _is_open(config, teacher, data.facts):
        return None
    try:
        teacher.open_stages()
    except UserError:  # it has none: then it is the last features
        return None
    taps = tuple(dict.fromkeys((*teacher.facts.stages, _POOLED)))
    found = probe_features(config, teacher, data, taps, linear=False) if team.is_main else None
    probed = team.broadcast(found)
    if probed is None:
        return None
    return LayerScores(probed.samples, {tap: probed.means[tap] for tap in taps}, probed.largest)


def open_levels(config: RunConfig, teacher: Model | None, student: Model, data: DataFacts) -> None:
    """Open the ends of both models' stages as taps where the plan chooses among maps: of dense labels.

    A detector's are its levels.

    Args:
        config: of the run.
        teacher: gets taps.
        student: likewise.
        data: their kind of labels.
    """
    if teacher is None or not data.labels.is_dense or not takes_default_layers(config):
        return
    for model in (teacher, student):
        try:
            model.open_stages()
        except UserError:  # it has none: then it is the last map
            continue


def _is_open(config: RunConfig, teacher: Model, data: DataFacts) -> bool:
    """Whether the plan chooses the layer of a teacher of other classes, of another task, or without training."""
    relation = find_relation(teacher.facts, data).relation if config.relation == "auto" else config.relation
    is_measured = config.reads_images and data.label_kind == "class"
    return relation in ("cross", "random") and is_measured and takes_default_layers(config)
