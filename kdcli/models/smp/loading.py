"""Teachers, students and saved folders of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.tasks import TASKS, TaskFacts, task_of
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.channels import adapt_into, check_pretrained_channels, said_adapted
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.settle import change_input, wanted_input
from kdcli.models.smp.build import Settings, classifier_of, make, settings_of, start_depth, with_published_encoder
from kdcli.models.smp.model import SmpModel
from kdcli.models.spec import ModelName
from kdcli.models.weights import Checkpoint, read_checkpoint


def load_teacher(
    place: Place, name: ModelName, config: TeacherConfig, task: TaskFacts, checkpoint: Checkpoint | None
) -> SmpModel:
    """Load a whole model, prepared as config and checkpoint say; one that is new is for ``task``."""
    if place.folder is None and not name.random and checkpoint is None:
        raise UserError(
            f"There are no published weights of {place.name}: those of its encoder alone know no pixel's class.",
            f"A teacher can be a run or a saved folder, have a checkpoint (--teacher-weights FILE) or be untrained"
            f" (random:{place.name}).",
        )
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    settings = settings_of(place)
    settings = replace(settings, task=settings.task or _task_for(task, settings.num_outputs))
    channels = place.channels or settings.channels
    check_pretrained_channels(place, settings.channels, pretrained=not name.random)
    preprocessing = change_input(settings.images(None).of_channels(channels), wanted)
    settings = settings.at(preprocessing.image_size)
    names, phrase, said = settings.label_names, "", ""
    if name.random:
        module, names = make(place, replace(settings, channels=channels)), None
    else:
        said = said_adapted(place, settings.channels)
        module, settings, report = _with_weights(place, settings, checkpoint or _checkpoint(place))
        module = _for_channels(module, place, settings)
        if checkpoint is not None:
            names = names_of_file(checkpoint.recorded, names, settings.num_outputs)
            phrase = phrase_of_file(checkpoint, report, told, name, settings.num_outputs)
    origin = teacher_origin(place, name, names, image_size=config.input_size, file_phrase=phrase)
    settings = replace(settings, channels=channels)
    return SmpModel(module, replace(origin, weights=origin.weights + said), settings, preprocessing)


def build_student(place: Place, config: StudentConfig, data: DataFacts) -> SmpModel:
    """Build it; a head that was saved stays only where it is over the same labels."""
    row = TASKS[data.task]
    if row.head not in ("dense", "depth"):
        raise UserError(
            f"{place.name} gives something for every pixel, and {row.name} is another task.", "Name another student."
        )
    if config.drop_path is not None:
        raise UserError("student.drop_path is not for models of segmentation-models-pytorch.", "Leave it out.")
    saved = settings_of(place)
    check_pretrained_channels(place, saved.channels, pretrained=config.pretrained)
    settings = replace(
        saved,
        task=row.name,
        num_outputs=len(data.class_names),
        label_names=data.class_names,
        channels=place.channels or saved.channels,
    )
    preprocessing = settings.images(config.input_size)
    settings, weights = settings.at(preprocessing.image_size), ""
    if place.folder is None and config.pretrained:
        module, own, source = with_published_encoder(place, settings)
        weights = f"encoder pretrained ({source}), decoder untrained"
        preprocessing = replace(preprocessing, mean=own.mean, std=own.std, channels=own.channels)
    else:
        module = make(place, settings)
    if data.depth is not None:
        start_depth(module, data.depth)
    if place.folder is not None and config.pretrained:
        whole, its, _ = _with_weights(place, saved.at(preprocessing.image_size), _checkpoint(place))
        whole = _for_channels(whole, place, its)
        is_same = (saved.task, saved.label_names) == (settings.task, settings.label_names)
        leave = set() if is_same else classifier_of(module)[1]
        kept = {key: value for key, value in whole.state_dict().items() if key not in leave}
        module.load_state_dict(module.state_dict() | kept)
    origin = student_origin(place, config, data.class_names)
    weights = weights or origin.weights + (said_adapted(place, saved.channels) if config.pretrained else "")
    return SmpModel(module, replace(origin, weights=weights), settings, preprocessing)


def open_saved(place: Place) -> SmpModel:
    """Load what :meth:`SmpModel.save` wrote."""
    settings = settings_of(place)
    settings = replace(settings, task=settings.task or _task_for(None, settings.num_outputs))
    preprocessing = settings.images(None)
    module, settings, _ = _with_weights(place, settings, _checkpoint(place))
    return SmpModel(module, saved_origin(place, settings.label_names), settings, preprocessing)


def _for_channels(module: nn.Module, place: Place, settings: Settings) -> nn.Module:
    """Return a model with weights for the channels that are wanted."""
    if place.channels in (None, settings.channels):
        return module
    target = make(place, replace(settings, channels=place.channels))
    return adapt_into(module, target, name=place.name, channels=place.channels)


def _task_for(task: TaskFacts | None, num_outputs: int) -> str:
    """Return what a model is for that does not say so: the run's task where it can be, else classes of pixels."""
    fits = task is not None and (task.head == "dense" or (task.head == "depth" and num_outputs == 1))
    return task.name if fits and task is not None else task_of("image", "dense").name


def _with_weights(place: Place, settings: Settings, checkpoint: Checkpoint) -> tuple[nn.Module, Settings, LoadReport]:
    """Make a network with a checkpoint's weights, with as many outputs as theirs; return its settings, too."""
    made: Sequence[Settings] = [settings]

    def build(num_outputs: int | None) -> nn.Module:
        nonlocal made
        if num_outputs == 0:
            raise UserError(
                f"{checkpoint.source} has no head for {place.name}.", "Give weights of a whole model, head included."
            )
        made = [settings if num_outputs is None else replace(settings, num_outputs=num_outputs)]
        return make(place, made[0])

    module, report = build_with_weights(build, checkpoint, classifier=classifier_of)
    return module, made[0], report


def _checkpoint(place: Place) -> Checkpoint:
    assert place.folder is not None, "names have no weights"
    return read_checkpoint(place.folder / "model.safetensors", source=str(place.folder))
