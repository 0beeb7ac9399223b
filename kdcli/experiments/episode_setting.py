"""What all episodes have in common: data, models, plans and the sampler."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdcli.base.errors import UserError
from kdcli.base.tasks import DEFAULT_TASK
from kdcli.config.run import RunConfig
from kdcli.config.training import EpisodesConfig
from kdcli.data import ImageData, ImageSource, open_data
from kdcli.data.images.channels import in_channels_of
from kdcli.experiments.sampling import Episode, EpisodeSampler
from kdcli.machine.devices import make_accelerator, resolve_precision
from kdcli.machine.launch import is_launched
from kdcli.machine.seeding import stable_seed
from kdcli.machine.team import Team
from kdcli.models import build_student, load_teacher
from kdcli.models.base import Model
from kdcli.models.layers import open_taps
from kdcli.models.roundtrip import check_reloads
from kdcli.models.settle import settle_models
from kdcli.plan.decide import make_plan
from kdcli.plan.outputs import check_cache
from kdcli.plan.plan import Decision, Plan
from kdcli.plan.relation import situation_of
from kdcli.tasks import build_task
from kdcli.training.job import Job, student_source
from kdcli.training.prepare import assemble_job, job_costs, teacher_embedder
from kdcli.training.teachers.check import check_teacher

ARMS = {
    "distilled": "distilled student",
    "fine_tuned": "student fine-tuned alone",
    "nearest_neighbour": "1-nearest-neighbour on the teacher's features",
    "nearest_class_mean": "nearest class mean of the teacher's features",
    "linear_classifier": "linear classifier on the teacher's features",
}
"""What is compared, and what it is called in tables."""


@dataclass(frozen=True)
class Stage:
    """A training of a student; its plan's label map is over all of the data's classes."""

    config: RunConfig
    plan: Plan


@dataclass(frozen=True)
class Setting:
    """Everything that the episodes have in common, loaded once.

    Attributes:
        config: resolved.
        plan: what is shown and written.
        stages: arm to the trainings of its student, one after the other.
        data: all of them.
        queries: the split that the queries are drawn from.
        teacher: frozen.
        student: with an N-way head; copied for each training.
        sampler: draws the episodes.
        tap: the teacher's features that its own arms read.
    """

    config: RunConfig
    plan: Plan
    stages: Mapping[str, tuple[Stage, ...]]
    data: ImageData
    queries: ImageSource
    teacher: Model
    student: Model
    sampler: EpisodeSampler
    tap: str

    def job(self, number: int, episode: Episode, stage: Stage, start: Model) -> Job:
        """Return the training of a copy of ``start`` on the support images; the queries are out of its reach."""
        config, plan = stage.config, stage.plan
        names = tuple(self.data.facts.class_names[label] for label in episode.classes)
        support = episode_images(self.data.train, episode.support, len(names))
        size = len(support)
        facts = replace(
            self.data.facts, class_names=names, num_train=size, num_labelled=size, num_validation=size, num_test=0
        )
        if plan.label_map is not None:
            plan = replace(plan, label_map=tuple(plan.label_map[label] for label in episode.classes))
        train = config.train.model_copy(update={"validate_every": config.train.epochs})  # nothing is chosen by it
        seed = stable_seed("episode", config.seed, number) % 2**31
        return assemble_job(
            config.model_copy(update={"seed": seed, "train": train}),
            plan,
            data=ImageData(facts, train=support, validation=support, test=None),
            teacher=None if config.teacher.name == "none" else self.teacher,
            student=copy.deepcopy(start).train().requires_grad_(True),  # an averaged one is frozen
        )


def prepare_episodes(config: RunConfig) -> Setting:
    """Load data and models, make the plan, and check that episodes can be drawn.

    Raises:
        UserError: for anything in the config that can't be had, doesn't fit, or has no place in episodes.
    """
    _check_options(config)
    check_cache(config)
    config = settle_models(config)
    episodes = config.episodes
    assert episodes is not None
    data = in_channels_of(config, open_data(config.data, seed=config.seed))
    queries = data.test if episodes.split == "test" else data.validation
    if queries is None:
        raise UserError(
            f"{data.facts.name} has no test split to draw queries from.", "Add --set episodes.split=validation."
        )
    names = data.facts.class_names
    sampler = EpisodeSampler(
        episodes, train=data.train.labels, queries=queries.labels, class_names=names, seed=config.seed
    )
    teacher = load_teacher(config.teacher, seed=config.seed, channels=config.data.channels)
    head = tuple(f"class {number + 1} of {episodes.ways}" for number in range(episodes.ways))
    source = student_source(config, teacher)
    student = build_student(config.student, replace(data.facts, class_names=head), seed=config.seed, source=source)
    check_reloads(student, label=config.student.name)
    config = open_taps(config, teacher, student)
    situation = situation_of(config, teacher=teacher.facts, student=student.facts, data=data.facts)
    plan = make_plan(situation)
    resolved = plan.resolve(config)
    alone = resolved.alone()
    distilled = [Stage(resolved, plan)]
    if resolved.embedding is not None:
        before = resolved.embedding_stage()
        distilled.insert(0, Stage(before, make_plan(replace(situation, config=before))))
    fine_tuned = Stage(alone, make_plan(situation_of(alone, teacher=None, student=student.facts, data=data.facts)))
    stages = {"distilled": tuple(distilled), "fine_tuned": (fine_tuned,)}
    tap = "embedding" if "embedding" in teacher.facts.feature_dims else "pooled"
    plan = plan.with_decisions(_describe_episodes(config, episodes, f"{tap} ({teacher.facts.feature_dims[tap]})"))
    setting = Setting(resolved, plan, stages, data, queries, teacher, student, sampler, tap)
    batch_size = min(config.train.batch_size, episodes.ways * episodes.shots)
    last = Stage(
        resolved.model_copy(update={"train": config.train.model_copy(update={"batch_size": batch_size})}), plan
    )
    job = setting.job(1, sampler.draw(1), last, student)
    plan = plan.with_decisions(job_costs(job, mixed_precision=resolve_precision(config.train)))
    return replace(setting, plan=plan)


def measured_plan(setting: Setting) -> Plan:
    """Return the plan with what the teacher is measured to know of all the data's classes, where it has them."""
    team = Team.of(make_accelerator(setting.config.train))
    job = setting.job(1, setting.sampler.draw(1), setting.stages["distilled"][-1], setting.student)
    task = build_task(setting.data.facts, reference=teacher_embedder(setting.teacher))
    return check_teacher(replace(job, plan=setting.plan, task=task, data=setting.data), team).plan


