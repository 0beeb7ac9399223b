"""Teachers, students and saved students from their configs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, TextPooling
from kdcli.base.files import utf8_path
from kdcli.base.tasks import TASKS, task_of
from kdcli.base.text import short_repr
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import weights
from kdcli.models.base import Model, Origin, freeze, seeded
from kdcli.models.fit import LoadReport
from kdcli.models.imagenet import aliases_of
from kdcli.models.locate import locate
from kdcli.models.place import Place, library_of
from kdcli.models.recorded import Recorded
from kdcli.models.settle import change_input, check_against, settle_teacher, wanted_input
from kdcli.models.shrink import CopyReport, Shrinking, copy_tensors, parse_shrinking, shrink
from kdcli.models.spec import ModelName, parse_name
from kdcli.models.timm import build as timm
from kdcli.models.timm import model as timm_model
from kdcli.models.timm.model import TimmModel
from kdcli.models.transformers import build as hf
from kdcli.models.transformers import processor, text, vision
from kdcli.models.transformers import text_build as hf_text
from kdcli.models.transformers.sentence import SentenceSettings, prompt_of, read_sentence_settings
from kdcli.models.transformers.text import HFTextModel
from kdcli.models.transformers.tokenizer import lower_case, read_tokenizer
from kdcli.models.transformers.tokens import HFTokenModel
from kdcli.models.transformers.vision import HFModel
from kdcli.runs.folder import RunFolder


def load_teacher(config: TeacherConfig, *, seed: int) -> Model:
    """Load the model that is imitated, with its own head and labels, in eval mode and without gradients.

    Weights come from the model's publisher or from ``config.weights``; a teacher is untrained only as ``random:NAME``.
    What a checkpoint tells of its model's input and classes is taken over where the config says nothing else.
    A checkpoint that fits a timm architecture's 1000 (or 11821, 21841, ...) classes is taken to be ImageNet's.

    Args:
        config: what to load; not ``none``.
        seed: determines the weights of ``random:NAME``.

    Raises:
        UserError: no such model, its weights can't be had or don't fit, or it can't take ``image_size``.
    """
    config = settle_teacher(config)
    name = _parse(config.name)
    _check_teacher_name(config, name)
    path = weights.resolve_path(config.weights) if config.weights else None
    place = locate(name, weights=not name.random and path is None)
    checkpoint = weights.read_checkpoint(path, source=str(config.weights)) if path else None
    with seeded(seed):
        teacher = freeze(_teacher(place, name, config, checkpoint))
    _name_labels(teacher, config)
    own = place.run if not name.random and path is None else None
    if own is not None and RunFolder(own).read_config().leaves_classifier_untrained:
        # What it knows of its labels is in its features alone: it is no classifier.
        phrase = f"{teacher.facts.weights}; its classifier is untrained"
        teacher.facts = replace(teacher.facts, task=task_of("image", "none").name, weights=phrase)
    return teacher


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


def _teacher(place: Place, name: ModelName, config: TeacherConfig, checkpoint: weights.Checkpoint | None) -> Model:
    phrase = "untrained" if name.random else ""
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    module: Any
    if place.library == "timm":
        if checkpoint:
            size = wanted.get("image_size")
            module, arguments, report = timm.load_with_weights(place, checkpoint, image_size=size)
            phrase = _file_phrase(checkpoint, report, told, name, module.num_classes)
        else:
            module, arguments = timm.load(place, pretrained=not name.random, image_size=config.image_size)
        timm_model.set_input(module, wanted)
        names = None if name.random else timm_model.label_names(module, is_registered=_is_published_by_timm(place))
        if checkpoint:
            names = _names_of_file(checkpoint.recorded, names, module.num_classes)
        origin = _teacher_origin(place, name, module, names, config.image_size, phrase)
        return TimmModel(module, origin, arguments)
    if checkpoint:
        module, report = hf.build_teacher_with_weights(place, checkpoint)
    else:
        module = hf.build_teacher(place, pretrained=not name.random)
    names = vision.label_names(module.config) if vision.is_classifier(module) and not name.random else None
    if checkpoint:
        num_classes, _ = vision.classifier_of(module)
        phrase = _file_phrase(checkpoint, report, told, name, num_classes)
        names = _names_of_file(checkpoint.recorded, names, num_classes)
    origin = _teacher_origin(place, name, module, names, config.image_size, phrase)
    preprocessing = processor.preprocessing_of(place.folder, module.config, config.image_size)
    return HFModel(module, origin, change_input(preprocessing, wanted))


def _file_phrase(
    checkpoint: weights.Checkpoint, report: LoadReport, told: Sequence[str], name: ModelName, num_classes: int
) -> str:
    """Return in one phrase which file the weights are from, how they fitted, and what else the file tells."""
    phrases = [report.summary(), *told, *check_against(checkpoint.recorded, name, num_classes)]
    return f"{checkpoint.source}: {'; '.join(phrases)}"


def _names_of_file(recorded: Recorded, own: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...] | None:
    """Return the classes' names that a file tells of; where it hides their order none, and else the architecture's."""
    if recorded.class_names is not None and len(recorded.class_names) == num_classes:
        return recorded.class_names
    return None if recorded.hides_classes else own


def _teacher_origin(
    place: Place,
    name: ModelName,
    module: nn.Module,
    label_names: tuple[str, ...] | None,
    image_size: int | None,
    weights_phrase: str,
) -> Origin:
    """Return the origin; ``weights_phrase`` is empty where the weights are the publisher's."""
    if name.random:
        return Origin(f"random:{place.name}", False, weights_phrase, label_names, image_size)
    if weights_phrase:
        return Origin(place.name, True, weights_phrase, label_names, image_size)
    return Origin(_with_tag(place, module), True, _own_weights(place, module), label_names, image_size)


