"""How much each class counts in a run (``data.class_weights``), and how often it is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import UNLABELLED
from kdcli.config.methods import MethodOptions
from kdcli.config.run import RunConfig
from kdcli.data import ImageData, TextData
from kdcli.data.classes import listing
from kdcli.data.splits import class_counts
from kdcli.plan.plan import Decision
from kdcli.tasks import Task

_SHOWN = 10
"""Classes whose weights the plan names."""


def weights_of(config: RunConfig, data: ImageData | TextData, task: Task) -> Tensor | None:
    """Return how much each class counts in the task's loss, float32 (C,); None where all count alike.

    The loss is a mean with these weights, so that their scale says nothing: the smallest is 1.

    Raises:
        UserError: the labels are no classes, or a name is that of none.
    """
    if config.episodes is not None and (config.data.class_weights or config.data.balanced_sampling):
        key = "class_weights" if config.data.class_weights else "balanced_sampling"
        raise UserError(
            f"data.{key} is set, and every class of an episode has as many samples as the others.", "Leave it out."
        )
    shown = _shown_weights(config, data)
    if shown is None:
        return None
    if not task.takes_class_weights or config.task_extension is not None:
        name = config.extension_task or task.name
        raise UserError(
            f"data.class_weights is set, and the loss on the labels of {name} has no weights of classes.",
            "Leave it out.",
        )
    weights = torch.tensor(shown, dtype=torch.float64)
    return (weights / weights.min()).float()


def describe_classes(config: RunConfig, data: ImageData | TextData, methods: Sequence[MethodOptions]) -> list[Decision]:
    """Return what the plan says of weights and sampling.

    Raises:
        UserError: classes can't be drawn evenly, or no method reads their weights.
    """
    facts, decisions = data.facts, list[Decision]()
    if config.data.class_weights is not None and not any(options.asks_labels_loss for options in methods):
        raise UserError(
            "data.class_weights is set, and none of the methods has the loss on the labels that it weighs:"
            f" {listing([options.method for options in methods])}.",
            "Leave it out, or add that loss to the methods.",
        )
    if (shown := _shown_weights(config, data)) is not None:
        order = sorted(range(len(shown)), key=lambda label: -shown[label])
        parts = [f"{facts.class_names[label]} {shown[label]:.3g}" for label in order]
        how = "Asked for"
        if config.data.class_weights == "balanced":
            how += (
                f": {facts.num_labelled} labelled training {facts.noun}s by {len(shown)} classes by those of the class"
            )
        reason = (
            f"{how}. The supervised loss is a mean with these weights (their scale says nothing); a teacher's losses"
            " and all metrics have none."
        )
        decisions.append(Decision("class weights", listing(parts, limit=_SHOWN), reason))
    if config.data.balanced_sampling:
        _check_sampling(config, data)
        counts = class_counts(data.train.labels, len(facts.class_names))
        known = counts[counts > 0]
        value = f"{len(known)} classes, equally often in every epoch"
        reason = (
            f"Asked for: they have {known.min()} to {known.max()} labelled training {facts.noun}s. An epoch keeps its"
            f" length; {facts.noun}s of small classes come repeatedly, of large ones others each time."
        )
        if facts.num_labelled < facts.num_train:
            reason += f" {facts.noun.capitalize()}s without labels stay as they are."
        decisions.append(Decision("sampling", value, reason))
    return decisions


def _shown_weights(config: RunConfig, data: ImageData | TextData) -> Sequence[float] | None:
    """Return the weight of each class as it is asked for."""
    asked, names, facts = config.data.class_weights, data.facts.class_names, data.facts
    if asked is None:
        return None
    if not facts.has_classes:
        raise UserError(
            f"data.class_weights is set, and {facts.name} has {facts.labels.of_data.format(count=len(names))}.",
            "It is for samples or pixels with one class each: leave it out.",
        )
    if asked == "balanced":
        if facts.label_kind != "class":
            raise UserError(
                "data.class_weights can't be balanced here: that would take reading every mask before the plan.",
                "Give the weights: data.class_weights={NAME: WEIGHT, ...}.",
            )
        if config.data.balanced_sampling:
            raise UserError(
                "data.class_weights=balanced and data.balanced_sampling both even out classes of different sizes;"
                " together they favour the small ones.",
                "Use one of them.",
            )
        counts = class_counts(data.train.labels, len(names))
        total = int(counts.sum())
        return [total / (len(names) * int(count)) if count else 1.0 for count in counts]
    if unknown := [name for name in asked if name not in names]:
        there = f"{facts.name} has the classes {listing(names)}. {did_you_mean(unknown[0], names)}"
        raise UserError(
            f"data.class_weights names {listing(unknown)}, and {there}".rstrip(),
            "Name classes as the data do; those that are not named have a weight of 1.",
        )
    return [asked.get(name, 1.0) for name in names]


def _check_sampling(config: RunConfig, data: ImageData | TextData) -> None:
    facts = data.facts
    if facts.label_kind != "class":
        raise UserError(
            f"data.balanced_sampling is set, and {facts.name} has"
            f" {facts.labels.of_data.format(count=len(facts.class_names))}.",
            "It is for samples with one class each: leave it out.",
        )
    if not any(label != UNLABELLED for label in data.train.labels):
        raise UserError("data.balanced_sampling is set, and no training sample has a label.", "Leave it out.")
