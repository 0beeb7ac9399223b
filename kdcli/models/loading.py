"""Teachers, students and saved students from their configs, of whichever library they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, Preprocessing
from kdcli.base.files import utf8_path
from kdcli.base.tasks import DEFAULT_TASK, TASKS, task_of
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import quantization, weights
from kdcli.models.base import Model, freeze, seeded
from kdcli.models.imagenet import aliases_of
from kdcli.models.libraries import LIBRARIES, library_called, library_of
from kdcli.models.library import Library
from kdcli.models.locate import HUB_ID, locate
from kdcli.models.place import Place
from kdcli.models.settle import settle_teacher
from kdcli.models.shrink import Shrinking, parse_shrinking, shrink
from kdcli.models.spec import ModelName, parse_model
from kdcli.models.vision import said_channels
from kdcli.runs.folder import RunFolder


def load_teacher(config: TeacherConfig, *, seed: int, task: str = DEFAULT_TASK, channels: int | None = None) -> Model:
    """Load the model that is imitated, with its own head and labels, in eval mode and without gradients.

    Weights come from the model's publisher or from ``config.weights``; a teacher is untrained only as ``random:NAME``.
    What a checkpoint tells of its model's input and classes is taken over where the config says nothing else.
    A checkpoint that fits a timm architecture's 1000 (or 11821, 21841, ...) classes is taken to be ImageNet's.
    A teacher of texts has its tokenizer and pooling; for a task over tokens its features and logits are of tokens.

    Args:
        config: what to load; not ``none``.
        seed: determines the weights of ``random:NAME``.
        task: what it is to teach, which says what it reads.
        channels: of the images that it is to read; None for its own number.

    Raises:
        UserError: no such model, its weights can't be had or don't fit, or it can't be set as asked for.
    """
    facts = TASKS[task]
    config = _for_channels(settle_teacher(config, modality=facts.modality), channels)
    name = parse_model(config.name)
    _check_teacher_name(config, name)
    path = weights.resolve_path(config.weights) if config.weights else None
    place = locate(name, weights=not name.random and path is None, modality=facts.modality)
    place = replace(place, channels=channels if facts.reads_images else None)
    checkpoint = weights.read_checkpoint(path, source=str(config.weights)) if path else None
    library = library_called(place.library)
    if config.quantization is not None:
        _check_quantization(config, name, library)
        place = replace(place, quantization=config.quantization)
    with seeded(seed):
        teacher = freeze(library.load(place, name, config, task=facts, checkpoint=checkpoint))
    _check_channels(teacher, place)
    _name_labels(teacher, config)
    if config.quantization is not None:
        phrase = f"{teacher.facts.weights}, in {config.quantization}"
        teacher.facts = replace(teacher.facts, weights=phrase, weight_bytes=quantization.weight_bytes(teacher.module))
    own = place.run if facts.reads_images and not name.random and path is None else None
    if own is not None and RunFolder(own).read_config().leaves_classifier_untrained:
        # What it knows of its labels is in its features alone: it is no classifier.
        phrase = f"{teacher.facts.weights}; its classifier is untrained"
        teacher.facts = replace(teacher.facts, task=task_of(facts.modality, "none").name, weights=phrase)
    return teacher


def wrong_names(teacher: TeacherConfig, student: StudentConfig, *, task: str) -> list[UserError]:
    """Return what is wrong with the names of both models, so that both can be told at once; nothing is fetched.

    Args:
        teacher: settled; it may be ``none``.
        student: as the user wrote it.
        task: what the student is for.
    """
    modality, found = TASKS[task].modality, []
    for text in (teacher.name, student.name):
        if text == "none" or text.startswith("teacher?"):
            continue
        try:
            name = parse_model(text)
            if not HUB_ID.fullmatch(name.target) and name.library is None:
                locate(name, weights=False, modality=modality)
        except UserError as error:
            found.append(error)
    return found


def _check_teacher_name(config: TeacherConfig, name: ModelName) -> None:
    if name.random and config.weights:
        raise UserError(
            f"Teacher {config.name} is untrained by its name, but weights are given: {config.weights}.",
            f"Name it {config.name.removeprefix('random:')}.",
        )
    if name.arguments and not name.random and not config.weights:
        raise UserError(
            f"Teacher {config.name}: published weights are for the architecture as it is, not for these arguments.",
            "Leave the arguments out, give weights of your own (--teacher-weights FILE), or write random: before it.",
        )


def _check_quantization(config: TeacherConfig, name: ModelName, library: Library) -> None:
    """Refuse what can't be quantised, before anything is loaded."""
    why = ""
    if not library.quantizes:
        why = f"it is a model of {library.name}, and transformers' quantisation is for its own"
    elif name.random:
        why = "it is untrained"
    elif config.weights:
        why = "its weights are a file of their own, and a folder that transformers saved is quantised as it is read"
    if why:
        raise UserError(f"teacher.quantization is set, and {config.name} can't have it: {why}.", "Leave it out.")
    quantization.check_installed()


