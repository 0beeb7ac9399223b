"""Networks that make images, as a library of models. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import Modality, TaskFacts
from kdcli.models.library import Library

if TYPE_CHECKING:
    from kdcli.base.facts import DataFacts
    from kdcli.config.models import StudentConfig, TeacherConfig
    from kdcli.models.base import Model
    from kdcli.models.place import Place
    from kdcli.models.reloaded import Reloaded
    from kdcli.models.shelf import Shelf
    from kdcli.models.spec import ModelName
    from kdcli.models.weights import Checkpoint
    from kdcli.projectors.maps import Projector

_TRANSLATORS = ("resnet9", "resnet6", "unet", "mobile")
"""Generators that turn an image into another one."""
_SAMPLERS = ("biggan32", "biggan64")
"""Generators that turn random numbers into an image."""
_NAMES = (*_TRANSLATORS, *_SAMPLERS)


class Generators(Library):
    """``generator:NAME``, such as ``generator:resnet9?channels=32``; none has published weights."""

    name = "generators"
    prefix = "generator"
    files = frozenset({"config.json", "model.safetensors", "generator.py"})

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
        """Return the network of this name."""
        if name.library != self.name:
            return None
        from kdcli.base.text import expand_user
        from kdcli.models.place import Place

        if name.target not in _NAMES:
            if expand_user(name.target).exists():
                return None
            valid = [f"{self.prefix}:{other}" for other in _NAMES]
            raise UserError(
                f"There is no model {name.text!r}. {did_you_mean(f'{self.prefix}:{name.target}', valid)}".rstrip(),
                f"Valid: {', '.join(valid)}.",
            )
        if weights:
            raise UserError(
                f"There are no published weights of {self.prefix}:{name.target}.",
                f"A teacher can be a run or a saved folder, have a checkpoint (--teacher-weights FILE) or be untrained"
                f" (random:{self.prefix}:{name.target}), a student be untrained (--no-student-pretrained).",
            )
        return Place(self.name, f"{self.prefix}:{name.target}", architecture=name.target)

    def similar(self, name: ModelName) -> Sequence[str]:
        """Return the networks' names."""
        return [f"{self.prefix}:{other}" for other in _NAMES]

    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the config names this library."""
        return config.get("library") == self.name

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> Model:
        """Load a network that was saved, or fits a checkpoint."""
        from kdcli.models.generators import loading, sampler_loading

        if _is_sampler(place):
            raise sampler_loading.refused_teacher(place)
        return loading.load_teacher(place, name, config, checkpoint)

    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> Model:
        """Build a generator; of a folder with its weights where they are asked for."""
        from kdcli.models.generators import loading, sampler_loading

        room = sampler_loading if _is_sampler(place) else loading
        return room.build_student(place, config, data, like)

    def open(self, place: Place) -> Model:
        """Load a folder that kdcli saved."""
        from kdcli.models.generators import loading, sampler_loading

        return (sampler_loading if _is_sampler(place) else loading).open_saved(place)

    def arguments(self, place: Place) -> Mapping[str, Any]:
        """Return the arguments of what makes the network."""
        from kdcli.models.generators import loading, sampler_loading

        settings = sampler_loading.settings_of(place)[0] if _is_sampler(place) else loading.settings_of(place)
        found: Mapping[str, Any] = settings["arguments"]
        return found

    def reload(self, student: Model, folder: Path, *, projector: Projector | None) -> Iterable[Reloaded]:
        """Load the folder by the Python file in it, on made-up images or numbers."""
        from kdcli.models.generators import loading, sampler_loading

        yield (sampler_loading if _network_of(folder) in _SAMPLERS else loading).reload(student, folder)

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that load the model by the file beside its weights."""
        from kdcli.models.generators import loading, sampler_loading

        return (sampler_loading if _network_of(folder) in _SAMPLERS else loading).snippet(folder)

    def small(self, task: TaskFacts) -> tuple[str, ...]:
        """Return the compact one."""
        found = {"image": (f"{self.prefix}:mobile",), "samples": (f"{self.prefix}:biggan32?channels=16",)}
        return found.get(task.target, ())

    def shelf(self, task: TaskFacts) -> Shelf | None:
        """Return the networks, of the task that they are for."""
        if task.target not in ("image", "samples"):
            return None
        from kdcli.models.generators.shelf import GeneratorShelf

        names = _TRANSLATORS if task.target == "image" else _SAMPLERS
        return GeneratorShelf(self.name, [f"{self.prefix}:{other}" for other in names])


def _is_sampler(place: Place) -> bool:
    network = place.architecture if place.folder is None else _network_of(place.folder)
    return network in _SAMPLERS


def _network_of(folder: Path) -> str:
    """Return what the config of a folder calls the network; empty where it is damaged, which is told on loading."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["network"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