def _own_weights(place: Place, module: nn.Module) -> str:
    """Return where the weights came from that go with ``place`` itself."""
    if place.run is None:
        return f"pretrained, {place.folder or _with_tag(place, module)}"
    so_far = "" if (place.run / "result.json").is_file() else " so far; the run is not finished"
    return f"trained by kdcli: the best student of the run {place.run}{so_far}"


def build_student(
    config: StudentConfig,
    *,
    label_names: Sequence[str],
    seed: int,
    source: tuple[TeacherConfig, Model] | None = None,
) -> Model:
    """Build the model that is trained, with a classifier over ``label_names``, which its saved config will carry.

    Without label names it has no classifier.

    The whole of an untrained student, and the new classifier of a pretrained one, are functions of ``seed``. A
    pretrained classifier stays only where it already has exactly these labels.

    Args:
        config: what to build.
        label_names: of the classes.
        seed: of new weights.
        source: the teacher that ``teacher?layers=...&width=...`` is made of: its config, and the model.

    Raises:
        UserError: no such model, its weights can't be had, it can't take ``image_size``, or no student of the name
            ``none``.
    """
    if config.is_from_teacher:
        return _student_of_teacher(config, tuple(label_names), seed, source)
    name = _parse(config.name)
    _check_student_name(config, name)
    place = locate(name, weights=config.pretrained)
    with seeded(seed):
        model = (_timm_student if place.library == "timm" else _hf_student)(place, config, tuple(label_names))
    return model.train()


def _check_student_name(config: StudentConfig, name: ModelName) -> None:
    if "weights" in name.arguments:
        raise UserError(
            f"Student {config.name}: weights of a file are for teachers.",
            "A student starts untrained, from its published weights (--student-pretrained), from a local folder, or from"
            " the teacher's (--student 'teacher?layers=N').",
        )
    if name.arguments and config.pretrained:
        raise UserError(
            f"Student {config.name}: published weights are for the architecture as it is, not for these arguments.",
            "Set student.pretrained to false, or leave the arguments out. --student 'teacher?layers=N' takes over what"
            " fits of the teacher's weights.",
        )
    if name.random and config.pretrained:
        raise UserError(
            f"Student {config.name} is untrained by its name, but student.pretrained is set.",
            "Take 'random:' away, or set student.pretrained to false.",
        )


def _student_of_teacher(
    config: StudentConfig, names: tuple[str, ...], seed: int, source: tuple[TeacherConfig, Model] | None
) -> Model:
    place = _shrunk(config, parse_shrinking(config.name, _parse(config.name).arguments), source)
    assert source is not None
    teacher_config, teacher = source
    config = config.model_copy(update={"image_size": config.image_size or teacher_config.image_size})
    assert isinstance(teacher, (TimmModel, HFModel)), "it is a model of images"
    with seeded(seed):
        if isinstance(teacher, TimmModel):
            model = _timm_student(place, config, names, like=teacher)
        else:
            model = _hf_student(place, config, names, like=teacher)
    report = _copy(teacher, model)
    model.facts = replace(model.facts, weights=report.summary())
    return model.train()


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
    place = locate(_parse(teacher_config.name), weights=False, is_text=isinstance(teacher, HFTextModel))
    values = timm.constructor_values(place) if place.library == "timm" else hf.config_values(place)
    return place.with_arguments(shrink(values, wanted, teacher=place.name))


