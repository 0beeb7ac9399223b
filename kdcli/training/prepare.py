"""Config -> everything a run needs: data, models, plan, distiller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import LANGUAGE_MODELING, OVER_TOKENS, UNLABELLED, Preprocessing, TextPreprocessing
from kdcli.base.text import short_repr
from kdcli.config.run import (
    LABEL_FREE,
    FeaturePair,
    LayerOptions,
    MethodOptions,
    RunConfig,
    TeacherConfig,
    find_method,
    load_task,
)
from kdcli.data import (
    AnyBatch,
    Batch,
    EvalLoader,
    ImageData,
    ImageSource,
    Masking,
    Mix,
    Reader,
    TextData,
    TextEvalLoader,
    TextSource,
    TextTrainLoader,
    TokenSource,
    TrainLoader,
    WordSource,
    cut_into_tokens,
    cut_words,
    open_data,
    open_texts,
    open_unlabelled,
)
from kdcli.data.images.sources import Subset
from kdcli.data.images.unlabelled import labelled_sample
from kdcli.losses.vocabulary import VocabularyLogits
from kdcli.machine.launch import rank
from kdcli.methods import build_method
from kdcli.methods.base import Context, Method
from kdcli.models import build_student, build_text_student, load_saved, load_teacher, load_text_teacher
from kdcli.models.base import Model, to_device
from kdcli.models.layers import resolve_indices
from kdcli.models.measure import time_passes
from kdcli.models.roundtrip import check_reloads
from kdcli.models.settle import settle_models
from kdcli.models.transformers.text_build import HFTextModel
from kdcli.models.transformers.tokenizer import separates_pairs
from kdcli.models.values import check_tensors
from kdcli.plan.decide import Decision, Plan, describe_costs, make_plan
from kdcli.runs.folder import RunFolder
from kdcli.tasks import Task, build_task
from kdcli.tasks.features.class_means import NCM_ACCURACY
from kdcli.tasks.features.frozen import NEIGHBOURS, STRENGTHS
from kdcli.training.distiller import Distiller
from kdcli.training.teachers.layers import score_layers


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
    """

    config: RunConfig
    plan: Plan
    task: Task
    data: ImageData | TextData
    teacher: Model | None
    distiller: Distiller
    pieces: Callable[[TextSource], TokenSource | WordSource] | None = None

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
        return self.data.labelled if isinstance(self.data, ImageData) else None

    def initial_student(self) -> Model:
        """Build the student once more, as it was before training."""
        return _build_student(self.config, self.data, self.teacher)

    def initial_projectors(self) -> dict[str, Tensor]:
        """Build the matrices of the projectors once more, as they were before training, by their methods' names."""
        context = _context(self.config, self.plan, self.task, self.data, self.teacher, self.student)
        methods = _build_methods(self.plan.methods, context, seed=self.config.seed)
        return Distiller(self.student, methods).projector_matrices()

    @property
    def measures_teacher(self) -> bool:
        """Whether the teacher predicts just what the student does, so that its own metrics stand beside the student's."""
        return self.teacher is not None and self.plan.relation == "same" and not self.is_label_free

    def labelled_samples(self) -> ImageSource | TextSource:
        """Return the training samples that have a label, each once."""
        train = self.data.train
        labelled = [index for index, label in enumerate(train.labels) if label != UNLABELLED]
        return train.take(labelled) if isinstance(train, TextSource) else Subset(train, labelled)

    def train_loader(self, *, rank: int = 0, world_size: int = 1) -> TrainLoader | TextTrainLoader:
        """Return the batches of the training split, for one of several processes its share of each."""
        source = self.train_source()
        if isinstance(source, TextSource):
            return TextTrainLoader(
                source if self.pieces is None else self.pieces(source),
                batch_size=self.config.train.batch_size,
                seed=self.config.seed,
                rank=rank,
                world_size=world_size,
            )
        wanted = [model.facts.preprocessing for model in (self.teacher, self.student) if model is not None]
        sizes = [preprocessing.image_size for preprocessing in wanted if isinstance(preprocessing, Preprocessing)]
        return TrainLoader(
            source,
            augment=self.config.augment,
            canvas=(max(height for height, _ in sizes), max(width for _, width in sizes)),
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            num_classes=len(self.task.class_names),
            workers=self.config.data.workers,
            strict=self.config.data.strict,
            rank=rank,
            world_size=world_size,
        )

    def eval_loader(
        self,
        source: ImageSource | TextSource,
        preprocessing: Preprocessing | TextPreprocessing,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> EvalLoader | TextEvalLoader:
        """Return the batches of ``source`` in order; images are cropped and sized as ``preprocessing`` says.

        One of several processes gets every ``world_size``-th of them.
        """
        if isinstance(source, TextSource) or isinstance(preprocessing, TextPreprocessing):
            assert isinstance(source, TextSource)
            return TextEvalLoader(
                source if self.pieces is None else self.pieces(source),
                batch_size=self.config.train.batch_size,
                rank=rank,
                world_size=world_size,
            )
        return EvalLoader(
            source,
            preprocessing=preprocessing,
            batch_size=self.config.train.batch_size,
            workers=self.config.data.workers,
            strict=self.config.data.strict,
            rank=rank,
            world_size=world_size,
        )

    def shared_preprocessing(self) -> Preprocessing | TextPreprocessing:
        """Return the student's preprocessing, of images at the larger of both models' sizes.

        As in training, both see one crop.
        """
        student = self.student.facts.preprocessing
        teacher = student if self.teacher is None else self.teacher.facts.preprocessing
        if isinstance(student, TextPreprocessing) or isinstance(teacher, TextPreprocessing):
            return student
        height, width = (max(sizes) for sizes in zip(student.image_size, teacher.image_size, strict=True))
        return student.at((height, width))

    def predict(self, model: Model, batch: AnyBatch) -> Tensor | VocabularyLogits:
        """Return what the task's metrics are about: the logits (B, C) of ``model``, or its embeddings (B, d).

        Of a causal language model they are its logits over the vocabulary.

        Embeddings go through the projector into the teacher's space, where there is one that does that.
        """
        if not self.is_label_free:
            output = model(model.prepare(batch))
            logits = output.logits if output.vocabulary is None else output.vocabulary
            assert logits is not None
            return logits
        embeddings = model(model.prepare(batch), taps=("pooled",), logits=False).features["pooled"]
        projector = self.distiller.embedding_projector()
        return embeddings if projector is None else projector(embeddings)

    def mix(self) -> Callable[[AnyBatch, int, int], AnyBatch]:
        """Return mixup and cutmix of images as configured."""
        mix_images = Mix(self.config.augment, len(self.task.class_names), self.config.seed)

        def mix(batch: AnyBatch, epoch: int, step: int) -> AnyBatch:
            return mix_images(batch, epoch, step) if isinstance(batch, Batch) else batch

        return mix

    def train_source(self) -> ImageSource | TextSource:
        """Return the samples of an epoch, in no order yet; few labelled ones are repeated."""
        indices = train_indices(
            self.data.train.labels,
            labelled_share=self.config.data.labelled_share,
            reads_unlabelled=_reads_unlabelled(self.config.methods or ()),
        )
        if indices is None:
            return self.data.train
        if isinstance(self.data, TextData):
            return self.data.train.take(indices)
        return Subset(self.data.train, indices)


def train_indices(labels: Sequence[int], *, labelled_share: float, reads_unlabelled: bool) -> list[int] | None:
    """Return which training images make up an epoch, some repeatedly; None for each of them once.

    With few labels the labelled images are repeated until they are ``labelled_share`` of the epoch, so that every batch
    has some. An objective that reads nothing but labels gets the labelled images alone, repeated to the same length: it
    takes as many steps. Each repetition is augmented on its own.
    """
    labelled = [index for index, label in enumerate(labels) if label != UNLABELLED]
    unlabelled = [index for index, label in enumerate(labels) if label == UNLABELLED]
    if not unlabelled or not labelled:
        return None
    repeated = max(len(labelled), round(labelled_share / (1 - labelled_share) * len(unlabelled)))
    if not reads_unlabelled:
        return _spread(labelled, repeated + len(unlabelled))
    return _spread(labelled, repeated) + unlabelled


def _spread(indices: list[int], count: int) -> list[int]:
    """Repeat ``indices`` to ``count``; what is left over goes evenly over the list, and so over its classes."""
    return [indices[number * len(indices) // count] for number in range(count)]


def _reads_unlabelled(methods: Sequence[MethodOptions]) -> bool:
    return any(options.reads_unlabelled for options in methods)


def prepare_job(config: RunConfig, *, mixed_precision: str, student: Model | None = None) -> Job:
    """Load data and models, make the plan and build the distiller.

    An earlier stage of the run is a job of its own, :func:`embedding_job`.

    Args:
        config: of the run.
        mixed_precision: ``no``, ``fp16`` or ``bf16``, for the memory estimate.
        student: used as it is; by default the config's is built.

    Raises:
        UserError: for anything in the config that can't be had or doesn't fit.
    """
    if config.teacher.name == "none":
        for key, value in config.teacher.model_dump(exclude={"name"}, exclude_defaults=True).items():
            raise UserError(f"The teacher is none, but teacher.{key} is set: {short_repr(value)}.", "Name the teacher.")
    _check_domain(config)
    config = settle_models(config)
    has_teacher = config.teacher.name != "none"
    data: ImageData | TextData
    teacher: Model | None = None
    if config.reads_images:
        data = (
            open_unlabelled(config.data, config.eval_data, seed=config.seed)
            if config.task in LABEL_FREE
            else open_data(config.data, seed=config.seed)
        )
        config = config.model_copy(update={"data": config.data.model_copy(update={"deep_range": data.deep_range})})
        teacher = load_teacher(config.teacher, seed=config.seed) if has_teacher else None
    else:
        data = open_texts(config.data, task=config.task, seed=config.seed)
        if data.train.has_pairs:
            columns = dict(zip(("text_column", "text_pair_column"), data.columns, strict=True))
            config = config.model_copy(update={"data": config.data.model_copy(update=columns)})
        teacher = load_text_teacher(config.teacher, seed=config.seed, task=config.task) if has_teacher else None
    is_new = student is None
    return _make_job(config, data, teacher, student, mixed_precision=mixed_precision, with_latencies=is_new)


def embedding_job(job: Job, *, mixed_precision: str) -> Job:
    """Return the job of the stage before ``job``: its data and teacher, and a student of its own.

    The test split is left to the end of the whole run.
    """
    return _make_job(
        job.config.embedding_stage(),
        replace(job.data, test=None),
        job.teacher,
        None,
        mixed_precision=mixed_precision,
        with_latencies=False,
    )


def _make_job(
    config: RunConfig,
    data: ImageData | TextData,
    teacher: Model | None,
    student: Model | None,
    *,
    mixed_precision: str,
    with_latencies: bool,
) -> Job:
    if student is None:
        student = _build_student(config, data, teacher)
        if rank() == 0:  # several processes build the same one, and transformers saves in the first alone
            check_reloads(student, label=config.student.name)
    if config.task in LANGUAGE_MODELING:
        assert isinstance(data, TextData)
        _check_tokenizers(teacher, student, data)
    config = open_taps(config, teacher, student)
    student.compare_last_features()
    layers = score_layers(config, teacher, data) if isinstance(data, ImageData) else None
    plan = make_plan(
        config,
        teacher=None if teacher is None else teacher.facts,
        student=student.facts,
        data=data.facts,
        latencies=(_latency(teacher), _latency(student)) if with_latencies and teacher is not None else None,
        layers=layers,
    )
    job = assemble_job(config, plan, data=data, teacher=teacher, student=student)
    if config.task_extension is not None:
        reason = f"Asked for: another package's loss and metrics, on the data and models of {config.task}."
        plan = plan.with_decisions([Decision("task", f"{config.task_extension}; {job.monitor} chooses", reason)])
    if (decision := _describe_epoch(config, plan, data)) is not None:
        plan = plan.with_decisions([decision])
    if isinstance(data, TextData) and data.train.has_pairs:
        plan = plan.with_decisions([_describe_pairs(teacher, student)])
    if job.pieces is not None:
        assert isinstance(data, TextData)
        plan = plan.with_decisions([_describe_pieces(config, data.train, job.pieces(data.train))])
        for source in (data.validation, data.test if config.test else None):
            if source is not None:
                job.pieces(source)  # a split without any is refused now, and not after training
    if isinstance(data, ImageData) and data.facts.label_kind == "none":
        plan = plan.with_decisions([_describe_measurement(config, data.labelled)])
    return replace(job, plan=plan.with_decisions(job_costs(job, mixed_precision=mixed_precision)))


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
    build = build_task if config.task_extension is None else load_task(config.task_extension).from_facts
    task = build(data.facts, reference=teacher_embedder(teacher))
    context = _context(config, plan, task, data, teacher, student)
    distiller = Distiller(student, _build_methods(plan.methods, context, seed=config.seed))
    pieces = _cutter(config, teacher, student, data.facts.class_names) if config.task in OVER_TOKENS else None
    return Job(plan.resolve(config), plan, task, data, teacher, distiller, pieces)


def _context(
    config: RunConfig, plan: Plan, task: Task, data: ImageData | TextData, teacher: Model | None, student: Model
) -> Context:
    """Return what the methods are built from."""
    return Context(
        task,
        student.facts,
        None if teacher is None else teacher.facts,
        plan.label_map,
        train_labels=data.train.labels,
        train_samples=train_indices(
            data.train.labels,
            labelled_share=config.data.labelled_share,
            reads_unlabelled=_reads_unlabelled(plan.methods),
        ),
        seed=config.seed,
    )


_NOT_OF_EVAL_DATA = (
    *("text_column", "text_pair_column", "label_kind", "train_texts", "mask_probability"),
    *("labelled_share", "unlabelled", "workers", "strict"),
)
_LABEL_KEYS = ("data.classes", "data.labels_per_class", "data.labelled_share")
_TEXT_KEYS = (
    *("teacher.max_length", "teacher.pooling", "teacher.prompt", "student.max_length", "student.pooling"),
    *("student.tokenizer", "data.text_column", "data.text_pair_column", "data.label_kind", "data.train_texts"),
    "data.mask_probability",
)
_TRIED_TEXTS = 200
"""So many training texts are cut by both tokenizers, to see that they do it alike."""
_IMAGE_KEYS = (
    *("teacher.image_size", "teacher.mean", "teacher.std", "teacher.interpolation"),
    *("teacher.crop_mode", "teacher.crop_pct"),
    *("student.image_size", "student.drop_path", "data.image_column", "data.root", "data.deep_range"),
    *("data.classes", "data.train_images", "data.workers", "data.strict", "augment", "train.channels_last"),
)


_OVER_TEXTS = ("text-classification", "sentence-embedding")
_KEYS_OF_TASKS = {
    "teacher.pooling": (_OVER_TEXTS, "each token stands for itself"),
    "teacher.prompt": (_OVER_TEXTS, "it reads texts as they are"),
    "student.pooling": (_OVER_TEXTS, "each token stands for itself"),
    "data.mask_probability": (("masked-lm",), "nothing is masked"),
    "data.label_kind": (("text-classification",), "it reads no such labels"),
    "data.text_pair_column": (("text-classification",), "it reads single texts"),
    "data.unlabelled": (
        (*_OVER_TEXTS, *LANGUAGE_MODELING),
        "words without labels are those of the data whose label is null",
    ),
}
"""Options about texts -> the tasks that they are for, and why the others have none."""


def _check_domain(config: RunConfig) -> None:
    """Refuse options about images where the task is about texts, the other way round, and about labels it has not."""
    is_text = not config.reads_images
    default = RunConfig.model_validate({"teacher": "none", "student": "x", "data": "x"})
    for key in _IMAGE_KEYS if is_text else _TEXT_KEYS:
        value, usual = (reduce(getattr, key.split("."), of) for of in (config, default))
        if value != usual:
            what = "images" if is_text else "texts"
            raise UserError(
                f"{key} is set, which is about {what}, but the task is {config.task}.",
                "Leave it out, or choose another --task.",
            )
    for key, (tasks, why) in _KEYS_OF_TASKS.items():
        value, usual = (reduce(getattr, key.split("."), of) for of in (config, default))
        if is_text and value != usual and config.task not in tasks:
            raise UserError(f"{key} is set, but the task is {config.task}: {why}.", "Leave it out.")
    if config.task != "image-embedding":
        if config.eval_data is not None:
            raise UserError(
                f"eval_data is for the task image-embedding, and the task is {config.task}.", "Leave --eval-data out."
            )
        return
    for key in _NOT_OF_EVAL_DATA:
        if config.eval_data is not None and getattr(config.eval_data, key) != getattr(default.data, key):
            raise UserError(
                f"eval_data.{key} has no effect: features are measured on labelled images.", "Leave it out."
            )
    for key in _LABEL_KEYS:
        if reduce(getattr, key.split("."), config) != reduce(getattr, key.split("."), default):
            raise UserError(f"{key} is about labels, and the task {config.task} reads none.", "Leave it out.")


def _cutter(
    config: RunConfig, teacher: Model | None, student: Model, class_names: Sequence[str]
) -> Callable[[TextSource], TokenSource | WordSource]:
    """Return what cuts a split's texts into pieces that teacher and student can take, each split once."""
    cut: Callable[[TextSource], TokenSource | WordSource]
    if config.task == "token-classification":
        cut = _word_cutter(teacher, student, class_names)
    else:
        cut = _token_cutter(config, teacher, student)
    known: dict[TextSource, TokenSource | WordSource] = {}

    def cut_once(source: TextSource) -> TokenSource | WordSource:
        if source not in known:
            known[source] = cut(source)
        return known[source]

    return cut_once


def _word_cutter(
    teacher: Model | None, student: Model, class_names: Sequence[str]
) -> Callable[[TextSource], WordSource]:
    readers = [
        Reader(model.tokenizer, model.preprocessing.max_length)
        for model in (teacher, student)
        if isinstance(model, HFTextModel)
    ]

    def cut(source: TextSource) -> WordSource:
        assert isinstance(source, WordSource)
        return cut_words(source, readers, class_names=class_names)

    return cut


def _token_cutter(config: RunConfig, teacher: Model | None, student: Model) -> Callable[[TextSource], TokenSource]:
    assert isinstance(student, HFTextModel)
    tokenizer, length = student.tokenizer, student.preprocessing.max_length
    if isinstance(teacher, HFTextModel):
        length = min(length, teacher.preprocessing.max_length)
    masking = None
    if config.task == "masked-lm":
        if tokenizer.mask_token_id is None:
            raise UserError(f"The tokenizer of {student.facts.name} has no mask token.", "Choose another --task.")
        special = frozenset(tokenizer.all_special_ids)
        masking = Masking(
            config.data.mask_probability,
            tokenizer.mask_token_id,
            special,
            student.preprocessing.vocab_size,
            config.seed,
        )
    return partial(cut_into_tokens, tokenizer=tokenizer, max_length=length, masking=masking)


def _check_tokenizers(teacher: Model | None, student: Model, data: TextData) -> None:
    """Refuse a language model's teacher whose tokens are others than the student's.

    Raises:
        UserError: they are; it says how.
    """
    if teacher is None:
        return
    assert isinstance(teacher, HFTextModel)
    assert isinstance(student, HFTextModel)
    ours, theirs = (model.tokenizer.get_vocab() for model in (student, teacher))
    what = ""
    if ours != theirs:
        common = len(ours.items() & theirs.items())
        what = f"of the student's {len(ours)} tokens {common} are among the teacher's {len(theirs)}"
    else:
        texts = list(data.train.texts[:_TRIED_TEXTS])
        tried = [model.tokenizer(texts, verbose=False)["input_ids"] for model in (student, teacher)]
        differing = sum(a != b for a, b in zip(*tried, strict=True))
        if differing:
            what = f"they have the same vocabulary, but cut {differing} of {len(texts)} texts differently"
    if what:
        raise UserError(
            f"A language model is distilled token by token, and the tokenizers differ: {what}.",
            "Take a student without a tokenizer of its own, which gets the teacher's, or --student 'teacher?layers=N'.",
        )


def _describe_pairs(teacher: Model | None, student: Model) -> Decision:
    reason = "Each model's own encoding of two texts; the longer one is cut first."
    for role, model in (("teacher", teacher), ("student", student)):
        if isinstance(model, HFTextModel) and not separates_pairs(model.tokenizer):
            reason += f" The {role}'s tokenizer puts nothing between them: the second goes on where the first ends."
    return Decision("pairs", "two texts a sample, read together", reason)


def _describe_pieces(config: RunConfig, texts: TextSource, pieces: TokenSource | WordSource) -> Decision:
    if isinstance(pieces, WordSource):
        assert isinstance(texts, WordSource)
        value = f"{pieces.num_words} for training, in {len(pieces)} pieces"
        reason = (
            "A word stands by its first token; texts are cut between words where they are longer than a model takes."
        )
        if lost := texts.num_words - pieces.num_words:
            reason += f" {lost} words that a tokenizer makes nothing of are left out."
        return Decision("words", value, reason)
    value = f"{len(pieces)} pieces for training, {pieces.num_tokens} tokens"
    reason = (
        "Each text by itself, cut where it is longer than both models take; special tokens stand around every piece."
    )
    if config.task == "masked-lm":
        value += f", {config.data.mask_probability:.0%} of them predicted"
        reason += " Masks are drawn anew in every epoch, and are always the same in evaluation."
    return Decision("tokens", value, reason)


def _build_student(config: RunConfig, data: ImageData | TextData, teacher: Model | None) -> Model:
    source = student_source(config, teacher)
    if isinstance(data, TextData):
        return build_text_student(config.student, data=data.facts, teacher=teacher, seed=config.seed, source=source)
    return build_student(config.student, label_names=data.facts.class_names, seed=config.seed, source=source)


def teacher_embedder(teacher: Model | None) -> Callable[[AnyBatch], Tensor]:
    """Return what makes the teacher's pooled features (B, d) of a batch."""

    def embed(batch: AnyBatch) -> Tensor:
        assert teacher is not None, "the plan lets no task that compares with a teacher pass without one"
        return teacher(teacher.prepare(batch), taps=("pooled",), logits=False).features["pooled"]

    return embed


def job_costs(job: Job, *, mixed_precision: str) -> list[Decision]:
    """Return the decisions about trainable parameters and memory."""
    return describe_costs(
        job.config,
        teacher=None if job.teacher is None else job.teacher.facts,
        student=job.student.facts,
        trainable_parameters=sum(p.numel() for p in job.distiller.parameters() if p.requires_grad),
        mixed_precision=mixed_precision,
    )


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
    load = load_teacher if config.reads_images else partial(load_text_teacher, task=config.task)
    return source, load(source, seed=config.seed)


def _latency(model: Model) -> float:
    """Return the median milliseconds of a few passes of one sample, on the device that the model is on."""
    device = next(model.parameters()).device
    was_training = model.training
    inputs = to_device(model.example(), device)
    taps = () if model.facts.num_classes else ("pooled",)
    model.eval()

    def one_pass() -> None:
        if (vocabulary := model(inputs, taps=taps).vocabulary) is not None:
            vocabulary.dense()

    times = time_passes(one_pass, device=device, most=11, seconds=0.5)
    model.train(was_training)
    return 1e3 * float(times.median())


def _with_layer_names(config: RunConfig, teacher: Model | None, student: Model) -> RunConfig:
    """Put the layers' names in place of their numbers, so that the plan and the run folder have nothing but names."""

    def named(pairs: tuple[FeaturePair, ...]) -> tuple[FeaturePair, ...]:
        for side, model in (("teacher", teacher), ("student", student)):
            if model is not None:
                names = resolve_indices(model, [getattr(pair, side) for pair in pairs])
                pairs = tuple(pair.model_copy(update={side: names[getattr(pair, side)]}) for pair in pairs)
        return pairs

    def with_names(methods: tuple[MethodOptions, ...]) -> tuple[MethodOptions, ...]:
        return tuple(
            options.model_copy(update={"layers": named(options.layers)})
            if isinstance(options, LayerOptions) and options.layers
            else options
            for options in methods
        )

    changes: dict[str, Any] = {}
    if config.feature_layers:
        changes["feature_layers"] = named(config.feature_layers)
    if config.methods is not None:
        changes["methods"] = with_names(config.methods)
    if config.embedding is not None:
        changes["embedding"] = config.embedding.model_copy(update={"methods": with_names(config.embedding.methods)})
    return config.model_copy(update=changes)


def open_taps(config: RunConfig, teacher: Model | None, student: Model) -> RunConfig:
    """Open every layer that the config names as features, and the ends of the stages where a method takes them.

    Returns:
        The config with names for the layers' numbers.
    """
    config = _with_layer_names(config, teacher, student)
    methods = (*(config.methods or ()), *(config.embedding.methods if config.embedding else ()))
    asked = find_method(config.method or "none")
    by_stage = any(
        isinstance(options, LayerOptions) and options.by_stage and options.layers is None for options in methods
    )
    if asked is not None and issubclass(asked, LayerOptions) and config.feature_layers is None:
        by_stage = by_stage or asked.by_stage
    pairs = [*(config.feature_layers or ()), *(pair for options in methods for pair in options.pairs)]
    for side, model in (("teacher", teacher), ("student", student)):
        if model is not None:
            model.open_taps(sorted({getattr(pair, side) for pair in pairs}))
            if by_stage:
                model.open_stages()
    return config


def _describe_epoch(config: RunConfig, plan: Plan, data: ImageData | TextData) -> Decision | None:
    reads_unlabelled, noun = _reads_unlabelled(plan.methods), data.facts.noun
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


def _describe_measurement(config: RunConfig, labelled: ImageData | None) -> Decision:
    if labelled is None or not config.test:
        reason = (
            "The test split is left alone (test: false)."
            if labelled is not None
            else "Asked for by --eval-data none."
            if config.eval_data is not None
            else "There are no labels to measure features by; --eval-data names labelled images."
        )
        return Decision("evaluation", "against the teacher alone", reason)
    split, source = labelled.held_out
    train, held_out = labelled_sample(labelled.train), labelled_sample(source)
    return Decision(
        "evaluation",
        f"{NEIGHBOURS}-NN and linear probe on {labelled.facts.name}: {len(labelled.facts.class_names)} classes,"
        f" {len(train)} training and {len(held_out)} {split} images",
        "At the end alone, of the student's frozen features, beside those of the teacher and of the student as initialised."
        f" The probe's penalty is the best of C = {', '.join(f'{c:g}' for c in STRENGTHS)} by cross-validation on the"
        " training images. --eval-data names other labelled images, or none.",
    )


def reopen_job(run: RunFolder) -> Job:
    """Rebuild the job of a finished run with its best student and projectors."""
    job = prepare_job(run.read_config(), mixed_precision="no", student=load_saved(run.student))
    methods, tensors = job.distiller.methods, run.read_tensors("projector.safetensors")
    new = {name: tensor.clone() for name, tensor in methods.state_dict().items()}
    try:
        methods.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{run.path / 'projector.safetensors'} does not go with the run's config.yaml: {str(error).splitlines()[-1].strip()}",
            "The run has to be repeated.",
        ) from None
    check_tensors(str(run.path / "projector.safetensors"), new, tensors)
    job.distiller.eval()
    return job


def _build_methods(methods: Sequence[MethodOptions], context: Context, *, seed: int) -> dict[str, Method]:
    """Build the methods by name, initialised by the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: build_method(options, context) for name, options in named_methods(methods).items()}


def named_methods(methods: Sequence[MethodOptions]) -> dict[str, MethodOptions]:
    """Return the methods by name: their kind, numbered from the second of a kind."""
    named: dict[str, MethodOptions] = {}
    for options in methods:
        same_kind = sum(name.partition("-")[0] == options.method for name in named)
        named[f"{options.method}-{same_kind + 1}" if same_kind else options.method] = options
    return named
