"""Every option of a run, as frozen pydantic models. No torch here.

A config comes from a recipe (YAML), from ``--set key=value`` and from command-line options, in that order of
precedence from low to high; :func:`parse_config` reports every problem at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from kdcli.base import extensions
from kdcli.base.names import NormalizeName, ProjectorName, Relation
from kdcli.base.tasks import DEFAULT_TASK, TASKS, TaskFacts, find_task, kind_of, load_task, own_facts
from kdcli.config.data import AugmentConfig, DataConfig
from kdcli.config.methods import (
    FeaturePair,
    MethodName,
    MethodOptions,
    or_extension,
    pair,
)
from kdcli.config.methods.defaults import LABELS
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.section import (
    BESIDE_THE_RECIPE,
    IMAGES,
    Key,
    Location,
    Name,
    Positive,
    Section,
    always,
    from_name,
    is_label_free,
)
from kdcli.config.training import EmbeddingConfig, EpisodesConfig, OptimConfig, TrainConfig

if TYPE_CHECKING:
    Task = str
else:
    Task = Literal[tuple(TASKS)]

_MODEL_PREFIXES = re.compile(r"^(random:)?(?!package:)([A-Za-z_]\w+:)?")
"""A library's own, whichever it is; what follows ``package:`` lies in an installed package."""


