"""How the teacher's outputs are come by in training: decided in the plan, opened by the trainer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kdcli.data import AnyBatch, Text, TextSource
from kdcli.machine.team import Team
from kdcli.plan.outputs import choose_outputs
from kdcli.training.job import Job
from kdcli.training.teachers.forward import Form, form_of, has_forms
from kdcli.training.teachers.sharded import even, teacher_on
from kdcli.training.teachers.teacher import LiveTeacher, StoredTeacher, Teacher


def decide_outputs(job: Job) -> Job:
    """Return ``job`` with its plan saying whether the teacher is run on every batch or once on every sample.

    Only whole texts are the same in every epoch: images are augmented, and tokens masked anew, and too many.
    """
    task = job.config.task_facts
    if job.teacher is None or task.reads_images or task.is_over_tokens:
        return job
    source = job.train_source()
    assert isinstance(source, TextSource)
    facts, reads = job.teacher.facts, job.distiller.teacher_reads
    outputs, decisions = choose_outputs(
        num_samples=len(set(source.texts)),
        numbers=sum(facts.feature_dims[tap] for tap in reads.features) + facts.num_classes * len(reads.heads),
        epochs=job.config.train.epochs,
        noun=job.data.facts.noun,
    )
    return replace(job, plan=replace(job.plan.with_decisions(decisions), teacher_outputs=outputs))


def open_teacher(job: Job, team: Team) -> Teacher | None:
    """Place the teacher on the device, and return what gives its outputs, as the plan says; None without a teacher."""
    if job.teacher is None:
        return None
    teacher, reads = teacher_on(job, team), job.distiller.teacher_reads
    form = form_of(job.config) if has_forms(job.config) else Form()
    live = LiveTeacher(teacher, reads, form, compiles=job.config.teacher.compile)
    if job.plan.teacher_outputs == "live":
        return live
    source = job.train_source()
    assert isinstance(source, TextSource), "the plan stores outputs for texts alone"
    # Texts of one length after the other need the least padding.
    texts: list[Text] = sorted(set(source.texts), key=lambda text: (len("".join(text)), text))
    row_of = {text: row for row, text in enumerate(texts)}
    place_of = {text: place for place, text in enumerate(source.texts)}
    rows = {sample: row_of[text] for sample, text in zip(source.ids.tolist(), source.texts, strict=True)}

    def batches() -> Iterable[AnyBatch]:
        once = source.take(place_of[text] for text in texts)
        own = even(job, job.eval_loader(once, live.facts.preprocessing, team), team)
        return (batch.to(team.device) for batch in own)

    return StoredTeacher(live, rows, batches, team)
