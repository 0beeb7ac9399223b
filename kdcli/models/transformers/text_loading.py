"""Teachers, students and saved folders of transformers' models of texts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, TextPooling
from kdcli.base.tasks import TASKS, TaskFacts
from kdcli.base.text import short_repr
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.locate import locate
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.shrink import copy_tensors
from kdcli.models.spec import ModelName, parse_model
from kdcli.models.transformers import text_build
from kdcli.models.transformers.sentence import SentenceSettings, prompt_of, read_sentence_settings
from kdcli.models.transformers.text import HFTextModel, head_kind, head_of_config
from kdcli.models.transformers.tokenizer import lower_case, read_tokenizer
from kdcli.models.transformers.tokens import HFTokenModel
from kdcli.models.transformers.vision import label_names
from kdcli.models.weights import Checkpoint


def load_teacher(
    place: Place, name: ModelName, config: TeacherConfig, task: TaskFacts, checkpoint: Checkpoint | None
) -> HFTextModel:
    """Load a model with its own head, tokenizer and pooling; for a task over tokens features and logits are of tokens.

    Raises:
        UserError: it has no tokenizer or is no language model where one is wanted, or its weights can't be had or don't
            fit.
    """
    if (tokenizer := read_tokenizer(place.folder)) is None:
        raise UserError(f"{config.name} has no tokenizer.", "Put its tokenizer.json beside config.json.")
    settings = read_sentence_settings(place.folder)
    if settings.lower_case:
        lower_case(tokenizer, place.name)
    native = text_build.read_text_config(place)
    over_tokens = task.is_over_tokens
    pooling: TextPooling = "none" if over_tokens else config.pooling or text_build.own_pooling(native, settings)
    phrase = ""
    if checkpoint is None:
        pretrained = not name.random
        module = text_build.build_text_teacher(place, native, task=task.name, pretrained=pretrained, pooling=pooling)
        names = _labels(module) if pretrained else None
    else:
        module, report = text_build.build_text_teacher_with_weights(
            place, native, checkpoint, task=task.name, pooling=pooling
        )
        num_classes, _ = text_build.classifier_of(module)
        phrase = phrase_of_file(checkpoint, report, (), name, num_classes)
        names = names_of_file(checkpoint.recorded, _labels(module), num_classes)
    remarks, head = settings.remarks, settings.head
    if over_tokens or config.pooling not in (None, settings.pooling):
        head = None
        remarks += _left_out(settings)
    preprocessing = text_build.preprocessing_of(
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
    origin = teacher_origin(place, name, names, file_phrase=phrase)
    if over_tokens:
        return HFTokenModel(module, origin, tokenizer, preprocessing)
    return HFTextModel(module, origin, tokenizer, preprocessing, head=head)


@dataclass(frozen=True)
class _Tokenizer:
    """A student's tokenizer, and whose it is."""

    own: Any
    source: str
    is_lent: bool


def build_student(
    place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
) -> HFTextModel:
    """Build it with a classifier over the data's labels, or none where the data have none, or as a language model.

    Raises:
        UserError: it has no tokenizer and there is no teacher, or its weights can't be had.
    """
    native = text_build.read_text_config(place)
    settings = read_sentence_settings(place.folder)
    tokenizer = _tokenizer_of(place, config, settings, teacher)
    if not config.pretrained and like is None:
        text_build.fit_vocabulary(native, tokenizer.own)
    own_names = label_names(native) if head_of_config(native) in ("sequence", "token") else None
    task = TASKS[data.task]
    pooling: TextPooling = "none" if task.is_over_tokens else config.pooling or text_build.own_pooling(native, settings)
    module = text_build.build_text_student(place, native, data, pretrained=config.pretrained, pooling=pooling)
    if not tokenizer.is_lent and place.folder is not None and not config.pretrained:
        text_build.keep_generation(module, place.folder)
    preprocessing = text_build.preprocessing_of(
        place,
        module,
        tokenizer.own,
        asked_length=config.max_length,
        own_length=settings.max_length,
        pooling=pooling,
        tokenizer_of=tokenizer.source,
        prompt=prompt_of(settings, asked=None, name=place.name) if task.is_label_free else "",
        remarks=_student_remarks(task, settings),
    )
    origin = student_origin(place, config, data.class_names)
    model = (HFTokenModel if task.is_over_tokens else HFTextModel)(module, origin, tokenizer.own, preprocessing)
    if config.pretrained and data.class_names and own_names != data.class_names:
        model.reset_classifier()
    if data.label_scale is not None:
        model.start_at(data.label_scale[0])
    if like is not None:
        parts: list[Any] = [like.module, module]
        if not task.is_language_model:
            parts = [part.base_model for part in parts]
        model.facts = replace(model.facts, weights=copy_tensors(*parts, leave=set()).summary())
    return model


