"""How the teacher's outputs are come by in training: decided in the plan, opened by the trainer."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.reads import LOGITS, Reads
from kdcli.config.data import AugmentConfig
from kdcli.data import AnyBatch, Text, TextSource
from kdcli.machine.team import Team
from kdcli.models.base import Model, to_device
from kdcli.plan.outputs import CACHE, CacheFacts, choose_outputs, describe_cache, propose_cache
from kdcli.plan.plan import Decision
from kdcli.training.job import Job
from kdcli.training.teachers.cached import CachedTeacher, group_of, names_of
from kdcli.training.teachers.forward import Form, form_of, has_forms
from kdcli.training.teachers.identity import cache_folder_of, check_identity, found_cache, identity_of
from kdcli.training.teachers.sharded import even, teacher_on
from kdcli.training.teachers.store import Store
from kdcli.training.teachers.teacher import LiveTeacher, StoredTeacher, Teacher

_UNAUGMENTED = AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0)


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


def decide_cache(job: Job, team: Team) -> Job:
    """Return ``job`` with its plan saying what comes of a teacher cache: its size, what it spares, how much is there.

    Without one that is asked for, the plan proposes it where it would pay.

    Args:
        job: whose config has all that the teacher's outputs depend on.
        team: of the processes that train.

    Raises:
        UserError: the cache is of other outputs.
    """
    config = job.config
    if job.teacher is None:
        return job
    if config.train.cache_teacher is None:
        return replace(job, plan=job.plan.with_decisions(_proposal(job)))
    reads = job.distiller.teacher_reads
    if reason := why_not_kept(job):
        reason += " The teacher is come by as without a cache."
        told = Decision(CACHE, f"not used: {config.train.cache_teacher}", reason)
        return replace(job, plan=job.plan.with_decisions([told]))
    identity = team.broadcast(identity_of(job, team) if team.is_main else {})
    folder = cache_folder_of(config)
    outputs = _example_outputs(job.teacher, reads)
    width = getattr(torch, config.train.cache_dtype).itemsize
    sizes = (tensor.numel() * min(width, tensor.element_size()) for tensor in outputs.values())
    facts = _cache_facts(job, sum(sizes))
    present = 0.0
    damaged: list[str] = []
    if check_identity(folder, identity) and facts.samples * facts.views:
        present = _count(job, Store(folder, warn=damaged.append, refused=_ignore)) / (facts.samples * facts.views)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    decision = describe_cache(config, facts, present=present, free=shutil.disk_usage(there).free)
    decision = replace(decision, reason=" ".join([decision.reason, *damaged]))
    return replace(job, plan=job.plan.with_decisions([decision]), cache_identity=identity)


def why_not_kept(job: Job) -> str:
    """Return why a run's teacher outputs can't be kept on disk, as a sentence; nothing where they can."""
    reads, teacher = job.distiller.teacher_reads, job.teacher
    assert teacher is not None
    if job.config.teacher.sharded:
        return "All processes run a teacher in shares together, and each would look up its own batches."
    if not reads:
        return "No method reads its outputs of the training batches."
    if job.config.task_facts.is_over_tokens:
        return "Its outputs are of tokens or words, of which every text has another number."
    if not _example_outputs(teacher, reads):
        return f"What it gives as {', '.join(reads.heads)} is not one tensor of the same shape for every sample."
    return ""


def _example_outputs(teacher: Model, reads: Reads) -> dict[str, Tensor]:
    """Return what is read of one sample, by its name in a store; nothing where not all of it is a tensor of one row."""
    with torch.no_grad():
        output = teacher(to_device(teacher.example(), next(teacher.parameters()).device), reads)
    parts = {"features": output.features, "maps": output.maps, "heads": output.heads}
    found = {name: parts[name.partition("/")[0]][name.partition("/")[2]] for name in names_of(reads)}
    return found if all(isinstance(value, Tensor) and len(value) == 1 for value in found.values()) else {}


def _cache_facts(job: Job, bytes_each: int) -> CacheFacts:
    config, teacher = job.config, job.teacher
    assert teacher is not None
    train, source = config.train, job.train_source()
    views = len(view_groups(job))
    # An epoch leaves some over, and another epoch of the same view others.
    samples = job.train_order().num_trained if views == train.epochs else len(source)
    if job.plan.teacher_outputs == "stored":
        assert isinstance(source, TextSource)
        views, samples = 1, len(set(source.texts))
    pass_of = teacher.facts.macs
    whole = pass_of + 3 * job.student.facts.macs
    return CacheFacts(
        noun=job.data.facts.noun,
        samples=samples,
        views=views,
        epochs=train.epochs,
        bytes_each=bytes_each,
        teacher_share=pass_of / whole if whole else 0.0,
        is_augmented=not config.reads_images or config.augment != _UNAUGMENTED,
    )


def _proposal(job: Job) -> Sequence[Decision]:
    """Return what is proposed where nobody asked for a cache; sizes are those of facts, nothing is run for it."""
    teacher, reads, task = job.teacher, job.distiller.teacher_reads, job.config.task_facts
    assert teacher is not None
    are_known = set(reads.heads) <= {LOGITS} and not (reads.heads and job.data.facts.labels.is_dense)
    if not task.reads_images or job.config.episodes is not None or not are_known:
        return ()
    facts = teacher.facts
    numbers = sum(facts.feature_dims[tap] for tap in reads.features) + facts.num_classes * len(reads.heads)
    numbers += sum(facts.feature_dims[tap] * math.prod(facts.grids[tap]) for tap in reads.maps)
    return propose_cache(_cache_facts(job, getattr(torch, job.config.train.cache_dtype).itemsize * numbers))


def view_groups(job: Job) -> list[str]:
    """Return the groups of a cache that the run's epochs read, each once, in their order."""
    train, embedding = job.config.train, job.config.embedding
    before = 0 if embedding is None else embedding.epochs
    epochs = range(before, before + train.epochs)
    views = epochs if train.cache_views is None else (epoch % train.cache_views for epoch in epochs)
    return [group_of(view) for view in dict.fromkeys(views)]


