"""The architectures that can be students, by task: all libraries' together."""

from __future__ import annotations

from fnmatch import fnmatch

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import TASKS
from kdcli.models.libraries import LIBRARIES, find_extension, library_called
from kdcli.models.place import Place
from kdcli.models.shelf import Built, Shelf

NUM_CLASSES = {"image": 1000, "text": 2}
"""Classifiers of images are over so many classes; those of texts or tokens are over so many."""
NUM_CLASSES_OF_HEAD = {"dense": 21, "boxes": 80}
"""Those of a head for every pixel, or for boxes, are over so many."""
_UNITS = {"image": "pixels", "text": "tokens"}
_EXAMPLES = {"image": "mobilenet*", "text": "hf:*bert*"}


class Catalogue:
    """The architectures for a task.

    Args:
        task: what they are built for.
        size: of the sample that they are measured with, its side in pixels or its tokens; None for the usual one.
        pretrained: leave out those without published weights.
        pattern: of names, with ``*`` and ``?``; one with another package's prefix searches that package's, too.
        num_classes: of the classifier, for tasks that have one; None for the usual number.

    Attributes:
        num_classes: of the classifier; 0 without one.
        key: of counts for this task and these classes.
        unit: of ``size``.
    """

    def __init__(
        self,
        task: str,
        *,
        size: int | None = None,
        pretrained: bool = False,
        pattern: str | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.task, self.size, self.pattern = task, size, pattern
        self._facts = TASKS[task]
        self._pretrained = pretrained
        modality = self._facts.modality
        of_samples = NUM_CLASSES[modality] if self._facts.head in ("sequence", "token") else 0
        self.num_classes = usual = NUM_CLASSES_OF_HEAD.get(self._facts.head, of_samples)
        if num_classes is not None:
            if not usual:
                raise UserError(f"--classes is for tasks with classes, and the task is {task}.", "Leave it out.")
            self.num_classes = num_classes
        self.key = task if self.num_classes == usual else f"{task} {self.num_classes} classes"
        self.unit = _UNITS[modality]
        prefix, colon, _ = (pattern or "").partition(":")
        asked = library_called(prefix) if colon and find_extension(prefix) is not None else None
        self._shelves: dict[str, Shelf] = {}
        self._places: dict[str, Place] = {}
        for library in dict.fromkeys((*LIBRARIES, *([] if asked is None else [asked]))):
            shelf = library.shelf(self._facts) if modality in library.modalities else None
            if shelf is not None:
                found = shelf.places(prefix if library is asked else "")
                self._places |= found
                self._shelves |= dict.fromkeys(found, shelf)

    @property
    def counted(self) -> str:
        """How everything is counted, in one phrase; a language model is with its head."""
        if self._facts.is_language_model:
            return "as language models"
        if self._facts.head == "depth":
            return "with depth as their output"
        return f"with {self.num_classes} classes" if self.num_classes else "without a classifier"

    @property
    def names(self) -> list[str]:
        """Every name, whatever the pattern is."""
        return list(self._places)

    def is_published(self, place: Place) -> bool:
        """Whether the name alone stands for published weights too."""
        return self._shelves[place.name].is_published(place)

    def build(self, place: Place, size: int | None) -> Built:
        """Build the architecture for samples of ``size``, on torch's default device.

        Raises:
            Exception: it can't be a student, or can't take such samples; of any kind, as the libraries raise it.
        """
        return self._shelves[place.name].build(place, self.num_classes, size)

    def find(self) -> list[Place]:
        """Return the architectures that the pattern names, sorted, under the names that ``--student`` takes.

        Raises:
            UserError: nothing is called so.
        """
        chosen = [name for name in self._places if self._is_chosen(name)]
        if not chosen:
            raise UserError(
                f"No architecture is called {self.pattern}. {did_you_mean(str(self.pattern), self._places)}".rstrip(),
                f"A pattern has * for any letters: --name '{_EXAMPLES[self._facts.modality]}'.",
            )
        places = [self._places[name] for name in sorted(chosen)]
        return [place for place in places if not self._pretrained or self.is_published(place)]

    def _is_chosen(self, name: str) -> bool:
        return self._shelves[name].is_shown(name) if self.pattern is None else fnmatch(name, self.pattern)
