"""torchvision's detectors as a library of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import Modality, TaskFacts, task_of
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


class TorchvisionDetectors(Library):
    """SSD, RetinaNet, FCOS and Faster R-CNN: those that torchvision has weights of, and others on smaller backbones."""

    name = "torchvision_detection"
    prefix = hub_name = "torchvision"

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
        """Return the detector of this name; without the prefix there is none."""
        from kdcli.models.place import Place
        from kdcli.models.torchvision_detection.networks import NETWORKS

        if name.target in NETWORKS:
            return Place(self.name, f"{self.prefix}:{name.target}", architecture=name.target)
        if name.library != self.name or _is_folder(name.target):
            return None
        nearest = did_you_mean(name.target, NETWORKS)
        raise UserError(
            f"torchvision has no detector {name.target!r}. {nearest}".rstrip(),
            f"Valid: {', '.join(NETWORKS)}.",
        )

    def similar(self, name: ModelName) -> Sequence[str]:
        """Return the names of the detectors."""
        from kdcli.models.torchvision_detection.networks import NETWORKS

        return [f"{self.prefix}:{network}" for network in NETWORKS]

    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the config names this library."""
        return config.get("library") == self.name

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> Model:
        """Load a detector with its own classes; torchvision's weights are of COCO."""
        from kdcli.models.torchvision_detection import loading

        return loading.load_teacher(place, name, config, checkpoint)

    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> Model:
        """Build a detector of the data's classes."""
        from kdcli.models.torchvision_detection import loading

        return loading.build_student(place, config, data, like=like)

    def open(self, place: Place) -> Model:
        """Load a folder that a detector was saved in."""
        from kdcli.models.torchvision_detection import loading

        return loading.open_saved(place)

    def arguments(self, place: Place) -> Mapping[str, Any]:
        """Return the numbers that the detector's class takes, and the sizes of its anchors where they can be set."""
        from kdcli.models.torchvision_detection import loading

        saved = loading.read_saved(place)
        return {**loading.network_of(place, saved).arguments(), **saved.get("arguments", {}), **place.arguments}

    def reload(self, student: Model, folder: Path, *, projector: Projector | None) -> Iterable[Reloaded]:
        """Make the detector by torchvision's own functions, with the folder's weights."""
        from kdcli.models.torchvision_detection import export

        yield from export.reload(student, folder)

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that make the detector by torchvision and load its weights."""
        from kdcli.models.torchvision_detection import export

        return export.snippet(folder)

    def small(self, task: TaskFacts) -> tuple[str, ...]:
        """Return two detectors with a small backbone."""
        names = ("torchvision:ssdlite/mobilenet_v3_small", "torchvision:fcos/resnet18")
        return names if task.head == "boxes" else ()

    def shelf(self, task: TaskFacts) -> Shelf | None:
        """Return the detectors, for the task that has boxes."""
        if task.name != task_of("image", "boxes").name:
            return None
        from kdcli.models.torchvision_detection.shelf import DetectorShelf

        return DetectorShelf()


def _is_folder(target: str) -> bool:
    """Whether a name is meant for a folder."""
    return target.startswith((".", "/", "~", "package:")) or Path(target).is_dir()