def _copy(teacher: Model, student: Model) -> CopyReport:
    """Copy what fits; a classifier only where it has exactly the student's labels."""
    ours, theirs = student.module, teacher.module
    both_classify = teacher.facts.num_classes and student.facts.num_classes
    if isinstance(student, HFModel) and isinstance(teacher, HFModel) and not both_classify:
        ours, theirs = student.backbone, teacher.backbone
    keeps_classifier = teacher.facts.label_names == student.facts.label_names
    classifier_of = timm.classifier_of if student.library == "timm" else vision.classifier_of
    leave = set() if keeps_classifier else classifier_of(student.module)[1]
    return copy_tensors(theirs, ours, leave=leave)


def _student_origin(place: Place, config: StudentConfig, module: nn.Module, names: tuple[str, ...]) -> Origin:
    if config.pretrained:
        return Origin(_with_tag(place, module), True, _own_weights(place, module), names, config.image_size)
    return Origin(place.name, False, "untrained", names, config.image_size)


def _timm_student(
    place: Place, config: StudentConfig, names: tuple[str, ...], *, like: TimmModel | None = None
) -> Model:
    """Build it; what is made of ``like`` has its images prepared alike, but for their size."""
    size = config.image_size
    module, arguments = timm.load(
        place,
        pretrained=config.pretrained,
        num_classes=len(names),
        image_size=size,
        drop_path=config.drop_path,
    )
    origin = _student_origin(place, config, module, names)
    if config.pretrained and timm.own_num_classes(place) == len(names):
        own_names = timm_model.label_names(module, is_registered=_is_published_by_timm(place))
        if own_names != names:
            module.reset_classifier(len(names))  # type: ignore[operator]
    timm.set_labels(module, names)
    if like is not None:
        timm_model.copy_input(like.module, module)
    return TimmModel(module, origin, arguments)


def _hf_student(place: Place, config: StudentConfig, names: tuple[str, ...], *, like: HFModel | None = None) -> Model:
    if config.drop_path is not None:
        raise UserError(
            "student.drop_path is for timm's models; those of transformers have it in their config.",
            f"Leave it out, or set it in the config.json of a local copy of {config.name}.",
        )
    own_names = vision.label_names(hf.read_config(place))
    module = hf.build_student(place, names, pretrained=config.pretrained, image_size=config.image_size)
    preprocessing = processor.preprocessing_of(place.folder, module.config, config.image_size)
    if like is not None:
        preprocessing = like.preprocessing.at(preprocessing.image_size)
    origin = _student_origin(place, config, module, names)
    model = HFModel(module, origin, preprocessing)
    if config.pretrained and own_names != names:
        model.reset_classifier()
    return model


_CLASSIFIES_TEXTS = task_of("text", "sequence").name


def load_text_teacher(config: TeacherConfig, *, seed: int, task: str = _CLASSIFIES_TEXTS) -> HFTextModel:
    """Load the model of text that is imitated, with its own head, tokenizer and pooling; as :func:`load_teacher`.

    For a task over tokens its features and logits are of tokens.

    Raises:
        UserError: no such model, it has no tokenizer or is no language model where one is wanted, its weights can't be
            had or don't fit.
    """
    config = settle_teacher(config, is_text=True)
    name = _parse(config.name)
    _check_teacher_name(config, name)
    path = weights.resolve_path(config.weights) if config.weights else None
    place = locate(name, weights=not name.random and path is None, is_text=True)
    if (tokenizer := read_tokenizer(place.folder)) is None:
        raise UserError(f"{config.name} has no tokenizer.", "Put its tokenizer.json beside config.json.")
    settings = read_sentence_settings(place.folder)
    if settings.lower_case:
        lower_case(tokenizer, place.name)
    native = hf_text.read_text_config(place)
    over_tokens = TASKS[task].is_over_tokens
    pooling: TextPooling = "none" if over_tokens else config.pooling or hf_text.own_pooling(native, settings)
    phrase = "untrained" if name.random else ""
    with seeded(seed):
        if path is None:
            module = hf_text.build_text_teacher(place, native, task=task, pretrained=not name.random, pooling=pooling)
        else:
            checkpoint = weights.read_checkpoint(path, source=str(config.weights))
            module, report = hf_text.build_text_teacher_with_weights(
                place, native, checkpoint, task=task, pooling=pooling
            )
            num_classes, _ = hf_text.classifier_of(module)
            phrase = _file_phrase(checkpoint, report, (), name, num_classes)
    names = _text_labels(module) if not name.random else None
    if path is not None:
        names = _names_of_file(checkpoint.recorded, names, num_classes)
    remarks, head = settings.remarks, settings.head
    if over_tokens or config.pooling not in (None, settings.pooling):
        head = None
        remarks += _left_out(settings)
    preprocessing = hf_text.preprocessing_of(
        place,
        module,
        tokenizer,
        asked_length=config.max_length,
        own_length=settings.max_length,
        pooling=pooling,
        tokenizer_of=place.name,
        prompt="" if over_tokens else prompt_of(settings, asked=config.prompt, name=place.name),
        remarks=() if over_tokens else remarks,
    )
    origin = _teacher_origin(place, name, module, names, None, phrase)
    if over_tokens:
        model: HFTextModel = HFTokenModel(module, origin, tokenizer, preprocessing)
    else:
        model = HFTextModel(module, origin, tokenizer, preprocessing, head=head)
    freeze(model)
    _name_labels(model, config)
    return model


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


