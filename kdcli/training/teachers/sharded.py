"""Where the teacher is: on every process's device, or in shares among the processes, which gather a block to run it.

The shares are torch's FSDP2. What is gathered is run by all processes together: a process that has no more batches than
the others goes along with samples that count for nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import nn

from kdcli.base.errors import UserError
from kdcli.data import AnyBatch
from kdcli.machine.team import Team
from kdcli.models.base import Model, to_device
from kdcli.training.job import Job

_shared: WeakKeyDictionary[Model, Model] = WeakKeyDictionary()
"""The copies of teachers that are in shares; the teachers themselves stay whole, on the CPU."""


def teacher_on(job: Job, team: Team) -> Model:
    """Return the job's teacher, frozen, to be run on the team's device: itself, or a copy in shares.

    Args:
        job: with a teacher; its ``teacher.sharded`` is followed.
        team: in shares, all its processes have to call this, and later to run the teacher, together.

    Raises:
        UserError: it can't be in shares.
    """
    teacher = job.teacher
    assert teacher is not None
    if not job.config.teacher.sharded:
        return teacher.to(team.device)
    if teacher not in _shared:
        _check(job, teacher, team)
        _shared[teacher] = _shard(copy.deepcopy(teacher), team)
    return _shared[teacher]


def even(job: Job, batches: Iterable[AnyBatch], team: Team) -> Iterator[AnyBatch]:
    """Yield this process's batches; while other processes have more, run a teacher in shares along.

    Each batch with a sample is to be run once before the next one is asked for.
    """
    shared = None if job.teacher is None else _shared.get(job.teacher)
    if shared is None:
        yield from batches
        return
    for batch in team.in_step(batches):
        if batch is None or not len(batch):
            with torch.no_grad(), team.autocast():
                shared(to_device(shared.example(), team.device))
        if batch is not None:
            yield batch


def _check(job: Job, teacher: Model, team: Team) -> None:
    facts, why = job.data.facts, ""
    if team.is_alone:
        why = "there is one process; --num-processes N starts more"
    elif job.config.teacher.quantization is not None:
        why = "it is quantised, and bitsandbytes' weights are not cut into shares"
    elif job.distiller.adversaries():
        why = "a method runs it on samples of its own"
    elif job.is_label_free:
        why = f"the task {facts.task} compares with the whole teacher in evaluation"
    elif not teacher.is_one_pass:
        why = "padding changes it, so that every process runs it another number of times"
    if why:
        raise UserError(f"teacher.sharded is set, and {teacher.facts.name} can't be shared: {why}.", "Leave it out.")


def _shard(teacher: Model, team: Team) -> Model:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(team.device.type, (team.size,))
    teacher.runs_whole = True
    try:
        for block in _blocks(teacher.module):
            fully_shard(block, mesh=mesh)
        fully_shard(teacher, mesh=mesh)
        with torch.no_grad():
            teacher(to_device(teacher.example(), team.device))  # the first pass finds what can't be shared
    except ValueError as error:
        raise UserError(
            f"teacher.sharded is set, and {teacher.facts.name} can't be shared: {str(error).splitlines()[0]}",
            "Leave it out.",
        ) from error
    return teacher


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of a network's outermost lists and sequences that have parameters."""
    for child in module.children():
        if not isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from _blocks(child)
            continue
        for member in child:
            if isinstance(member, (nn.Sequential, nn.ModuleList)):
                yield from _blocks(nn.ModuleList([member]))
            elif any(True for _ in member.parameters()):
                yield member
