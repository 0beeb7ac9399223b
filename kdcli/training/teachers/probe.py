"""A teacher of other classes, of another task or of none is probed on labelled training samples before it teaches."""

from __future__ import annotations

from dataclasses import replace

from kdcli.machine.team import Team
from kdcli.plan.plan import Decision
from kdcli.training.job import Job
from kdcli.training.teachers.features import SIDE, Probed, best_of, probe_features

DECISION = "teacher probed"
"""What the plan's decision about it is called."""


def probe_teacher(job: Job, team: Team) -> Job:
    """Return ``job`` with what the teacher's features tell of the classes in its plan, where nothing else measures it.

    That is for the relations cross and random, where each sample has one class; features are those that are distilled.
    One of several processes does it alone.

    Args:
        job: not begun.
        team: says which process this is.

    Raises:
        UserError: none of the samples can be read.
    """
    taps = _taps(job)
    if job.teacher is None or not taps or not team.is_main:
        return job
    probed = probe_features(job.config, job.teacher, job.data, taps, linear=True)
    if probed is None:
        reason = f"There are no two classes with two labelled training {job.data.facts.noun}s each."
        return replace(job, plan=job.plan.with_decisions([Decision(DECISION, "no", reason)]))
    best = best_of(probed.linear, taps)
    decision = _describe(job, probed, taps, best)
    found = {
        "accuracy": probed.linear[best],
        "level": probed.levels[best],
        "of_input": probed.of_input,
        "samples": probed.samples,
    }
    return replace(job, plan=replace(job.plan.with_decisions([decision]), teacher_probe=found))


def _taps(job: Job) -> tuple[str, ...]:
    """Return the teacher's features that are distilled; nothing where it is not to be probed."""
    if job.plan.relation not in ("cross", "random") or job.data.facts.label_kind != "class":
        return ()
    stage = () if job.plan.embedding is None else job.plan.embedding.methods
    methods = [options for options in (*stage, *job.plan.methods) if options.needs.teacher]
    return tuple(dict.fromkeys(pair.teacher for options in methods for pair in options.pairs))


_INPUTS = {"image": f"the images themselves, {SIDE}x{SIDE} pixels,", "text": "counts of words"}


def _describe(job: Job, probed: Probed, taps: tuple[str, ...], best: str) -> Decision:
    noun = job.data.facts.noun
    shown = ", ".join(f"{probed.linear[tap]:.4f} ({tap})" for tap in taps)
    reason = (
        "Of a linear classifier on the features that are distilled, in cross-validation. Guessing gives"
        f" {probed.guessing}, {_INPUTS[noun]} {probed.of_input:.4f}."
    )
    warning = ""
    if probed.levels[best] == "near":
        task = "" if noun == "image" else f" --task {job.config.task}"
        warning = (
            "Warning: they tell nothing of your classes, so expect no help of this teacher; 'kdcli models"
            f" probe{task}' ranks others."
        )
    elif probed.levels[best] == "unsure":
        warning = f"{probed.samples} {noun}s are too few to tell this from guessing."
    value = f"accuracy {shown}, {probed.samples} training {noun}s of {probed.classes} classes"
    brief = f"accuracy {shown}; {probed.guessing} by guessing, {probed.of_input:.4f} of {_INPUTS[noun].rstrip(',')}"
    return Decision(
        DECISION,
        value,
        f"{f'{reason} {warning}'.rstrip()} It took {probed.seconds:.1f} s, once.",
        warning=warning,
        brief=brief,
    )
