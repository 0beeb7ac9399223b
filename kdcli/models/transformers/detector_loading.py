"""Detectors of transformers as teachers, students and saved folders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForObjectDetection

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.settle import change_input, wanted_input
from kdcli.models.shrink import copy_tensors
from kdcli.models.spec import ModelName
from kdcli.models.transformers import build, processor
from kdcli.models.transformers.detection import HFDetector
from kdcli.models.transformers.detector_kinds import (
    CLASSIFIERS,
    KINDS,
    check_trains,
    classifier_parameters,
    is_detector,
    kind_of,
)
from kdcli.models.transformers.vision import label_names
from kdcli.models.weights import Checkpoint, Tensors

_AUTO: Any = AutoModelForObjectDetection


def is_of_detector(place: Place) -> bool:
    """Whether a folder or a kind of network is a detector's."""
    return is_detector(build.read_config(place))


def load_teacher(place: Place, name: ModelName, config: TeacherConfig, checkpoint: Checkpoint | None) -> HFDetector:
    """Load a detector with its own classes."""
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    settings = _read(place, config.input_size)
    module: Any
    phrase, names = "", None
    if checkpoint:
        module, report = _with_weights(place, settings, checkpoint)
        number = module.config.num_labels
        phrase = phrase_of_file(checkpoint, report, told, name, number)
        names = names_of_file(checkpoint.recorded, label_names(settings), number)
    elif name.random:
        module = build.from_config(_AUTO, place, settings)
    else:
        module = build.load_weights(_AUTO, place, settings, may_miss=("pooler",))
        names = label_names(module.config)
    origin = teacher_origin(place, name, names, image_size=config.input_size, file_phrase=phrase)
    preprocessing = _preprocessing(place, module.config, config.input_size)
    return HFDetector(module, origin, change_input(preprocessing, wanted))


def build_student(place: Place, config: StudentConfig, names: tuple[str, ...], *, like: Model | None) -> HFDetector:
    """Build a detector of the classes ``names``.

    What has a row for each class is untrained, unless it already has exactly these classes.
    """
    if config.drop_path is not None:
        raise UserError("student.drop_path is for timm's models.", "Leave it out.")
    module: Any
    if config.pretrained:
        settings = _read(place, config.input_size)
        own_names = label_names(settings)
        _set_classes(settings, place, names)
        module = build.load_weights(_AUTO, place, settings, may_miss=None, heads=tuple(CLASSIFIERS))
        if own_names != names:
            _reset_classifier(module)
        preprocessing = _preprocessing(place, module.config, config.input_size)
    else:
        module, preprocessing = build_untrained(place, names, image_size=config.input_size)
    if like is None:
        return HFDetector(module, student_origin(place, config, names), preprocessing)
    assert isinstance(like, HFDetector), "it is a smaller copy of one"
    preprocessing = like.preprocessing.at(preprocessing.image_size)
    model = HFDetector(module, student_origin(place, config, names), preprocessing)
    leave = set() if like.facts.label_names == names else classifier_parameters(module)
    report = copy_tensors(like.module, module, leave=leave)
    model.facts = replace(model.facts, weights=report.summary())
    queries = model.facts.queries
    assert queries is not None
    if set(_query_parameters(module)) <= set(report.copied):
        model.facts = replace(model.facts, queries=replace(queries, source=like.facts.name))
    return model


def build_untrained(
    place: Place, names: tuple[str, ...], *, image_size: tuple[int, int] | None
) -> tuple[Any, Preprocessing]:
    """Return transformers' own untrained detector of the classes ``names``, and how it wants its images.

    Raises:
        UserError: transformers has no detector of this kind, or no loss for it.
    """
    settings = _read(place, image_size)
    _set_classes(settings, place, names)
    return build.from_config(_AUTO, place, settings), _preprocessing(place, settings, image_size)