def _student_remarks(task: TaskFacts, settings: SentenceSettings) -> tuple[str, ...]:
    if task.is_over_tokens:
        return ()
    remarks = settings.remarks + _left_out(settings)
    if not task.is_label_free and settings.prompt:
        remarks += (f"Its own prompt {short_repr(settings.prompt)} is for embeddings, and is left out.",)
    return remarks


def _tokenizer_of(place: Place, config: StudentConfig, settings: SentenceSettings, teacher: Model | None) -> _Tokenizer:
    """Return the student's own tokenizer, or else that of ``config.tokenizer``, or else the teacher's."""
    own = read_tokenizer(place.folder)
    if own is not None:
        if settings.lower_case:
            lower_case(own, place.name)
        return _Tokenizer(own, place.name, is_lent=False)
    if config.tokenizer is not None:
        return _lent_tokenizer(config.tokenizer)
    if not isinstance(teacher, HFTextModel):
        raise UserError(
            f"{config.name} has no tokenizer, and there is no teacher to take one from.",
            "Put the tokenizer.json of its kind beside config.json, or name a model with --set student.tokenizer=NAME.",
        )
    return _Tokenizer(copy.deepcopy(teacher.tokenizer), teacher.facts.name, is_lent=True)


def _lent_tokenizer(config: TeacherConfig) -> _Tokenizer:
    """Return the tokenizer of a model that is not loaded, with its length as a teacher's."""
    if config.weights is not None:
        raise UserError(
            f"student.tokenizer: {config.name} has weights of a file, and no more than its tokenizer is taken.",
            "Name the model alone.",
        )
    place = locate(parse_model(config.name), weights=False, modality="text")
    if (tokenizer := read_tokenizer(place.folder)) is None:
        raise UserError(f"student.tokenizer: {config.name} has no tokenizer.", "Name a model that has one.")
    settings = read_sentence_settings(place.folder)
    if settings.lower_case:
        lower_case(tokenizer, place.name)
    length = config.max_length or settings.max_length
    if length is not None:
        tokenizer.model_max_length = min(length, tokenizer.model_max_length)
    return _Tokenizer(tokenizer, place.name, is_lent=True)


def open_saved(place: Place) -> HFTextModel | None:
    """Load what :meth:`HFTextModel.save` wrote; None for a folder without a tokenizer, which is of images."""
    assert place.folder is not None
    if (tokenizer := read_tokenizer(place.folder)) is None:
        return None
    module: Any = text_build.load_saved_text_module(place)
    over_tokens = head_kind(module) in ("token", "masked", "causal")
    settings = read_sentence_settings(place.folder)
    pooling: TextPooling = "none" if over_tokens else text_build.own_pooling(module.config, settings)
    preprocessing = text_build.preprocessing_of(
        place,
        module,
        tokenizer,
        asked_length=None,
        own_length=text_build.own_length(module.config, tokenizer),
        pooling=pooling,
        tokenizer_of=place.name,
        prompt=settings.prompt,
    )
    origin = saved_origin(place, _labels(module))
    return (HFTokenModel if over_tokens else HFTextModel)(module, origin, tokenizer, preprocessing)


def _left_out(settings: SentenceSettings) -> tuple[str, ...]:
    return () if settings.head is None else ("The layers that come after its pooling are left out.",)


def _labels(module: Any) -> tuple[str, ...] | None:
    return label_names(module.config) if head_kind(module) in ("sequence", "token") else None