def _count(job: Job, store: Store) -> int:
    """Return of how many samples and views a cache has all that is read."""
    groups = ["evaluation"] if job.plan.teacher_outputs == "stored" else view_groups(job)
    return sum(store.count(group, names_of(job.distiller.teacher_reads)) for group in groups)


def _ignore(error: UserError) -> None:
    """Do nothing: counting writes nothing."""


def open_teacher(
    job: Job,
    team: Team,
    warn: Callable[[str], None],
    *,
    refused: Callable[[UserError], None] | None = None,
) -> Teacher | None:
    """Place the teacher on the device, and return what gives its outputs, as the plan says; None without a teacher.

    Args:
        job: whose plan is made.
        team: the processes.
        warn: told of what is wrong with a cache, where training goes on.
        refused: told where a cache can't be written; by default that is a warning, and training goes on without.
    """
    if job.teacher is None:
        return None
    teacher, reads = teacher_on(job, team), job.distiller.teacher_reads
    form = form_of(job.config) if has_forms(job.config) else Form()
    live = _kept(job, LiveTeacher(teacher, reads, form, compiles=job.config.teacher.compile), warn, refused)
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


def _kept(job: Job, live: Teacher, warn: Callable[[str], None], refused: Callable[[UserError], None] | None) -> Teacher:
    """Return the teacher with its cache, or with the rounding of one; itself with neither."""
    train = job.config.train
    store: Store | None = None
    if job.cache_identity is not None:

        def give_up(error: UserError) -> None:
            warn(f"The teacher cache can't be written, and training goes on without: {error.message} {error.hint}")

        store = Store(cache_folder_of(job.config), warn=warn, refused=refused or give_up)
        try:
            found_cache(store.folder, store, job.cache_identity)
        except UserError as error:
            if check_identity(store.folder, job.cache_identity):
                store.is_open = False  # one that can be read, and not written to
            else:
                store = None
            (refused or give_up)(error)
    elif train.cache_dtype == "float32" or why_not_kept(job):
        return live
    return CachedTeacher(live, store, train.cache_dtype, job.train_source().num_copies)
