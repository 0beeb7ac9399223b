"""What kdcli asks of a library of models. No torch here: a library imports what it needs when it is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from kdcli.base.errors import UserError
from kdcli.base.tasks import Modality, TaskFacts

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


class HubSource(NamedTuple):
    """A model of the hub that weights are from.

    Attributes:
        repo: ``ORG/NAME``.
        licence: as the hub calls it, such as ``apache-2.0``; None where it is not known.
    """

    repo: str
    licence: str | None = None


class Library(ABC):
    """A library of models: how its models are found, loaded, built, saved and loaded again without kdcli.

    Those of kdcli's own stand in :data:`kdcli.models.libraries.LIBRARIES`, those of other packages are entry points of
    the group ``kdcli.models``.

    Attributes:
        name: as in ``facts.library``.
        hub_name: what the hub calls it, as a model card's ``library_name``; by default ``name``.
        prefix: what users write before a colon for a model of this library; it is no part of the model's own name.
        families: further prefixes, which are a part of the names.
        is_of_hub: whether ``prefix`` stands before names of models on the hub, of whatever form.
        modalities: what its models read.
        quantizes: whether it loads models as a place's ``quantization`` says.
        files: the names of all that an exported folder may hold, model card left out.
    """

    name: ClassVar[str]
    hub_name: ClassVar[str] = ""
    prefix: ClassVar[str]
    families: ClassVar[tuple[str, ...]] = ()
    is_of_hub: ClassVar[bool] = False
    modalities: ClassVar[tuple[Modality, ...]] = ("image",)
    quantizes: ClassVar[bool] = False
    files: ClassVar[frozenset[str]] = frozenset({"config.json", "model.safetensors"})

    @abstractmethod
    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
        """Return the architecture of this library that goes by ``name``; None where there is none. Folders come later.

        Args:
            name: without a library's prefix, or with this one's.
            weights: whether its published weights are wanted.
            modality: what it is to read.

        Raises:
            UserError: it can only be meant for this library, and is not there, or has no weights.
        """

    def similar(self, name: ModelName) -> Sequence[str]:
        """Return the names out of which to suggest one in place of ``name``, which no library has."""
        return ()

    def source(self, name: ModelName) -> HubSource | None:
        """Return where the hub has the published weights of one of its own names; None where that is not known."""
        return None

    def companions(self, repo: str, modality: Modality) -> Iterable[str]:
        """Yield the files of the hub's ``repo`` that belong to a model beside its config and its weights, if there."""
        return ()

    @abstractmethod
    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether ``folder``, with this ``config.json``, is in the library's own format.

        Raises:
            UserError: it is, and can't be used.
        """

    @abstractmethod
    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> Model:
        """Load a model with its own head and labels; untrained only as ``random:NAME``.

        Random numbers come from torch's generator, which the caller has seeded.

        Args:
            place: where the model is.
            name: as the user wrote it.
            config: settings of its input.
            task: what it is to teach.
            checkpoint: weights in place of its own.

        Raises:
            UserError: its weights can't be had or don't fit, or it can't be set so.
        """

    @abstractmethod
    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> Model:
        """Build a student for ``data``: its task, and a head over its labels, which the saved config will carry.

        Random numbers come from torch's generator, which the caller has seeded.

        Args:
            place: where the model is.
            config: with published weights or untrained, and settings of its input.
            data: the task and the labels.
            teacher: whose tokenizer a student without one of its own takes.
            like: what the student is a smaller copy of: its input is prepared alike, and what fits of its weights is
                taken over.

        Raises:
            UserError: the library has no such model for the task, its weights can't be had, or it can't be set so.
        """

    @abstractmethod
    def open(self, place: Place) -> Model:
        """Load the folder ``place.folder``, which :meth:`kdcli.models.base.Model.save` wrote.

        Raises:
            UserError: it is damaged.
        """

    def keeps_weights(self, arguments: Mapping[str, Any]) -> bool:
        """Whether published weights are for an architecture with these arguments, too; by default for none."""
        return not arguments

    def arguments(self, place: Place) -> Mapping[str, Any]:
        """Return what of an architecture can be set in its name, with its own values.

        Raises:
            UserError: nothing can be set.
        """
        raise UserError(
            f"{place.name} can't be made smaller: {self.name} does not tell what it is built of.",
            "Name another student.",
        )

    def export(self, student: Model, folder: Path, *, projector: Projector | None) -> None:
        """Write what is handed over of a student, to be loaded without kdcli.

        Args:
            student: as it was saved.
            folder: an empty one.
            projector: of a student that embeds, the trained map (B, d) -> (B, d_teacher) into the teacher's space, for
                formats that have a place for it.
        """
        student.save(folder)

    @abstractmethod
    def reload(self, student: Model, folder: Path, *, projector: Projector | None) -> Iterable[Reloaded]:
        """Load what :meth:`export` wrote by the library alone, and yield its outputs beside the student's.

        Raises:
            UserError: it can't be loaded so, or has lost its labels or its tokens.
        """

    @abstractmethod
    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines of Python that load a student without kdcli, for its model card.

        Args:
            folder: the student's; in the lines it is called ``PATH``.
            task: what the student is for.
        """

    def small(self, task: TaskFacts) -> tuple[str, ...]:
        """Return names of small students for ``task`` to begin with, which need no download; by default none."""
        return ()

    def shelf(self, task: TaskFacts) -> Shelf | None:
        """Return the architectures for ``task`` that ``kdcli models search`` looks through; None for nothing."""
        return None