def build_text_student(
    config: StudentConfig,
    *,
    data: DataFacts,
    teacher: Model | None,
    seed: int,
    source: tuple[TeacherConfig, Model] | None = None,
) -> HFTextModel:
    """Build the model of text that is trained; as :func:`build_student`.

    It has a classifier over the data's labels, or none where the data have none. One without a tokenizer of its own
    takes that of ``config.tokenizer``, or else the teacher's.

    Args:
        config: what to build.
        data: tells of the labels.
        teacher: whose tokenizer it may take.
        seed: of new weights.
        source: what ``teacher?layers=...&width=...`` is made of: its config, and the model.

    Raises:
        UserError: no such model, it has no tokenizer and there is no teacher, or its weights can't be had.
    """
    name = _parse(config.name)
    wanted = parse_shrinking(config.name, name.arguments) if config.is_from_teacher else None
    if wanted is not None:
        place = _shrunk(config, wanted, source)
    else:
        _check_student_name(config, name)
        place = locate(name, weights=config.pretrained, is_text=True)
    native = hf_text.read_text_config(place)
    settings = read_sentence_settings(place.folder)
    tokenizer, tokenizer_of = read_tokenizer(place.folder), place.name
    has_own = tokenizer is not None
    if has_own and settings.lower_case:
        lower_case(tokenizer, place.name)
    if tokenizer is None and config.tokenizer is not None:
        tokenizer, tokenizer_of = _lent_tokenizer(config.tokenizer)
    if tokenizer is None:
        if not isinstance(teacher, HFTextModel):
            raise UserError(
                f"{config.name} has no tokenizer, and there is no teacher to take one from.",
                "Put the tokenizer.json of its kind beside config.json, or name a model with --set student.tokenizer=NAME.",
            )
        tokenizer, tokenizer_of = copy.deepcopy(teacher.tokenizer), teacher.facts.name
    if not config.pretrained and wanted is None:
        hf_text.fit_vocabulary(native, tokenizer)
    own_names = vision.label_names(native) if text.head_of_config(native) in ("sequence", "token") else None
    over_tokens = TASKS[data.task].is_over_tokens
    pooling: TextPooling = "none" if over_tokens else config.pooling or hf_text.own_pooling(native, settings)
    embeds = TASKS[data.task].is_label_free
    remarks = () if over_tokens else settings.remarks + _left_out(settings)
    if not (over_tokens or embeds) and settings.prompt:
        remarks += (f"Its own prompt {short_repr(settings.prompt)} is for embeddings, and is left out.",)
    with seeded(seed):
        module = hf_text.build_text_student(place, native, data, pretrained=config.pretrained, pooling=pooling)
        if has_own and place.folder is not None and not config.pretrained:
            hf_text.keep_generation(module, place.folder)
        preprocessing = hf_text.preprocessing_of(
            place,
            module,
            tokenizer,
            asked_length=config.max_length,
            own_length=settings.max_length,
            pooling=pooling,
            tokenizer_of=tokenizer_of,
            prompt=prompt_of(settings, asked=None, name=place.name) if embeds else "",
            remarks=remarks,
        )
        origin = _student_origin(place, config, module, data.class_names)
        model = (HFTokenModel if over_tokens else HFTextModel)(module, origin, tokenizer, preprocessing)
        if config.pretrained and data.class_names and own_names != data.class_names:
            model.reset_classifier()
        if data.label_scale is not None:
            model.start_at(data.label_scale[0])
    if wanted is not None and source is not None:
        parts: list[Any] = [source[1].module, module]
        if not TASKS[data.task].is_language_model:
            parts = [part.base_model for part in parts]
        report = copy_tensors(*parts, leave=set())
        model.facts = replace(model.facts, weights=report.summary())
    model.train()
    return model


