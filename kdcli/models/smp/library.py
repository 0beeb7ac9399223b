"""segmentation-models-pytorch as a library of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


class Smp(Library):
    """Its architectures with any of its encoders or timm's, and folders that ``save_pretrained`` wrote.

    Names are ``smp:ARCHITECTURE/ENCODER``, such as ``smp:unet/mobilenetv3_small_050``.
    """

    name = "segmentation-models-pytorch"
    prefix = "smp"

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
        """Return the architecture with its encoder; its own published weights are those of the encoder alone."""
        if name.library != self.name:
            return None
        from kdcli.models.smp import names

        return names.find(name)

    def keeps_weights(self, arguments: Mapping[str, Any]) -> bool:
        """Whether no argument is the encoder's, whose weights are all that is published."""
        return not any(key.startswith("encoder_") for key in arguments)

    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the config names a class and an encoder."""
        return "_model_class" in config and "encoder_name" in config

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> Model:
        """Load a whole model; one that is new is for ``task``, or else for classes of pixels."""
        from kdcli.models.smp import loading

        return loading.load_teacher(place, name, config, task, checkpoint)

    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> Model:
        """Build a model with an output for each class of pixels, or one for depth; its encoder may be pretrained."""
        from kdcli.models.smp import loading

        return loading.build_student(place, config, data)

    def open(self, place: Place) -> Model:
        """Load a folder that kdcli saved."""
        from kdcli.models.smp import loading

        return loading.open_saved(place)

    def reload(self, student: Model, folder: Path, *, projector: Projector | None) -> Iterable[Reloaded]:
        """Run the folder by the library's own ``from_pretrained`` on made-up images."""
        from kdcli.models.smp import export

        yield export.reload(student, folder)

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that load the model by its library."""
        from kdcli.models.smp import export

        return export.snippet(folder, task)

    def small(self, task: TaskFacts) -> tuple[str, ...]:
        """Return two networks with a small encoder."""
        names = ("smp:unet/mobilenetv3_small_050", "smp:fpn/mobilenetv3_small_050")
        return names if task.head in ("dense", "depth") else ()

    def shelf(self, task: TaskFacts) -> Shelf | None:
        """Return the architectures with the encoders; nothing for tasks without a head for every pixel."""
        if task.head not in ("dense", "depth"):
            return None
        from kdcli.models.smp.shelf import SmpShelf

        return SmpShelf()
