"""timm as a library of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.tasks import Modality, TaskFacts
from kdcli.models.library import Library

if TYPE_CHECKING:
    from kdcli.base.facts import DataFacts
    from kdcli.config.models import StudentConfig, TeacherConfig
    from kdcli.models.base import Model
    from kdcli.models.library import HubSource
    from kdcli.models.place import Place
    from kdcli.models.reloaded import Reloaded
    from kdcli.models.shelf import Shelf
    from kdcli.models.spec import ModelName
    from kdcli.models.weights import Checkpoint
    from kdcli.projectors.maps import Projector


class Timm(Library):
    """timm's registry, with the networks that kdcli and other packages put there, and folders that timm saved."""

    name = "timm"
    prefix = "timm"
    families = ("cifar",)
    files = Library.files | {"kdcli_networks.py", "__pycache__"}  # the latter of importing it

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
        """Return the architecture in timm's registry."""
        from kdcli.models.timm import registry

        return registry.find(name)

    def similar(self, name: ModelName) -> Sequence[str]:
        """Return the registry's names."""
        from kdcli.models.timm import registry

        return registry.names(tagged="." in name.target)

    def source(self, name: ModelName) -> HubSource | None:
        """Return what timm's own record of the weights says."""
        from kdcli.models.timm import registry

        return registry.source(name.target)

    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the config names an architecture, and no kind of network of transformers, which wraps timm's."""
        return "architecture" in config and "model_type" not in config

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> Model:
        """Load a classifier or backbone; one that fits ImageNet's classes is taken to be ImageNet's."""
        from kdcli.models.timm import loading

        return loading.load_teacher(place, name, config, checkpoint)

    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> Model:
        """Build a classifier over the labels, or a backbone where there are none."""
        from kdcli.models.timm import loading

        return loading.build_student(place, config, data.class_names, like=like)

    def open(self, place: Place) -> Model:
        """Load a folder that timm saved."""
        from kdcli.models.timm import loading

        return loading.open_saved(place)

    def arguments(self, place: Place) -> Mapping[str, Any]:
        """Return what the architecture's class is called with."""
        from kdcli.models.timm.build import constructor_values

        return constructor_values(place)

    def reload(self, student: Model, folder: Path, *, projector: Projector | None) -> Iterable[Reloaded]:
        """Run the folder by timm on made-up images."""
        from kdcli.models.timm import export

        yield export.reload(student, folder)

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that create the model by timm."""
        from kdcli.models.timm import export

        return export.snippet(folder, task)

    def shelf(self, task: TaskFacts) -> Shelf | None:
        """Return timm's registry; nothing for tasks whose head is none of its models'."""
        if task.head not in ("sequence", "none"):
            return None
        from kdcli.models.timm.shelf import TimmShelf

        return TimmShelf()
