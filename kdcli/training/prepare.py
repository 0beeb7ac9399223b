"""Config -> everything a run needs: data, models, plan, distiller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import Tensor

from kdcli.base.errors import UserError, all_of
from kdcli.base.facts import UNLABELLED
from kdcli.base.reads import Reads
from kdcli.base.text import short_repr
from kdcli.config.keys import check_domain
from kdcli.config.methods import any_reads_unlabelled
from kdcli.config.run import RunConfig
from kdcli.data import (
    AnyBatch,
    ImageData,
    TextData,
)
from kdcli.data.epoch import train_indices
from kdcli.data.images.channels import in_channels_of
from kdcli.machine.team import ALONE, Team
from kdcli.models import load_saved, load_teacher
from kdcli.models.base import Model
from kdcli.models.latency import known_latency
from kdcli.models.layers import open_taps
from kdcli.models.loading import wrong_names
from kdcli.models.roundtrip import check_reloads
from kdcli.models.settle import settle_models
from kdcli.models.values import check_tensors
from kdcli.plan.decide import make_plan
from kdcli.plan.describe import describe_costs
from kdcli.plan.outputs import check_cache
from kdcli.plan.plan import Decision, Plan
from kdcli.plan.relation import situation_of
from kdcli.plan.settings import tell_settings
from kdcli.runs.folder import RunFolder
from kdcli.tasks import Task, build_task, task_class
from kdcli.training.classes import describe_classes, weights_of
from kdcli.training.distiller import Distiller
from kdcli.training.job import Job, build_methods, context_of, student_of
from kdcli.training.teachers.layers import open_levels, score_layers
from kdcli.training.teachers.outputs import decide_cache, decide_outputs


def prepare_job(config: RunConfig, team: Team = ALONE, *, student: Model | None = None) -> Job:
    """Load data and models, make the plan and build the distiller.

    An earlier stage of the run is a job of its own, :func:`embedding_job`.

    Args:
        config: of the run.
        team: of the processes that train.
        student: used as it is; by default the config's is built.

    Raises:
        UserError: for anything in the config that can't be had or doesn't fit.
    """
    if config.teacher.name == "none":
        for key, value in config.teacher.model_dump(exclude={"name"}, exclude_defaults=True).items():
            raise UserError(f"The teacher is none, but teacher.{key} is set: {short_repr(value)}.", "Name the teacher.")
    check_domain(config)
    check_cache(config)
    config = settle_models(config)
    has_teacher = config.teacher.name != "none"
    wrong = wrong_names(config.teacher, config.student, task=config.task) if student is None else []
    try:
        data = task_class(config.extension_task or config.task).open(
            config.data, seed=config.seed, evaluation=config.eval_data
        )
    except UserError as error:
        raise all_of([*wrong, error]) from error
    if wrong:
        raise all_of(wrong)
    data = in_channels_of(config, data)
    _check_classes(data)
    config = task_class(config.extension_task or config.task).with_usual(config, data.facts)
    config = config.model_copy(update={"data": data.settle(config.data)})
    teacher: Model | None = None
    if has_teacher:
        teacher = load_teacher(config.teacher, seed=config.seed, task=config.task, channels=config.data.channels)
    is_new = student is None
    return _make_job(config, data, teacher, student, team, with_latencies=is_new)


def _check_classes(data: ImageData | TextData) -> None:
    """Refuse a label that is no class: a task of another package opens data by itself, and a GPU says nothing clear."""
    if data.facts.label_kind != "class":
        return
    count = len(data.facts.class_names)
    for split, source in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        if source is None:
            continue
        for label in sorted(set(source.labels)):
            if label != UNLABELLED and not 0 <= label < count:
                sample = source.describe(list(source.labels).index(label))
                raise UserError(
                    f"{data.facts.name}: {sample} of the {split} split has the label {label}, and the {count} classes"
                    f" are numbered 0 to {count - 1}.",
                    f"Mend what reads these data; {UNLABELLED} stands for no label.",
                )


def embedding_job(job: Job, team: Team = ALONE) -> Job:
    """Return the job of the stage before ``job``: its data and teacher, and a student of its own.

    The test split is left to the end of the whole run.
    """
    stage = _make_job(
        job.config.embedding_stage(),
        replace(job.data, test=None),
        job.teacher,
        None,
        team,
        with_latencies=False,
    )
    return decide_cache(stage, team)


def _make_job(
    config: RunConfig,
    data: ImageData | TextData,
    teacher: Model | None,
    student: Model | None,
    team: Team,
    *,
    with_latencies: bool,
) -> Job:
    if student is None:
        student = student_of(config, data, teacher)
        if team.is_main:  # several processes build the same one, and transformers saves in the first alone
            check_reloads(student, label=config.student.name)
    make_task(config, data, teacher).check(teacher, student, data)
    config = open_taps(config, teacher, student)
    student.compare_last_features()
    layers = score_layers(config, teacher, data, team)
    open_levels(config, teacher, student, data.facts)
    if config.train.activation_checkpointing:
        student.recompute_activations()
    situation = situation_of(
        config,
        teacher=None if teacher is None else teacher.facts,
        student=student.facts,
        data=data.facts,
        latencies=(known_latency(teacher), known_latency(student)) if with_latencies and teacher is not None else None,
        layers=layers,
    )
    plan = make_plan(situation)
    job = assemble_job(config, plan, data=data, teacher=teacher, student=student)
    if config.task_extension is not None:
        reason = f"Asked for: another package's loss and metrics, on the data and models of {config.task}."
        plan = plan.with_decisions([Decision("task", f"{config.task_extension}; {job.monitor} chooses", reason)])
    if (decision := _describe_epoch(config, plan, data)) is not None:
        plan = plan.with_decisions([decision])
    plan = plan.with_decisions(describe_classes(config, data, plan.every_method))
    plan = plan.with_decisions(tell_settings(config, student.facts, data.facts))
    plan = plan.with_decisions(job.task.decisions(config, teacher, student, data, job.pieces))
    for split, source in (("validation", data.validation), ("test", data.test if config.test else None)):
        if source is not None:  # one on which nothing can be measured is refused now, and not after training
            job.task.check_split(source if job.pieces is None else job.pieces(source), split)
    _check_share(job, team)
    job = decide_outputs(replace(job, plan=plan, situation=situation))
    return replace(job, plan=job.plan.with_decisions(job_costs(job, mixed_precision=team.precision)))


def _check_share(job: Job, team: Team) -> None:
    """Refuse one sample a process and step for a student whose batch normalisations can't be trained on one."""
    train, size = job.config.train, team.size
    share = min(train.batch_size, len(job.train_source())) // size
    if share > 1 or not train.epochs or (size > 1 and train.sync_batchnorm and team.device.type == "cuda"):
        return
    if norms := job.student.narrow_norms():
        noun = job.data.facts.noun
        raise UserError(
            f"{job.student.facts.name} can't be trained on one {noun} at a time: its batch normalisation {norms[0]}"
            f" gets one value a channel of it, and {'each process' if size > 1 else 'the run'} has one {noun} a step.",
            f"Give it 2 or more: a batch of {2 * size} (--batch-size), and as many training {noun}s.",
        )


