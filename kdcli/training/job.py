"""All that a run is made of, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, Preprocessing, TextPreprocessing
from kdcli.config.methods import MethodOptions, any_reads_unlabelled, named_methods
from kdcli.config.models import TeacherConfig
from kdcli.config.run import RunConfig
from kdcli.config.situation import Situation
from kdcli.data import (
    AnyBatch,
    EvalBatches,
    ImageData,
    Loading,
    Mix,
    Source,
    TextData,
    TrainBatches,
)
from kdcli.data.epoch import BalancedDraws, Order, train_indices
from kdcli.machine.team import ALONE, Team
from kdcli.methods import build_method
from kdcli.methods.base import Context, Method
from kdcli.models import build_student, load_teacher
from kdcli.models.base import Model
from kdcli.plan.plan import Plan
from kdcli.tasks import Task
from kdcli.tasks.base import Cut
from kdcli.tasks.features.class_means import NCM_ACCURACY
from kdcli.training.distiller import Distiller


@dataclass(frozen=True)
class Job:
    """A run, ready to be trained or analysed.

    Attributes:
        config: resolved: the plan's methods are written out.
        plan: the decisions.
        task: supervised loss and metrics.
        data: the splits.
        teacher: frozen, or None.
        distiller: holds the student and every other trainable thing.
        pieces: of a task over tokens, from a split's texts to pieces that both models can take, made once; otherwise
            None.
        situation: what the plan was made from; None where it was not made here.
        cache_identity: what the outputs in the teacher cache depend on; None where none is used.
    """

    config: RunConfig
    plan: Plan
    task: Task
    data: ImageData | TextData
    teacher: Model | None
    distiller: Distiller
    pieces: Cut | None = None
    situation: Situation | None = None
    cache_identity: Mapping[str, Any] | None = None

    @property
    def student(self) -> Model:
        """The model that is trained."""
        return self.distiller.student

    @property
    def trains_classifier(self) -> bool:
        """Whether any method trains the student's classifier; otherwise nearest class means take its place."""
        return self.config.trains_classifier

    @property
    def monitor(self) -> str:
        """The metric that the best student is chosen by; higher is better."""
        return self.task.monitor if self.trains_classifier or self.is_label_free else NCM_ACCURACY

    @property
    def is_label_free(self) -> bool:
        """Whether there are no labels: the student then has neither a classifier nor classes to take means of."""
        return self.data.facts.label_kind == "none"

    @property
    def labelled(self) -> ImageData | None:
        """The labelled images that the features of a student without labels are measured on at the end."""
        return self.data.labelled

    def initial_student(self) -> Model:
        """Build the student once more, as it was before training."""
        return student_of(self.config, self.data, self.teacher)

    def initial_projectors(self) -> dict[str, Tensor]:
        """Build the matrices of the projectors once more, as they were before training, by their methods' names."""
        context = context_of(self.config, self.plan, self.task, self.data, self.teacher, self.student)
        methods = build_methods(self.plan.methods, context, seed=self.config.seed)
        return Distiller(self.student, methods).projector_matrices()

    @property
    def measures_teacher(self) -> bool:
        """Whether the teacher predicts what the student does, so that its metrics stand beside the student's."""
        return self.teacher is not None and self.plan.relation == "same" and not self.is_label_free

    def labelled_samples(self) -> Source:
        """Return the training samples that have a label, each once."""
        train = self.data.train
        return train.take(index for index, label in enumerate(train.labels) if label != UNLABELLED)

    def train_loader(self, team: Team = ALONE) -> TrainBatches:
        """Return the batches of the training split, for one of several processes its share of each."""
        source, loading = self._read(self.train_source()), self._train_loading(team)
        return source.train_batches(loading, [model.facts.preprocessing for model in self._readers()])

    def train_order(self, team: Team = ALONE) -> Order:
        """Return which samples of :meth:`train_source` the batches of :meth:`train_loader` have: none is loaded."""
        loading = self._train_loading(team)
        size, seed, noun = loading.batch_size, loading.seed, self.data.facts.noun
        source = self.train_source()
        return Order(
            len(source), size, seed, team, noun=noun, draws=loading.draws, blocks=source.blocks, views=loading.views
        )

    def _train_loading(self, team: Team) -> Loading:
        return replace(self.loading(team, training=True), draws=self.draws())

    def eval_loader(
        self,
        source: Source,
        preprocessing: Preprocessing | TextPreprocessing,
        team: Team = ALONE,
        *,
        by_length: bool = False,
    ) -> EvalBatches:
        """Return the batches of ``source``; images are cropped and sized as ``preprocessing`` says.

        They are in order, or texts from the shortest to the longest. One of several processes gets its share of them.
        """
        loading = replace(self.loading(team), by_length=by_length)
        return self._read(source).eval_batches(loading, preprocessing)

    def loading(self, team: Team, *, training: bool = False) -> Loading:
        """Return how the run makes its batches, of training or of evaluation."""
        config = self.config
        return Loading(
            config.train.batch_size,
            config.seed,
            config.augment,
            config.data.workers,
            config.data.strict,
            team,
            reduced=config.data.reduces(training=training),
            by_length=training and config.data.group_by_length,
            views=config.train.cache_views,
        )

    def _read(self, source: Source) -> Source:
        """Return the samples as the task reads them."""
        return source if self.pieces is None else self.pieces(source)

    def shared_preprocessing(self) -> Preprocessing | TextPreprocessing:
        """Return the student's preprocessing, of images at the larger of both models' sizes.

        As in training, both see one crop.
        """
        *others, student = self._readers()
        found = student.facts.preprocessing
        for other in others:
            found = found.shared_with(other.facts.preprocessing)
        return found

    def _readers(self) -> Sequence[Model]:
        """Return the models that a sample is made ready for, the student last."""
        return self.task.canvas_of([model for model in (self.teacher, self.student) if model is not None])

    def predict(self, model: Model, batch: AnyBatch) -> Any:
        """Return what the task's metrics are about; see :meth:`kdcli.tasks.base.Task.predict`."""
        return self.task.predict(model, batch, into_teacher=self.distiller.embedding_projector())

    def mix(self) -> Callable[[AnyBatch, int, int], AnyBatch]:
        """Return mixup and cutmix as configured; the plan has refused them where the task's samples can't be mixed."""
        return Mix(self.config.augment, len(self.task.class_names), self.config.seed)

    def train_source(self) -> Source:
        """Return the samples of an epoch, in no order yet; few labelled ones are repeated.

        Where classes are drawn evenly, they are all that an epoch can draw.
        """
        indices, draws = self._epoch(), self.draws()
        if draws is not None:
            indices = draws.indices if indices is None else [indices[place] for place in draws.indices]
        return self.data.train if indices is None else self.data.train.take(indices)

    def draws(self) -> BalancedDraws | None:
        """Return what draws classes evenly, where that is asked for."""
        if not self.config.data.balanced_sampling:
            return None
        indices, labels = self._epoch(), self.data.train.labels
        return BalancedDraws(labels if indices is None else [labels[index] for index in indices])

    def _epoch(self) -> list[int] | None:
        return train_indices(
            self.data.train.labels,
            labelled_share=self.config.data.labelled_share,
            reads_unlabelled=any_reads_unlabelled(self.config.methods or ()),
        )


