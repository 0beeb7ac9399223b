"""Teachers, students and saved folders of timm."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from torch import nn

from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.channels import said_adapted
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.settle import wanted_input
from kdcli.models.shrink import copy_tensors
from kdcli.models.spec import ModelName
from kdcli.models.timm import build
from kdcli.models.timm.model import PROBLEM, SEVERAL, TimmModel, copy_input, label_names, set_input
from kdcli.models.weights import Checkpoint


def load_teacher(place: Place, name: ModelName, config: TeacherConfig, checkpoint: Checkpoint | None) -> TimmModel:
    """Load a model with its own classifier, prepared as config and checkpoint say."""
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    module: Any
    phrase = full_name = ""
    if checkpoint:
        size = wanted.get("image_size")
        module, arguments, report, said = build.load_with_weights(place, checkpoint, image_size=size)
        phrase = phrase_of_file(checkpoint, report, told, name, module.num_classes)
    else:
        module, arguments = build.load(place, pretrained=not name.random, image_size=config.input_size)
        said = said_adapted(place, build.own_channels(place))
        full_name = _with_tag(place, module)
    set_input(module, wanted)
    names = None if name.random else label_names(module, is_registered=_is_published(place))
    if checkpoint:
        names = names_of_file(checkpoint.recorded, names, module.num_classes)
    origin = teacher_origin(place, name, names, image_size=config.input_size, file_phrase=phrase, full_name=full_name)
    if not name.random:
        origin = replace(origin, weights=origin.weights + said)
    return _with_label_kind(TimmModel(module, origin, arguments), place)


def build_student(place: Place, config: StudentConfig, names: tuple[str, ...], *, like: Model | None) -> TimmModel:
    """Build it.

    What is made of ``like`` has its weights where they fit, and its images prepared alike, but for their size.
    A pretrained classifier stays only where it already has exactly these labels.
    """
    module, arguments = build.load(
        place,
        pretrained=config.pretrained,
        num_classes=len(names),
        image_size=config.input_size,
        drop_path=config.drop_path,
    )
    origin = student_origin(place, config, names, full_name=_with_tag(place, module))
    if config.pretrained:
        origin = replace(origin, weights=origin.weights + said_adapted(place, build.own_channels(place)))
    if config.pretrained and build.own_num_classes(place) == len(names):
        own_names = label_names(module, is_registered=_is_published(place))
        if own_names != names:
            module.reset_classifier(len(names))  # type: ignore[operator]
    build.set_labels(module, names)
    if like is not None:
        copy_input(like.module, module)
    model = TimmModel(module, origin, arguments)
    if like is not None:
        keeps_classifier = like.facts.label_names == names
        leave = set() if keeps_classifier else build.classifier_of(module)[1]
        report = copy_tensors(like.module, module, leave=leave)
        model.facts = replace(model.facts, weights=report.summary())
    return model


def open_saved(place: Place) -> TimmModel:
    """Load what :meth:`TimmModel.save` wrote."""
    module, arguments = build.load(place, pretrained=True)
    model = TimmModel(module, saved_origin(place, label_names(module, is_registered=False)), arguments)
    return _with_label_kind(model, place)


def _with_label_kind(model: TimmModel, place: Place) -> TimmModel:
    """Return the model as its folder's config says what its labels are."""
    if place.folder and (file := place.folder / "config.json").is_file():
        with file.open(encoding="utf-8") as opened:
            if json.load(opened).get(PROBLEM) == SEVERAL:
                model.take_several_labels()
    return model


def _is_published(place: Place) -> bool:
    is_registered = place.architecture is not None and (place.packaged is not None or place.name.startswith("timm:"))
    return is_registered or place.name.startswith("timm:timm/")


def _with_tag(place: Place, module: nn.Module) -> str:
    """Return the name with the tag that timm's default stands for: ``timm:resnet50`` -> ``timm:resnet50.a1_in1k``."""
    if place.packaged is not None:
        return place.name
    cfg = getattr(module, "pretrained_cfg", None)
    tag = cfg.get("tag") if isinstance(cfg, dict) else None
    return f"{place.name}.{tag}" if place.architecture and tag and "." not in place.name else place.name