def assemble_job(
    config: RunConfig, plan: Plan, *, data: ImageData | TextData, teacher: Model | None, student: Model
) -> Job:
    """Put together what is loaded and decided already.

    Args:
        config: of the run; its seed initialises the projectors.
        plan: its ``label_map`` is over the classes of ``data``.
        data: the splits.
        teacher: frozen, with the plan's taps open; or None.
        student: likewise open; it is trained as it is.
    """
    task = make_task(config, data, teacher)
    context = context_of(config, plan, task, data, teacher, student)
    distiller = Distiller(student, build_methods(plan.methods, context, seed=config.seed), teacher=teacher)
    cut = task.cutter(config, teacher, student)
    return Job(plan.resolve(config), plan, task, data, teacher, distiller, None if cut is None else cache(cut))


def make_task(config: RunConfig, data: ImageData | TextData, teacher: Model | None) -> Task:
    """Return the run's task for what is known of ``data``."""
    task = build_task(data.facts, reference=teacher_embedder(teacher), extension=config.extension_task)
    task.class_weights = weights_of(config, data, task)
    return task


def teacher_embedder(teacher: Model | None) -> Callable[[AnyBatch], Tensor]:
    """Return what makes the teacher's pooled features (B, d) of a batch."""

    def embed(batch: AnyBatch) -> Tensor:
        assert teacher is not None, "the plan lets no task that compares with a teacher pass without one"
        return teacher(teacher.prepare(batch), Reads(("pooled",))).features["pooled"]

    return embed


def job_costs(job: Job, *, mixed_precision: str) -> list[Decision]:
    """Return the decisions about trainable parameters, memory and computation."""
    return describe_costs(
        job.config,
        teacher=None if job.teacher is None else job.teacher.facts,
        student=job.student.facts,
        trainable_parameters=sum(p.numel() for p in job.distiller.parameters() if p.requires_grad),
        mixed_precision=mixed_precision,
        num_samples=len(job.train_source()),
    )


def _describe_epoch(config: RunConfig, plan: Plan, data: ImageData | TextData) -> Decision | None:
    reads_unlabelled, noun = any_reads_unlabelled(plan.methods), data.facts.noun
    share = config.data.labelled_share
    indices = train_indices(data.train.labels, labelled_share=share, reads_unlabelled=reads_unlabelled)
    if indices is None:
        return None
    if not reads_unlabelled:
        why = f"Nothing but labels is read: unlabelled {noun}s are left out, and an epoch keeps its steps."
        return Decision("epoch", f"{len(indices)} {noun}s: {data.facts.num_labelled} labelled ones, repeated", why)
    num_unlabelled = data.facts.num_train - data.facts.num_labelled
    value = f"{len(indices)} {noun}s: {num_unlabelled} without labels, {len(indices) - num_unlabelled} with"
    why = (
        f"Labelled {noun}s are repeated to {share:.0%} of an epoch (data.labelled_share), so that every batch has some."
    )
    return Decision("epoch", value, why)


def reopen_job(run: RunFolder) -> Job:
    """Rebuild the job of a finished run with its best student and projectors."""
    job = prepare_job(run.read_config(), student=load_saved(run.student))
    methods, tensors = job.distiller.methods, run.read_tensors("projector.safetensors")
    new = {name: tensor.clone() for name, tensor in methods.state_dict().items()}
    try:
        methods.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{run.path / 'projector.safetensors'} does not go with the run's config.yaml:"
            f" {str(error).splitlines()[-1].strip()}",
            "The run has to be repeated.",
        ) from None
    check_tensors(str(run.path / "projector.safetensors"), new, tensors)
    job.distiller.eval()
    return job