def _left_out(settings: SentenceSettings) -> tuple[str, ...]:
    return () if settings.head is None else ("The layers that come after its pooling are left out.",)


def _lent_tokenizer(config: TeacherConfig) -> tuple[Any, str]:
    """Return the tokenizer of a model that is not loaded, with its length as a teacher's, and whose it is."""
    if config.weights is not None:
        raise UserError(
            f"student.tokenizer: {config.name} has weights of a file, and no more than its tokenizer is taken.",
            "Name the model alone.",
        )
    place = locate(_parse(config.name), weights=False, is_text=True)
    if (tokenizer := read_tokenizer(place.folder)) is None:
        raise UserError(f"student.tokenizer: {config.name} has no tokenizer.", "Name a model that has one.")
    settings = read_sentence_settings(place.folder)
    if settings.lower_case:
        lower_case(tokenizer, place.name)
    length = config.max_length or settings.max_length
    if length is not None:
        tokenizer.model_max_length = min(length, tokenizer.model_max_length)
    return tokenizer, place.name


def load_saved(folder: Path) -> Model:
    """Load a folder that :meth:`Model.save` wrote, in eval mode.

    Raises:
        UserError: the folder is not one of those, or is damaged.
    """
    library = library_of(folder)
    place = Place(library, f"{'timm' if library == 'timm' else 'hf'}:{folder}", folder=utf8_path(folder))
    if library == "timm":
        module, arguments = timm.load(place, pretrained=True)
        names = timm_model.label_names(module, is_registered=False)
        return TimmModel(module, Origin(place.name, True, f"saved in {folder}", names), arguments).eval()
    if (tokenizer := read_tokenizer(folder)) is not None:  # no model of images has one
        return _load_saved_text(place, folder, tokenizer)
    module = hf.load_saved_module(place)
    origin = Origin(place.name, True, f"saved in {folder}", vision.label_names(module.config))
    return HFModel(module, origin, processor.preprocessing_of(folder, module.config, None)).eval()


def _load_saved_text(place: Place, folder: Path, tokenizer: Any) -> Model:
    module = hf_text.load_saved_text_module(place)
    over_tokens = text.head_kind(module) in ("token", "masked", "causal")
    settings = read_sentence_settings(folder)
    pooling: TextPooling = "none" if over_tokens else hf_text.own_pooling(module.config, settings)
    preprocessing = hf_text.preprocessing_of(
        place,
        module,
        tokenizer,
        asked_length=None,
        own_length=hf_text.own_length(module.config, tokenizer),
        pooling=pooling,
        tokenizer_of=place.name,
        prompt=settings.prompt,
    )
    origin = Origin(place.name, True, f"saved in {folder}", _text_labels(module))
    return (HFTokenModel if over_tokens else HFTextModel)(module, origin, tokenizer, preprocessing).eval()


def _text_labels(module: Any) -> tuple[str, ...] | None:
    return vision.label_names(module.config) if text.head_kind(module) in ("sequence", "token") else None


def _parse(text: str) -> ModelName:
    name = parse_name(text)
    if name is None:
        raise UserError("'none' is no model to load.", "Name a model; only a teacher can be 'none'.")
    return name


def _is_published_by_timm(place: Place) -> bool:
    is_registered = place.architecture is not None and place.name.startswith("timm:")
    return is_registered or place.name.startswith("timm:timm/")


def _with_tag(place: Place, module: nn.Module) -> str:
    """Return the name with the tag that timm's default stands for: ``timm:resnet50`` -> ``timm:resnet50.a1_in1k``."""
    cfg = getattr(module, "pretrained_cfg", None)
    tag = cfg.get("tag") if isinstance(cfg, dict) else None
    return f"{place.name}.{tag}" if place.architecture and tag and "." not in place.name else place.name
