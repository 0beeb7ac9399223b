"""Weights inside packages as a library of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import Modality, TaskFacts
from kdcli.models.library import Library
from kdcli.models.packaged.rows import ROWS

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

_WORD = "package:"


class PackagedModels(Library):
    """``package:NAME``: teachers of edges and text with networks of their own, and classifiers, which are timm's.

    ``package:MODULE/PATH`` is no name of this library's, but a file or folder of any library inside a package.
    """

    name = prefix = "packaged"

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
        """Return the place of a row, where its package is installed or no weights are wanted."""
        target = name.target.removeprefix(_WORD)
        if "/" in target or (name.library != self.name and not name.target.startswith(_WORD)):
            return None
        if target not in ROWS:
            valid = [_WORD + other for other in ROWS]
            raise UserError(
                f"There is no model {name.text!r}. {did_you_mean(_WORD + target, valid)}".rstrip(),
                f"Valid: {', '.join(valid)}; or package:NAME/PATH for a folder or file inside a package.",
            )
        from kdcli.models.packaged.places import place_of

        if weights:
            from kdcli.models.packaged.weights import find_file

            find_file(ROWS[target])
        return place_of(target)

    def similar(self, name: ModelName) -> Sequence[str]:
        """Return the rows' names."""
        return [_WORD + row for row in ROWS]

    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the config names this library."""
        return config.get("library") == self.name

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> Model:
        """Load a network of maps with the package's weights; its task is its own, whatever it is to teach."""
        from kdcli.models.packaged import loading

        if place.arguments:
            raise UserError(f"{place.name} has no arguments.", "Leave out what follows the '?'.")
        return loading.load_teacher(place, name, config, checkpoint)

    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> Model:
        """Refuse: networks of maps have no classes to answer with, and are teachers alone."""
        raise UserError(
            f"{place.name} is a teacher's: what it gives are maps of its own task, and no classes of your data.",
            "Name another student, such as package:mobilenet_v2 or one that 'kdcli models search' lists.",
        )

    def open(self, place: Place) -> Model:
        """Load a folder that a network of maps was saved in."""
        from kdcli.models.packaged import loading

        return loading.open_saved(place)

    def reload(self, student: Model, folder: Path, *, projector: Projector | None) -> Iterable[Reloaded]:
        """Make the network anew, with the folder's weights."""
        from kdcli.models.packaged import loading

        return loading.reload(student, folder)

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that make the network and load its weights."""
        from kdcli.models.packaged import loading

        return loading.snippet(folder)

    def shelf(self, task: TaskFacts) -> Shelf | None:
        """Return the classifiers, where whole images are classified or embedded."""
        if task.target not in ("label", "embedding"):
            return None
        from kdcli.models.packaged.shelf import PackagedShelf

        return PackagedShelf()