def _set_classes(settings: Any, place: Place, names: tuple[str, ...]) -> None:
    check_trains(kind_of(settings, place.name), place.name)
    settings.id2label = dict(enumerate(names))
    settings.label2id = {name: index for index, name in enumerate(names)}


def open_saved(place: Place) -> HFDetector:
    """Load what :meth:`HFDetector.save` wrote."""
    settings = _read(place, None)
    module: Any = build.load_weights(_AUTO, place, settings, may_miss=())
    preprocessing = _preprocessing(place, module.config, None)
    return HFDetector(module, saved_origin(place, label_names(module.config)), preprocessing)


def _preprocessing(place: Place, settings: Any, image_size: tuple[int, int] | None) -> Preprocessing:
    kind = kind_of(settings, place.name).processor
    return processor.preprocessing_of(place.folder, settings, image_size, kind=kind)


def _read(place: Place, image_size: tuple[int, int] | None) -> Any:
    """Return the config, for images of ``image_size`` where it is given.

    Raises:
        UserError: it is no detector of boxes.
    """
    config = build.read_config(place)
    if not is_detector(config):
        raise UserError(
            f"{place.name} is no detector of transformers (its kind is {config.model_type!r}).",
            f"Choose one of these kinds: {', '.join(f'hf:{kind}' for kind in sorted(KINDS))}.",
        )
    kind = kind_of(config, place.name)
    if kind.layout == "patches" and config.auxiliary_loss:
        if "auxiliary_loss" in place.arguments:
            raise UserError(
                f"{place.name}: transformers fails in training with auxiliary_loss=True.", "Leave that argument out."
            )
        config.auxiliary_loss = False  # it plays a part in no weights, and in training alone
    if image_size is not None and processor.own_image_size(config) != image_size:
        _set_size(config, image_size, label=place.name)
    return config


def _set_size(config: Any, size: tuple[int, int], *, label: str) -> None:
    """Let an untrained detector have position embeddings of this size, and RT-DETR and its kin none kept in advance."""
    for part in (config, getattr(config, "backbone_config", None)):
        if part is not None:
            processor.set_image_size(part, size, label=label)
    for key in ("anchor_image_size", "eval_size"):
        if getattr(config, key, None) is not None:
            setattr(config, key, None)


def _with_weights(place: Place, settings: Any, checkpoint: Checkpoint) -> tuple[nn.Module, LoadReport]:
    """Build a detector with a local checkpoint's weights, with as many classes as they have."""
    extra = 1 if kind_of(settings, place.name).background else 0

    def make(width: int | None) -> nn.Module:
        if width:
            settings.num_labels = width - extra
        return build.from_config(_AUTO, place, settings)

    def classifier(module: Any) -> tuple[int, set[str]]:
        width = module.config.num_labels + extra
        state = module.state_dict()
        return width, {name for name in classifier_parameters(module) if len(state[name]) == width}

    return build_with_weights(make, checkpoint, classifier=classifier, remap=_renamed)


def _renamed(tensors: Tensors, module: Any) -> Tensors | None:
    """Return a file's tensors by their names here: transformers saves some by those of earlier versions."""
    try:
        loaded, info = type(module).from_pretrained(
            None, config=module.config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
        )
    except Exception:  # on tensors of another model transformers raises whatever it trips over
        return None
    if any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return None
    state: Tensors = loaded.state_dict()
    return state


@torch.no_grad()
def _reset_classifier(module: Any) -> None:
    """Initialise what has a row for each class anew, from torch's generator."""
    fresh = _AUTO.from_config(module.config, dtype=torch.float32, trust_remote_code=False).state_dict()
    state = module.state_dict()
    for name in classifier_parameters(module):
        state[name].copy_(fresh[name])


def _query_parameters(module: nn.Module) -> list[str]:
    """Return the names of the parameters that tell one token from another."""
    words = ("detection_tokens", "query_position_embeddings", "query_feat", "reference_point_embed", "query_refpoint")
    return [name for name, _ in module.named_parameters() if any(word in name for word in words)]
