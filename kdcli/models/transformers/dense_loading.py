"""Segmenters and depth models of transformers as teachers, students and saved folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, Preprocessing
from kdcli.base.tasks import TASKS, TaskFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.settle import change_input, wanted_input
from kdcli.models.shrink import copy_tensors
from kdcli.models.spec import ModelName
from kdcli.models.transformers import build, processor
from kdcli.models.transformers.dense import HFDense
from kdcli.models.transformers.dense_kinds import (
    AUTO,
    CLASSES,
    PROCESSORS,
    DenseHead,
    backbone_config,
    complete,
    depth_kind,
    head_of,
    in_metres,
    needs_prompt,
    start_depth,
)
from kdcli.models.transformers.vision import label_names
from kdcli.models.weights import Checkpoint

_DEPTH_NAMES = ("depth",)
_USUAL_SIZE = (512, 512)
"""Input of a model that has no size of its own, nor an image processor with one."""


def head_at(place: Place, wanted: str) -> DenseHead | None:
    """Return the head at every position of a folder or a kind of network; None where it has none.

    Args:
        place: where it is.
        wanted: the head of the task, for a kind that can have several.
    """
    return head_of(build.read_config(place), wanted)


def load_teacher(
    place: Place, name: ModelName, config: TeacherConfig, task: TaskFacts, checkpoint: Checkpoint | None
) -> HFDense:
    """Load a segmenter or a depth model with its own head, prepared as its image processor and checkpoint say.

    Raises:
        UserError: its depth means nothing without a prompt, or the weights don't fit.
    """
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    settings = build.read_config(place)
    head = head_of(settings, task.head)
    assert head is not None, "the caller looked"
    complete(settings, head)
    if needs_prompt(settings) and not name.random:
        raise UserError(
            f"The depth of {place.name} is relative to the range of a prompt, a depth map beside the image, which kdcli"
            " gives none.",
            "Choose another teacher, such as one of the kind depth_anything.",
        )
    module: Any
    phrase, names = "", None
    if checkpoint:
        module, report = _with_weights(place, settings, head, checkpoint)
        number = _number(module, head)
        phrase = phrase_of_file(checkpoint, report, told, name, number)
        names = names_of_file(checkpoint.recorded, label_names(settings), number)
    elif name.random:
        if config.input_size is not None:
            _set_image_size(settings, config.input_size, place)
        module = build.from_config(AUTO[head], place, settings)
    else:
        module = build.load_weights(AUTO[head], place, settings, may_miss=("auxiliary_head",))
        names = label_names(module.config)
    names = _DEPTH_NAMES if head == "depth" else names
    origin = teacher_origin(place, name, names, image_size=config.input_size, file_phrase=phrase)
    preprocessing = _preprocessing(place, module.config, head, config.input_size)
    return HFDense(module, origin, change_input(preprocessing, wanted), head=head, kind=config.depth)


def build_student(place: Place, config: StudentConfig, data: DataFacts, *, like: Model | None) -> HFDense:
    """Build a segmenter of the data's classes, or a model of depth in metres.

    What has a row for each class is untrained, unless published weights already have exactly these classes. Published
    weights of a backbone alone, or of a classifier, are taken where the kind has a head for the task.

    Raises:
        UserError: there is no such head, or weights or size can't be had.
    """
    if config.drop_path is not None:
        raise UserError(
            "student.drop_path is for timm's models.", "Set it as an argument of the name, or leave it out."
        )
    settings = build.read_config(place)
    head = _head_for(place, settings, TASKS[data.task])
    complete(settings, head)
    published = head if settings.architectures and head_of(settings, head) == head else None
    own_names, own_depth = label_names(settings), depth_kind(settings)
    names = data.class_names
    own_size = processor.own_image_size(backbone_config(settings))
    if head == "depth":
        assert data.depth is not None, "the task says which depths count"
        in_metres(settings, data.depth, pretrained=config.pretrained, given=place.arguments)
    keeps_classes = head == "depth" or own_names == names
    if config.input_size is not None and not config.pretrained:
        _set_image_size(settings, config.input_size, place)
    module: Any
    if config.pretrained and published and keeps_classes:
        module = build.load_weights(AUTO[head], place, settings, may_miss=("auxiliary_head",))
    elif config.pretrained and published:
        source = build.load_weights(AUTO[head], place, settings, may_miss=("auxiliary_head",))
        module = _new(place, settings, head, names)
        copy_tensors(source, module, leave=_class_parameters(place, settings, head))
    elif config.pretrained:
        _name_classes(settings, head, names)
        settings.architectures = [CLASSES[head][settings.model_type]]
        module = build.load_weights(AUTO[head], place, settings, may_miss=_heads(place, settings, head))
    else:
        module = _new(place, settings, head, names)
    if head == "depth":
        assert data.depth is not None
        start_depth(module, data.depth, anew=published is not None and config.pretrained and own_depth == "inverse")
    _check_size(place, config, own_size)
    preprocessing = _preprocessing(place, module.config, head, config.input_size)
    if like is not None:
        assert isinstance(like.preprocessing, Preprocessing), "it is a model of images"
        preprocessing = like.preprocessing.at(preprocessing.image_size)
    model = HFDense(module, student_origin(place, config, names), preprocessing, head=head)
    if like is not None:
        keeps = head == "depth" or like.facts.label_names == names
        leave = set() if keeps else _class_parameters(place, settings, head)
        model.facts = replace(model.facts, weights=copy_tensors(like.module, module, leave=leave).summary())
    return model


def build_bare(
    place: Place, names: Sequence[str], task: TaskFacts, image_size: tuple[int, int] | None
) -> tuple[nn.Module, tuple[int, int]]:
    """Return an untrained network of transformers' own for a task, and the (height, width) that it is made for."""
    settings = build.read_config(place)
    head = _head_for(place, settings, task)
    complete(settings, head)
    if image_size is not None:
        _set_image_size(settings, image_size, place)
    own = processor.own_image_size(backbone_config(settings))
    module = _new(place, settings, head, names)
    return module, image_size or own or _USUAL_SIZE


