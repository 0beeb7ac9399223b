"""What to try next where distillation did not help. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from kdcli.base.result import Result, show_metric
from kdcli.config.methods import MethodSection
from kdcli.config.run import RunConfig

_MOST = 4
"""So many things are named; more would be none."""
_FACTOR = 3
"""Between a weight and the next one to try."""


def what_to_try(
    config: RunConfig,
    plan: Mapping[str, Any],
    result: Result,
    alone: Result,
    *,
    split: str,
    metric: str,
    run: str,
    harmed: bool,
) -> list[str]:
    """Return what is worth a try, the likeliest first, as phrases; the last one is to leave the teacher out.

    Args:
        config: the run's, with its methods written out.
        plan: the content of ``plan.json``.
        result: of the run.
        alone: of the student alone.
        split: that both are compared on.
        metric: by which.
        run: the folder.
        harmed: whether the student is worse than alone, and not only no better.
    """
    folder = shlex.quote(run)
    tries = [
        *_about_the_teacher(config, plan, result, alone, split, metric),
        *_about_features(config, plan, harmed=harmed),
        *_about_training(config, result, folder),
    ]
    last = f"the labels alone, if nothing helps: that student is in {folder}/baseline (--teacher none --method none)"
    return [*tries[:_MOST], last]


def _about_the_teacher(
    config: RunConfig, plan: Mapping[str, Any], result: Result, alone: Result, split: str, metric: str
) -> list[str]:
    if plan["relation"] == "random":
        return [f"a pretrained teacher: {config.teacher.name} is untrained"]
    tries = []
    own, student = result.teacher.get(split, {}).get(metric), getattr(alone, split).get(metric)
    if own is not None and student is not None and own <= student:
        shown = show_metric(metric, own), show_metric(metric, student)
        tries.append(
            f"a better teacher: this one's {split} {metric} is {shown[0]}, and that of the student alone {shown[1]}"
        )
    if (probe := plan.get("teacher_probe")) is not None:
        task = "" if config.reads_images else f" --task {config.task}"
        ranked = f"kdcli models probe{task} --data {shlex.quote(config.data.name)} --teacher NAME --teacher NAME"
        known = (
            f", whose features gave {probe['accuracy']:.2f} in the plan's probe" if probe["level"] != "above" else ""
        )
        tries.append(f"another teacher than {config.teacher.name}{known}; this ranks them: {ranked}")
    return tries


def _about_features(config: RunConfig, plan: Mapping[str, Any], *, harmed: bool) -> list[str]:
    reading = [
        options for options in config.methods or () if options.needs.teacher and options.reads_layers != "nothing"
    ]
    tries = [line for number, options in enumerate(config.methods or ()) for line in options.tries(f"methods.{number}")]
    methods = [options for options in reading if options.reads_student or not options.has_adversary]
    if not methods:
        return tries
    pairs = [pair for options in methods for pair in options.pairs]
    if unread := [pair for pair in pairs if pair.student in plan.get("unread", ())]:
        tries.append(
            f"--feature-layers embedding:{unread[0].teacher}: the student's classifier reads embedding, and"
            f" {unread[0].student} was distilled"
        )
    tries.append(_another_weight(methods, harmed=harmed))
    names = " and ".join(f"'kdcli models layers {name}'" for name in (config.student.name, config.teacher.name))
    read = ", ".join(f"{pair.student}:{pair.teacher}" for pair in pairs)
    tries.append(f"other layers than {read} (--feature-layers STUDENT:TEACHER); {names} list them")
    return tries


def _another_weight(methods: list[MethodSection], *, harmed: bool) -> str:
    weight = sum(options.weight for options in methods if options.method == methods[0].method)
    lower, higher = f"{weight / _FACTOR:.2g}", f"{weight * _FACTOR:.2g}"
    if harmed:
        return f"a lower weight of the features: --feature-weight {lower} in place of {weight:g}"
    return f"another weight of the features: --feature-weight {higher} or {lower} in place of {weight:g}"


def _about_training(config: RunConfig, result: Result, folder: str) -> list[str]:
    tries, epochs = [], config.train.epochs
    if epochs and result.validation.get("epoch") == epochs:
        more = f"kdcli distill --resume {folder} --epochs {2 * epochs}"
        tries.append(f"more epochs, as the last one was the best: {more}")
    if config.data.unlabelled is None and config.task_facts.target == "label":
        noun = f"{config.task_facts.modality}s"
        tries.append(f"more {noun}, which need no labels: --set data.unlabelled=FOLDER")
    return tries