def _or_extension(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Accept another package's task that has facts of its own."""
    is_name = isinstance(value, str) and value not in TASKS
    is_own = (
        is_name and extensions.find("tasks", value, own=TASKS) is not None and own_facts(load_task(value)) is not None
    )
    return value if is_own else handler(value)


_OF_TEACHER = ("teacher_forward", "cache_teacher")
"""Keys of the training that a student alone has no use for."""


class RunConfig(Section):
    """One run of ``kdcli distill``."""

    task: Annotated[Task, WrapValidator(_or_extension)] = DEFAULT_TASK
    """What the student is trained to do; or the name of another package's task. One that is like a task of kdcli's is
    then ``task_extension``, and that one ``task``."""
    task_extension: Annotated[Name | None, Key(evaluates=always)] = None
    """Another package's loss and metrics, in place of those of ``task``."""
    teacher: Annotated[TeacherConfig, BeforeValidator(from_name), Key(evaluates=is_label_free)]
    student: Annotated[StudentConfig, BeforeValidator(from_name)]
    data: Annotated[DataConfig, BeforeValidator(from_name), Key(evaluates=always)]
    eval_data: Annotated[
        Annotated[DataConfig, BeforeValidator(from_name)] | None,
        Key(evaluates=always, of_training=False, of_recipe=True, may_change=False),
    ] = None
    """Of ``image-embedding``: labelled images by which the final test measures the student's features, beside the
    teacher's and the untrained student's; by default ``data``, where they have labels. ``none`` measures nothing."""
    output: Annotated[Location | None, Key(of_recipe=False)] = None
    """The run folder; by default a name of its own under ``runs/``."""
    seed: Annotated[int, Field(ge=0, lt=2**31), Key(of_recipe=False)] = 0
    """Of everything random."""
    relation: Literal["auto", Relation] = "auto"
    """How the teacher's task relates to the student's; by default worked out from what both models know."""
    projector: Literal["auto", "none", ProjectorName] = "auto"
    """Of the plan's projection, or of the one ``method`` that is asked for; ``none`` distils without features."""
    normalize: Literal["auto", NormalizeName] = "auto"
    """What is done to the teacher's features before they are compared; by default what the relation calls for."""
    feature_layers: tuple[Annotated[FeaturePair, BeforeValidator(pair)], ...] | None = None
    """Which features are distilled; by default the method's own. Each pair has a projector or regressor of its own."""
    feature_weight: Positive | None = None
    """Weight of the feature loss; by default the plan's. Several projections share it. Few labels call for more."""
    method: Annotated[MethodName, WrapValidator(or_extension)] | None = None
    """The labels' loss and this one alone, with its defaults; ``none`` is the labels' loss alone, ``projection`` the
    projector that the plan chooses, ``log_sum`` a linear one with that distance where ``projector`` says no other,
    ``refilled`` has two stages."""
    methods: tuple[MethodOptions, ...] | None = None
    """The losses; by default the plan chooses them from the relation."""
    embedding: EmbeddingConfig | None = None
    """A stage before this one that trains the student's features alone."""
    augment: Annotated[AugmentConfig, IMAGES] = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    baseline: Annotated[bool, BESIDE_THE_RECIPE] = False
    """Also train the same student alone, for the same budget, and report both."""
    episodes: EpisodesConfig | None = None
    """Middle-shot learning, as in REFILLED: a student for each of many small tasks, instead of one for all the data."""
    test: Annotated[bool, BESIDE_THE_RECIPE] = True
    """Evaluate the best student on the test split, once, at the end; without it, validation is all there is."""
    description: Annotated[str, BESIDE_THE_RECIPE] = ""
    """What a recipe is for, in one line."""

    @model_validator(mode="before")
    @classmethod
    def _find_task(cls, values: Any) -> Any:
        """Put the task that an extension is like in its place."""
        if not isinstance(values, dict):
            return values
        name = values.get("task")
        if not isinstance(name, str) or extensions.find("tasks", name, own=TASKS) is None:
            return values
        task, extension = find_task(name)
        return values if task == extension else {**values, "task": task, "task_extension": extension}

    @model_validator(mode="after")
    def _check_task(self) -> RunConfig:
        if self.task_extension is None:
            return self
        task = load_task(self.task_extension)
        if own_facts(task) is not None:
            raise ValueError(
                f"{self.task_extension} is a task of its own: write task: {self.task_extension}, and no task_extension"
            )
        if (like := kind_of(task)) != self.task:
            raise ValueError(f"task_extension {self.task_extension} is for task: {like}")
        return self

    @property
    def task_facts(self) -> TaskFacts:
        """What is known of its task."""
        return TASKS[self.task]

    @property
    def extension_task(self) -> str | None:
        """The name of another package's task; None for kdcli's own."""
        return self.task_extension or (None if self.task in TASKS else self.task)

    @property
    def reads_images(self) -> bool:
        """Whether its samples are images."""
        return self.task_facts.reads_images

    @property
    def trains_classifier(self) -> bool:
        """Whether any of the methods, once they are written out, trains the student's classifier."""
        return any(options.trains_classifier for options in self.methods or ())

    @property
    def leaves_classifier_untrained(self) -> bool:
        """Whether the student has a classifier that none of the methods trains."""
        return not self.task_facts.is_label_free and not self.trains_classifier

    def with_absolute_paths(self) -> RunConfig:
        """Return the config with its local files and folders written out, so that it means the same from anywhere.

        A bare model name stays as it is, also where a folder of that name exists: it is looked up in timm first.
        """

        def absolute(value: Any) -> Any:
            return value if value is None or not Path(value).exists() else type(value)(Path(value).resolve())

        def absolute_name(name: str) -> str:
            model, mark, query = name.partition("?")
            target = _MODEL_PREFIXES.sub("", model)
            return model.removesuffix(target) + (absolute(target) if "/" in target else target) + mark + query

        def absolute_teacher(teacher: TeacherConfig) -> TeacherConfig:
            update = {"name": absolute_name(teacher.name), "weights": absolute(teacher.weights)}
            return teacher.model_copy(update=update)

        def absolute_data(data: DataConfig) -> DataConfig:
            keys = ("name", "root", "unlabelled", "palette")
            names = absolute(data.class_names) if isinstance(data.class_names, Path) else data.class_names
            changed = {"class_names": names, "eval_extractor": absolute_name(data.eval_extractor)}
            return data.model_copy(update={key: absolute(getattr(data, key)) for key in keys} | changed)

        student, cache = self.student, self.train.cache_teacher
        train = {"cache_teacher": None if cache is None else cache.absolute()}
        source = None if student.source is None else absolute_teacher(student.source)
        tokenizer = None if student.tokenizer is None else absolute_teacher(student.tokenizer)
        return self.model_copy(
            update={
                "teacher": absolute_teacher(self.teacher),
                "student": student.model_copy(
                    update={"name": absolute_name(student.name), "source": source, "tokenizer": tokenizer}
                ),
                "data": absolute_data(self.data),
                "eval_data": None if self.eval_data is None else absolute_data(self.eval_data),
                "train": self.train.model_copy(update=train),
            }
        )

    def embedding_stage(self) -> RunConfig:
        """Return the config of the earlier stage as a run of its own."""
        assert self.embedding is not None
        stage, cache = self.embedding, self.train.cache_teacher
        train = {"epochs": stage.epochs, "cache_teacher": None if cache is None else cache / "embedding"}
        return self.model_copy(
            update={
                "methods": stage.methods,
                "train": self.train.model_copy(update=train),
                "optim": stage.optim or self.optim,
                "embedding": None,
                "baseline": False,
                "test": False,
            }
        )

    def alone(self) -> RunConfig:
        """Return the config of the same student trained on its labels alone, for as many steps as all stages have."""
        epochs = self.train.epochs + (self.embedding.epochs if self.embedding is not None else 0)
        alone = [m.without_teacher() for m in self.methods or () if m.trains_classifier]
        on_labels = [m for m in alone if not m.needs.teacher] or [LABELS]
        student = self.student
        if student.is_from_teacher and student.source is None:  # it begins with the same weights
            student = student.model_copy(update={"source": self.teacher})
        task = self.task_facts
        if (
            not task.reads_images
            and not task.is_label_free
            and student.tokenizer is None
            and self.teacher.name != "none"
        ):
            named = self.teacher.model_copy(update={"weights": None})
            student = student.model_copy(update={"tokenizer": named})
        return self.model_copy(
            update={
                "teacher": TeacherConfig(name="none"),
                "method": None,
                "student": student,
                "methods": tuple(on_labels),
                "embedding": None,
                "train": self.train.model_copy(update={"epochs": epochs} | dict.fromkeys(_OF_TEACHER)),
                "relation": "auto",
                "projector": "auto",
                "normalize": "auto",
                "feature_layers": None,
                "feature_weight": None,
                "baseline": False,
            }
        )