def _name_labels(teacher: Model, config: TeacherConfig) -> None:
    """Give the teacher's classes the names that the config has for them, and their other names."""
    names, facts = config.label_names or teacher.facts.label_names, teacher.facts
    if names is None:
        return
    if len(names) != facts.num_classes:
        raise UserError(
            f"teacher.label_names has {len(names)} names, and {facts.name} has {facts.num_classes} classes.",
            "Name every class, in the order of its outputs.",
        )
    teacher.facts = replace(facts, label_names=names, label_aliases=aliases_of(names))


def build_student(
    config: StudentConfig,
    data: DataFacts,
    *,
    seed: int,
    teacher: Model | None = None,
    source: tuple[TeacherConfig, Model] | None = None,
) -> Model:
    """Build the model that is trained: a head for the data's task over their labels, which its saved config carries.

    The whole of an untrained student, and the new classifier of a pretrained one, are functions of ``seed``. A
    pretrained classifier stays only where it already has exactly these labels. A student of texts without a tokenizer
    of its own takes that of ``config.tokenizer``, or else the teacher's.

    Args:
        config: what to build.
        data: tells of the task and the labels; without any it has no classifier.
        seed: of new weights.
        teacher: whose tokenizer it may take.
        source: the model that ``teacher?layers=...&width=...`` is made of, and its config.

    Raises:
        UserError: no such model, its weights can't be had, it can't be set as asked for, or no student of the name
            ``none``.
    """
    name = parse_model(config.name)
    like: Model | None = None
    if config.is_from_teacher:
        place = _shrunk(config, parse_shrinking(config.name, name.arguments), source)
        assert source is not None
        teacher_config, like = source
        config = config.model_copy(update={"image_size": config.image_size or teacher_config.image_size})
    else:
        _check_student_name(config, name)
        place = locate(name, weights=config.pretrained, modality=data.noun)
        if config.pretrained and not library_called(place.library).keeps_weights(name.arguments):
            raise UserError(
                f"Student {config.name}: published weights are for the architecture as it is, not for these arguments.",
                "Set student.pretrained to false, or leave the arguments out. --student 'teacher?layers=N' takes over"
                " what fits of the teacher's weights.",
            )
    place = replace(place, channels=data.channels if data.noun == "image" else None)
    with seeded(seed):
        model = library_called(place.library).build(place, config, data, teacher=teacher, like=like)
    _check_channels(model, place)
    _check_head(model, data)
    if data.label_kind == "classes" and data.noun == "image":
        model.take_several_labels()
    return model.train()


def _for_channels(config: TeacherConfig, channels: int | None) -> TeacherConfig:
    """Return the config with a mean and a deviation for each channel, where one number is set for all.

    Raises:
        UserError: there are others than one, and not as many as channels.
    """
    count = channels or 3
    for key in ("mean", "std"):
        values = getattr(config, key)
        if values is not None and len(values) not in (1, count):
            raise UserError(
                f"teacher.{key} has {len(values)} numbers, and images have {said_channels(count)}.",
                "Give one for each, or one for all; data.channels says how images are read.",
            )
    changes = {key: getattr(config, key) * count for key in ("mean", "std") if len(getattr(config, key) or ()) == 1}
    return config.model_copy(update=changes)


