"""Which of the teacher's layers knows most of the student's classes: measured on a sample, before the plan is made."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.config import RunConfig
from kdcli.data import ImageData
from kdcli.devices import resolve_device
from kdcli.errors import UserError
from kdcli.facts import DataFacts, LayerScores
from kdcli.models.base import Model
from kdcli.probe import sample_by_class
from kdcli.probing import features_of
from kdcli.relation import find_relation

_MOST_SAMPLES, _FEWEST_SAMPLES = 256, 64
_MOST_MACS = 1e11
"""A costly teacher gets fewer samples: so many multiply-accumulates in all, a few seconds of a small CPU."""
_POOLED = "pooled"


def score_layers(config: RunConfig, teacher: Model | None, data: ImageData) -> LayerScores | None:
    """Measure the ends of the teacher's stages, and open them as taps, where the plan has to choose among them.

    That is where features alone are distilled, from a teacher of images that does not have the data's classes, and nobody
    says from which layer. An accuracy is that of nearest class means, each sample left out of its own class's mean, on
    standardised features: it needs two labels a class, no training and no choice of strengths. Only labelled training
    images are looked at.

    Args:
        config: of the run.
        teacher: its classes and stages.
        data: opened.

    Returns:
        None where there is nothing to choose, or too few labels to choose by.
    """
    if teacher is None or not _is_open(config, teacher, data.facts):
        return None
    try:
        size = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, int(_MOST_MACS / max(teacher.facts.macs, 1))))
        sample, _ = sample_by_class(data.train, data.facts.class_names, size, config.seed)
        teacher.open_stages()
    except UserError:  # fewer than two classes with two labels, or no stages: then it is the last features
        return None
    taps = tuple(dict.fromkeys((*teacher.facts.stages, _POOLED)))
    found = features_of(teacher, sample, taps, resolve_device(config.train.device), workers=config.data.workers)
    targets = torch.from_numpy(found.labels)
    guessing = float(targets.bincount().max()) / len(targets)
    accuracies = {tap: nearest_other_means(found.by_tap[tap], targets) for tap in taps}
    return LayerScores(len(targets), accuracies, guessing)


def nearest_other_means(features: Tensor, targets: Tensor) -> float:
    """Return the share of samples whose nearest class mean is their own class's, which they are left out of.

    Channels are standardised first, and those that are not finite make the share 0. A class of one sample has no mean for it.

    Args:
        features: (N, d).
        targets: int64 (N,), at least 0.
    """
    features = features.double()
    if not bool(features.isfinite().all()):
        return 0.0
    features = features - features.mean(dim=0)
    features = features / features.square().mean(dim=0).sqrt().clamp_min(1e-6)
    counts = targets.bincount().double()
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64).index_add_(0, targets, features)
    distances = torch.cdist(features, sums / counts.clamp_min(1)[:, None])
    distances[:, counts == 0] = torch.inf
    others = counts[targets] - 1
    own = (features - (sums[targets] - features) / others.clamp_min(1)[:, None]).norm(dim=1)
    rows = torch.arange(len(targets))
    distances[rows, targets] = torch.where(others > 0, own, torch.inf)
    return float((distances.argmin(dim=1) == targets).double().mean())


def _is_open(config: RunConfig, teacher: Model, data: DataFacts) -> bool:
    """Whether the plan chooses the layer of a teacher of other classes, of another task, or without training."""
    relation = find_relation(teacher.facts, data).relation if config.relation == "auto" else config.relation
    return (
        relation in ("cross", "random")
        and data.label_kind == "class"
        and config.methods is None
        and config.method in (None, "projection")
        and config.feature_layers is None
        and config.projector != "none"
    )
