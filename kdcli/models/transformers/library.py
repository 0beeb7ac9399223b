"""transformers as a library of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.base.tasks import TASKS, Modality, TaskFacts
from kdcli.base.text import short_repr
from kdcli.models.library import Library
from kdcli.models.transformers import files

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


class Transformers(Library):
    """Kinds of network by name, and folders and models of the hub that transformers saved, of images and of texts."""

    name = "transformers"
    prefix = "hf"
    is_of_hub = True
    modalities = ("image", "text")
    quantizes = True
    files = Library.files | files.EXPORTED

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
        """Return a kind of network, which only ``hf:`` names, as a bare word is too short to mean one."""
        if name.library != self.name:
            return None
        from kdcli.models.transformers import kinds

        return kinds.find(name, weights=weights, modality=modality)

    def companions(self, repo: str, modality: Modality) -> Iterable[str]:
        """Yield what describes the images, or the tokenizer and what sentence-transformers adds."""
        if modality == "image":
            yield files.PROCESSOR
            return
        from kdcli.models import hub
        from kdcli.models.transformers.sentence import module_files

        yield from files.BESIDE_TEXT_MODELS
        if (modules := hub.download(repo, files.MODULES)) is not None:
            yield from module_files(modules)

    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the config names a kind of network."""
        if "architecture" in config and "model_type" in config:
            raise UserError(
                f"{folder} was saved by transformers, which wrapped a model of timm.",
                f"Name the model and give its weights: {short_repr(config['architecture'])}, and as --teacher-weights"
                " the folder's model.safetensors.",
            )
        return "model_type" in config

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> Model:
        """Load a classifier, a backbone or a language model."""
        from kdcli.models.transformers import image_loading, text_loading

        if task.reads_images:
            return image_loading.load_teacher(place, name, config, task, checkpoint)
        return text_loading.load_teacher(place, name, config, task, checkpoint)

    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> Model:
        """Build a classifier over the labels, a language model or a backbone."""
        from kdcli.models.transformers import dense_loading, detector_loading, image_loading, text_loading

        if TASKS[data.task].head == "boxes":
            return detector_loading.build_student(place, config, data.class_names, like=like)
        if TASKS[data.task].head in ("dense", "depth"):
            return dense_loading.build_student(place, config, data, like=like)
        if data.noun == "image":
            return image_loading.build_student(place, config, data.class_names, like=like)
        return text_loading.build_student(place, config, data, teacher=teacher, like=like)

    def open(self, place: Place) -> Model:
        """Load a folder that transformers saved; one with a tokenizer is of texts."""
        from kdcli.models.transformers import image_loading, text_loading

        return text_loading.open_saved(place) or image_loading.open_saved(place)

    def arguments(self, place: Place) -> Mapping[str, Any]:
        """Return the keys of the config that say what the network is like."""
        from kdcli.models.transformers.build import config_values

        return config_values(place)

    def export(self, student: Model, folder: Path, *, projector: Projector | None) -> None:
        """Save the student; one that embeds texts also for sentence-transformers, with the projector."""
        from kdcli.models.transformers import export

        export.write(student, folder, projector)

    def reload(self, student: Model, folder: Path, *, projector: Projector | None) -> Iterable[Reloaded]:
        """Run the folder by transformers on made-up images, or on a few texts."""
        from kdcli.models.transformers import export

        return export.reload(student, folder, projector)

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that load the model by transformers or sentence-transformers."""
        from kdcli.models.transformers import export

        return export.snippet(folder, task)

    def shelf(self, task: TaskFacts) -> Shelf | None:
        """Return the kinds of network with their default configs; nothing for tasks that make images."""
        if task.makes_images:
            return None
        from kdcli.models.transformers.shelf import DenseShelf, DetectorShelf, ImageShelf, TextShelf

        if task.head == "boxes":
            return DetectorShelf()
        if task.head in ("dense", "depth"):
            return DenseShelf(task)
        return ImageShelf() if task.reads_images else TextShelf(task)
