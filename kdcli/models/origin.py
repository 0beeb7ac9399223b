"""Where a model came from, in the words of the plan."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.config.models import StudentConfig
from kdcli.models.base import Origin
from kdcli.models.fit import LoadReport
from kdcli.models.place import Place
from kdcli.models.recorded import Recorded
from kdcli.models.settle import check_against
from kdcli.models.spec import ModelName
from kdcli.models.weights import Checkpoint


def teacher_origin(
    place: Place,
    name: ModelName,
    label_names: tuple[str, ...] | None,
    *,
    image_size: tuple[int, int] | None = None,
    file_phrase: str = "",
    full_name: str = "",
) -> Origin:
    """Return a teacher's origin.

    Args:
        place: where it is.
        name: as the user wrote it.
        label_names: of its classes.
        image_size: the (height, width) that the user asks for.
        file_phrase: of weights of a file, from :func:`phrase_of_file`; empty where they are the publisher's.
        full_name: of the publisher's weights, where it is longer than that of ``place``.
    """
    if name.random:
        return Origin(f"random:{place.name}", False, "untrained", label_names, image_size)
    if file_phrase:
        return Origin(place.name, True, file_phrase, label_names, image_size)
    full_name = full_name or place.name
    return Origin(full_name, True, _own_weights(place, full_name), label_names, image_size)


def student_origin(place: Place, config: StudentConfig, label_names: tuple[str, ...], *, full_name: str = "") -> Origin:
    """Return a student's origin; ``full_name`` is that of published weights."""
    if not config.pretrained:
        return Origin(place.name, False, "untrained", label_names, config.input_size)
    full_name = full_name or place.name
    return Origin(full_name, True, _own_weights(place, full_name), label_names, config.input_size)


def saved_origin(place: Place, label_names: tuple[str, ...] | None) -> Origin:
    """Return the origin of a folder that kdcli wrote."""
    return Origin(place.name, True, f"saved in {place.folder}", label_names)


def phrase_of_file(
    checkpoint: Checkpoint, report: LoadReport, told: Sequence[str], name: ModelName, num_classes: int
) -> str:
    """Return in one phrase which file the weights are from, how they fitted, and what else the file tells."""
    phrases = [report.summary(), *told, *check_against(checkpoint.recorded, name, num_classes)]
    return f"{checkpoint.source}: {'; '.join(phrases)}"


def names_of_file(recorded: Recorded, own: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...] | None:
    """Return the classes' names that a file tells of; where it hides their order none, and else the architecture's."""
    if recorded.class_names is not None and len(recorded.class_names) == num_classes:
        return recorded.class_names
    return None if recorded.hides_classes else own


def _own_weights(place: Place, full_name: str) -> str:
    """Return where the weights came from that go with ``place`` itself."""
    if place.packaged is not None:
        return place.packaged.phrase
    if place.run is None:
        return f"pretrained, {place.folder or full_name}"
    so_far = "" if (place.run / "result.json").is_file() else " so far; the run is not finished"
    return f"trained by kdcli: the best student of the run {place.run}{so_far}"