def _check_options(config: RunConfig) -> None:
    """Refuse what has no place in episodes."""
    processes = int(os.environ.get("WORLD_SIZE", 1)) if is_launched() else config.train.num_processes or 1
    refused = {
        "--teacher none: there is nothing to distil, and the student alone is an arm already": config.teacher.name
        == "none",
        f"--task {config.task}: they are of images": config.task != DEFAULT_TASK,
        "--baseline: the student fine-tuned alone is always an arm": config.baseline,
        "data.labels_per_class: --shots says how many labels there are": config.data.labels_per_class is not None,
        "data.unlabelled: an episode has labelled images alone": config.data.unlabelled is not None,
        "--no-test: the queries are test images unless episodes.split=validation": not config.test
        and config.episodes is not None
        and config.episodes.split == "test",
        "--num-processes: an episode is trained by one process": processes > 1,
        "--track: there are hundreds of short trainings": bool(config.train.track),
        "train.compile: every student would be compiled anew": config.train.compile,
        "train.activation_checkpointing: their batches are small": config.train.activation_checkpointing,
        "teacher.precision: auto, which is measured before a training; bfloat16 is taken as it is": (
            config.teacher.precision == "auto"
        ),
        "teacher.precision of a quantised teacher": config.teacher.quantization is not None
        and config.teacher.precision is not None,
        "teacher.compile of a quantised teacher": config.teacher.quantization is not None and config.teacher.compile,
    }
    if found := [reason for reason, given in refused.items() if given]:
        raise UserError(f"Episodes can't have {'; nor '.join(found)}.", "Drop it, or drop --ways and --shots.")


def _describe_episodes(config: RunConfig, episodes: EpisodesConfig, features: str) -> list[Decision]:
    return [
        Decision(
            "episodes",
            f"{episodes.number} of {episodes.ways} classes, {episodes.shots} training and {episodes.queries}"
            f" {episodes.split} images of each",
            f"Classes and images are drawn by seed {config.seed} and the episode's number. Every student starts from"
            " the same weights.",
        ),
        Decision(
            "arms",
            "; ".join(ARMS.values()),
            f"All on the same episodes. The teacher's {features}, L2-normalised, without augmentation; logistic"
            " regression with C = 1.",
        ),
    ]


def episode_images(source: ImageSource, indices: Sequence[int], ways: int) -> ImageSource:
    """Return the images of an episode, class by class, with its own labels."""
    return source.take(indices, np.repeat(np.arange(ways), len(indices) // ways).tolist())