def _check_channels(model: Model, place: Place) -> None:
    """Refuse a model for another number of channels than is wanted: not every library builds them for any."""
    own = model.facts.preprocessing
    if place.channels is None or not isinstance(own, Preprocessing) or own.num_channels == place.channels:
        return
    head = TASKS[model.facts.task].head
    others = {"dense": "segmentation-models-pytorch (smp:)", "depth": "segmentation-models-pytorch (smp:)", "boxes": ""}
    library = others.get(head, "timm")
    hint = f"Models of {library} are built for 1, 3 or 4, pretrained weights adapted" if library else "Detectors read 3"
    raise UserError(
        f"{model.facts.name} takes images of {said_channels(own.num_channels)}, and the data are read with"
        f" {said_channels(place.channels)}.",
        f"{hint}; or set data.channels={own.num_channels}.",
    )


def _check_head(model: Model, data: DataFacts) -> None:
    """Refuse a model of images whose head is none for the data's task: a classifier has nothing for every pixel."""
    wanted, found = TASKS[data.task], TASKS[model.facts.task]
    if wanted.modality == "image" and (data.class_names or wanted.head == "image") and wanted.head != found.head:
        small = " or ".join(name for library in LIBRARIES for name in library.small(wanted))
        raise UserError(
            f"{model.facts.name} as {model.facts.library} builds it is for {found.name}, and the task is"
            f" {wanted.name}.",
            f"Name a model with a head for {wanted.name}{f', such as {small}' if small else ''};"
            f" 'kdcli models search --task {wanted.name}' lists others, sooner with --name.",
        )


def _check_student_name(config: StudentConfig, name: ModelName) -> None:
    if "weights" in name.arguments:
        raise UserError(
            f"Student {config.name}: weights of a file are for teachers.",
            "A student starts untrained, from its published weights (--student-pretrained), from a local folder, or"
            " from the teacher's (--student 'teacher?layers=N').",
        )
    if name.random and config.pretrained:
        raise UserError(
            f"Student {config.name} is untrained by its name, but student.pretrained is set.",
            "Take 'random:' away, or set student.pretrained to false.",
        )


def _shrunk(config: StudentConfig, wanted: Shrinking, source: tuple[TeacherConfig, Model] | None) -> Place:
    """Return the place of ``source``'s architecture with fewer layers and less width.

    Raises:
        UserError: there is no source, published weights are asked for, or the architecture can't be changed so.
    """
    if source is None:
        raise UserError(
            f"Student {config.name} is made of a teacher, and there is none.",
            "Name a teacher, or say what it is made of with --set student.source=NAME.",
        )
    if config.pretrained:
        raise UserError(
            f"Student {config.name} has the teacher's weights, not published ones, but student.pretrained is set.",
            "Set student.pretrained to false.",
        )
    teacher_config, teacher = source
    if teacher_config.quantization is not None:
        raise UserError(
            f"Student {config.name} takes over weights of {teacher_config.name}, which are quantised.",
            f"Name them as its source, as they are: --set student.source={teacher_config.name}",
        )
    place = locate(parse_model(teacher_config.name), weights=False, modality=TASKS[teacher.facts.task].modality)
    values = library_called(place.library).arguments(place)
    return place.with_arguments(shrink(values, wanted, teacher=place.name))


def load_saved(folder: Path) -> Model:
    """Load a folder that :meth:`Model.save` wrote, in eval mode.

    Raises:
        UserError: the folder is not one of those, or is damaged.
    """
    library = library_of(folder)
    place = Place(library.name, f"{library.prefix}:{folder}", folder=utf8_path(folder))
    return library.open(place).eval()
