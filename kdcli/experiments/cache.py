"""``kdcli cache``: a teacher is run on all that a training would read of it, and what it gives is kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice

from kdcli.base.errors import UserError
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch
from kdcli.experiments.distill import planned_job
from kdcli.experiments.output import Output
from kdcli.machine.control import Control, Every, Verdict
from kdcli.machine.devices import leave_processes
from kdcli.machine.launch import launch, processes_to_start
from kdcli.machine.team import Team
from kdcli.plan.outputs import CACHE
from kdcli.terminal.console import show_lines, show_note
from kdcli.training.job import Job
from kdcli.training.prepare import embedding_job
from kdcli.training.teachers.cached import CachedTeacher, keys_of, names_of
from kdcli.training.teachers.outputs import open_teacher, view_groups, why_not_kept

_AT_END = (["Stopped; what is there is kept. The same command goes on."], ["All is there."])
"""What is told at the end: stopped, or done."""


def fill_cache(config: RunConfig, *, output: Output, dry_run: bool) -> int:
    """Fill the cache of a run, and of its earlier stage where it has one; go on where an earlier command stopped.

    Each of several processes runs the teacher on a part of the batches of every epoch, as a training in one process has
    them.

    Args:
        config: of the run.
        output: what to print.
        dry_run: stop after saying what would be kept.

    Returns:
        The exit code: 0, or 128 and the number of the signal that stopped it.

    Raises:
        UserError: there is nothing to be kept, nowhere to keep it, or no room for it.
    """
    if config.train.cache_teacher is None:
        raise UserError("Where to keep the teacher's outputs is not said.", "Name a folder: --cache-teacher DIR")
    num_processes = processes_to_start(config.train)
    if num_processes > 1 and not dry_run:
        code = launch(num_processes, sys.argv[1:])
        with output.applied():
            show_lines(_AT_END[code == 0])
        return code
    with output.applied():
        job, accelerator = planned_job(config)
        team = Team.of(accelerator)
        jobs = [job] if job.config.embedding is None else [embedding_job(job, team), job]
        for one in jobs:
            if reason := why_not_kept(one):
                raise UserError(f"Nothing of {one.config.teacher.name} can be kept: {reason}", "Train without a cache.")
            show_lines([f"{row.value} ({row.reason})" for row in one.plan.decisions if row.name == CACHE])
        if dry_run:
            return 0
        control = Control(Every.parse("10m"))
        with control.listening():
            for one in jobs:
                verdict = _fill(one, team, control)
                if verdict.is_stop:
                    break
    if team.is_alone:
        with output.applied():
            show_lines(_AT_END[not verdict.is_stop])
    leave_processes()
    return verdict.exit_code if verdict.is_stop else 0


def _fill(job: Job, team: Team, control: Control) -> Verdict:
    """Keep this process's share; return what a signal asked for meanwhile."""

    def fail(error: UserError) -> None:
        raise error

    # Whole batches, as a training in one process has them; of texts the processes share the batches anyway.
    is_stored = job.plan.teacher_outputs == "stored"
    own = team if is_stored else Team(device=team.device, precision=team.precision, autocast=team.autocast)
    teacher = open_teacher(job, own, show_note, refused=fail)
    assert teacher is not None
    try:
        teacher.begin(lambda: None)
        if is_stored:
            return Verdict.GO_ON
        assert isinstance(teacher, CachedTeacher)
        for batch in _batches(job, own, team, teacher):
            with own.autocast():
                teacher(batch)
            if (verdict := control.after(0)).is_stop:
                return verdict
    finally:
        teacher.end()
    return Verdict.GO_ON


def _batches(job: Job, own: Team, team: Team, teacher: CachedTeacher) -> Iterator[AnyBatch]:
    """Yield the batches of this process's share, epoch by epoch, from the first that is not there as a whole."""
    assert teacher.store is not None
    config, source, loader, mix = job.config, job.train_source(), job.train_loader(own), job.mix()
    number, names = loader.batches_per_epoch, names_of(teacher.reads)
    first, last = team.rank * number // team.size, (team.rank + 1) * number // team.size
    order = job.train_order()
    before = 0 if config.embedding is None else config.embedding.epochs
    groups = view_groups(job)
    for epoch, group in enumerate(groups, before):
        order.epoch, order.start = epoch, first
        batches = list(islice(order, last - first))
        views, indices = zip(*(key for batch in batches for key in batch), strict=True) if batches else ((0,), ())
        ids = source.samples(indices), source.views(indices, views[0])
        keys = keys_of(*ids, source.num_copies)[1]
        missing = ~teacher.store.present(group, keys, names)
        if missing.any():
            # Texts of one length may be brought together: then the order is another one.
            start = first + int(missing.argmax()) // len(batches[0]) if config.reads_images else first
            for place, batch in enumerate(islice(loader.epoch(epoch, start), last - start), start):
                yield mix(batch.to(own.device), epoch, epoch * number + place)
            teacher.store.flush()
        show_lines([f"view {epoch - before + 1} of {len(groups)} is there"])