def open_saved(place: Place) -> HFDense:
    """Load what :meth:`HFDense.save` wrote."""
    settings = build.read_config(place)
    head = head_of(settings, "")
    assert head is not None, "the caller looked"
    module: Any = build.load_weights(AUTO[head], place, settings, may_miss=())
    names = _DEPTH_NAMES if head == "depth" else label_names(module.config)
    preprocessing = _preprocessing(place, module.config, head, None)
    return HFDense(module, saved_origin(place, names), preprocessing, head=head)


def _head_for(place: Place, settings: Any, task: TaskFacts) -> DenseHead:
    """Return the task's head.

    Raises:
        UserError: the kind has none.
    """
    head: DenseHead = "depth" if task.head == "depth" else "dense"
    if settings.model_type not in CLASSES[head]:
        raise UserError(
            f"transformers has no model for {task.words} of the kind {settings.model_type!r} ({place.name}).",
            f"Choose one of these kinds: {', '.join(f'hf:{kind}' for kind in sorted(CLASSES[head]))}.",
        )
    return head


def _name_classes(settings: Any, head: DenseHead, names: Sequence[str]) -> None:
    if head == "dense":
        settings.id2label = dict(enumerate(names))
        settings.label2id = {name: index for index, name in enumerate(names)}
        settings.num_labels = len(names)


def _new(place: Place, settings: Any, head: DenseHead, names: Sequence[str]) -> nn.Module:
    """Build an untrained model over these classes."""
    _name_classes(settings, head, names)
    return build.from_config(AUTO[head], place, settings)


def _number(module: Any, head: DenseHead) -> int:
    return 1 if head == "depth" else module.config.num_labels


def _outline(place: Place, settings: Any, head: DenseHead, num_labels: int | None = None) -> nn.Module:
    """Return the model without memory for its weights, with so many classes."""
    copy = type(settings)(**settings.to_dict())
    if num_labels is not None:
        copy.num_labels = num_labels
    with torch.device("meta"):
        return build.from_config(AUTO[head], place, copy)


def _class_parameters(place: Place, settings: Any, head: DenseHead) -> set[str]:
    """Return the names of the parameters that have a row for each class: those that another number changes."""
    if head == "depth":
        return set()
    number = settings.num_labels
    ours, theirs = (dict(_outline(place, settings, head, count).named_parameters()) for count in (number, number + 1))
    return {name for name, parameter in ours.items() if parameter.shape != theirs[name].shape}


def _heads(place: Place, settings: Any, head: DenseHead) -> tuple[str, ...]:
    """Return the names of the children that are not what reads the image, which comes first."""
    children = [name for name, child in _outline(place, settings, head).named_children() if [*child.parameters()]]
    return (*children[1:], "pooler")


def _with_weights(place: Place, settings: Any, head: DenseHead, checkpoint: Checkpoint) -> tuple[nn.Module, LoadReport]:
    """Build a model with a local checkpoint's weights, with as many classes as they have."""

    def make(width: int | None) -> nn.Module:
        if width and head == "dense":
            settings.num_labels = width
        return build.from_config(AUTO[head], place, settings)

    def classifier(module: Any) -> tuple[int, set[str]]:
        return _number(module, head), _class_parameters(place, module.config, head)

    return build_with_weights(make, checkpoint, classifier=classifier)


def _set_image_size(settings: Any, size: tuple[int, int], place: Place) -> None:
    """Let an untrained model have position embeddings for images of this (height, width)."""
    for part in {id(part): part for part in (settings, backbone_config(settings))}.values():
        processor.set_image_size(part, size, label=place.name)


def _check_size(place: Place, config: StudentConfig, own: tuple[int, int] | None) -> None:
    asked = config.input_size
    if config.pretrained and asked is not None and own is not None and own != asked:
        raise UserError(
            f"{place.name} was trained for images of {own[0]}x{own[1]} pixels, and its position embeddings are kept at"
            " that.",
            f"Leave student.image_size out, or start untrained (not {asked[0]}x{asked[1]}).",
        )


def _preprocessing(place: Place, config: Any, head: DenseHead, image_size: tuple[int, int] | None) -> Preprocessing:
    """Return how the model wants its images: squashed to its size, so that nothing is cut off."""
    own = processor.own_image_size(backbone_config(config))
    found = processor.preprocessing_of(place.folder, config, image_size, kind=PROCESSORS[head])
    if not processor.is_in(place.folder):
        found = found.at(image_size or own or _USUAL_SIZE)
    note = found.note
    if processor.is_in(place.folder) and found.geometry != "squash":
        note = f"{note} Images are squashed to its size, where its image processor cuts them.".strip()
    return replace(found, geometry="squash", resize=found.image_size, note=note)
