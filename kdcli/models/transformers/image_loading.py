"""Teachers, students and saved folders of transformers' models of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.tasks import TaskFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.channels import said_adapted
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.settle import change_input, wanted_input
from kdcli.models.shrink import CopyReport, copy_tensors
from kdcli.models.spec import ModelName
from kdcli.models.transformers import build, dense_loading, detector_loading, processor
from kdcli.models.transformers.vision import HFModel, classifier_of, is_classifier, label_names
from kdcli.models.vision import VisionModel
from kdcli.models.weights import Checkpoint


def load_teacher(
    place: Place, name: ModelName, config: TeacherConfig, task: TaskFacts, checkpoint: Checkpoint | None
) -> VisionModel:
    """Load a model with its own head, prepared as image processor, config and checkpoint say."""
    if detector_loading.is_of_detector(place):
        return detector_loading.load_teacher(place, name, config, checkpoint)
    if dense_loading.head_at(place, task.head):
        return dense_loading.load_teacher(place, name, config, task, checkpoint)
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    own = processor.channels_of(build.read_config(place))
    module: Any
    phrase = ""
    if checkpoint:
        module, report = build.build_teacher_with_weights(place, checkpoint)
    else:
        module = build.build_teacher(place, pretrained=not name.random)
    names = label_names(module.config) if is_classifier(module) and not name.random else None
    if checkpoint:
        num_classes, _ = classifier_of(module)
        phrase = phrase_of_file(checkpoint, report, told, name, num_classes)
        names = names_of_file(checkpoint.recorded, names, num_classes)
    origin = teacher_origin(place, name, names, image_size=config.input_size, file_phrase=phrase)
    if not name.random:
        origin = replace(origin, weights=origin.weights + said_adapted(place, own))
    preprocessing = processor.preprocessing_of(place.folder, module.config, config.input_size)
    return HFModel(module, origin, change_input(preprocessing, wanted))


def build_student(place: Place, config: StudentConfig, names: tuple[str, ...], *, like: Model | None) -> HFModel:
    """Build it.

    What is made of ``like`` has its weights where they fit, and its images prepared alike, but for their size.
    A pretrained classifier stays only where it already has exactly these labels.
    """
    if config.drop_path is not None:
        raise UserError(
            "student.drop_path is for timm's models; those of transformers have it in their config.",
            f"Leave it out, or set it in the config.json of a local copy of {config.name}.",
        )
    assert like is None or isinstance(like, HFModel), "it is a model of images"
    own = build.read_config(place)
    own_names = label_names(own)
    module: Any = build.build_student(place, names, pretrained=config.pretrained, image_size=config.input_size)
    preprocessing = processor.preprocessing_of(place.folder, module.config, config.input_size)
    if like is not None:
        preprocessing = like.preprocessing.at(preprocessing.image_size)
    origin = student_origin(place, config, names)
    if config.pretrained:
        origin = replace(origin, weights=origin.weights + said_adapted(place, processor.channels_of(own)))
    model = HFModel(module, origin, preprocessing)
    if config.pretrained and own_names != names:
        model.reset_classifier()
    if like is not None:
        model.facts = replace(model.facts, weights=_copy(like, model).summary())
    return model


def _copy(teacher: HFModel, student: HFModel) -> CopyReport:
    """Copy what fits; a classifier only where it has exactly the student's labels."""
    ours, theirs = student.module, teacher.module
    if not (teacher.facts.num_classes and student.facts.num_classes):
        ours, theirs = student.backbone, teacher.backbone
    keeps_classifier = teacher.facts.label_names == student.facts.label_names
    leave = set() if keeps_classifier else classifier_of(student.module)[1]
    return copy_tensors(theirs, ours, leave=leave)


def open_saved(place: Place) -> VisionModel:
    """Load what the ``save`` of a model of images wrote."""
    if detector_loading.is_of_detector(place):
        return detector_loading.open_saved(place)
    if dense_loading.head_at(place, ""):
        return dense_loading.open_saved(place)
    module: Any = build.load_saved_module(place)
    origin = saved_origin(place, label_names(module.config))
    return HFModel(module, origin, processor.preprocessing_of(place.folder, module.config, None))