def context_of(
    config: RunConfig, plan: Plan, task: Task, data: ImageData | TextData, teacher: Model | None, student: Model
) -> Context:
    """Return what the methods are built from."""
    return Context(
        task,
        student.facts,
        None if teacher is None else teacher.facts,
        plan.label_map,
        train_labels=data.train.labels,
        train_ids=data.train.ids.tolist(),
        seed=config.seed,
    )


def student_of(config: RunConfig, data: ImageData | TextData, teacher: Model | None) -> Model:
    """Build the student that a config describes."""
    source = student_source(config, teacher)
    return build_student(config.student, data.facts, seed=config.seed, teacher=teacher, source=source)


def student_source(config: RunConfig, teacher: Model | None) -> tuple[TeacherConfig, Model] | None:
    """Return what a student that is made of a teacher is made of; None where the config names nothing."""
    source = config.student.source
    if source is not None and not config.student.is_from_teacher:
        raise UserError(
            f"student.source is for a student that is made of it, and the student is {config.student.name}.",
            "Name the student teacher?layers=N, or drop student.source.",
        )
    if source is None or source == config.teacher:
        return None if teacher is None else (config.teacher, teacher)
    if source.name == "none":
        raise UserError("student.source is none.", "Name a model.")
    return source, load_teacher(source, seed=config.seed, task=config.task, channels=config.data.channels)


def build_methods(methods: Sequence[MethodOptions], context: Context, *, seed: int) -> dict[str, Method]:
    """Build the methods by name, initialised by the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: build_method(options, context) for name, options in named_methods(methods).items()}
