"""Hand the student over in its library's own format, checked before it is called done; graphs: :mod:`.graphs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors, replace_files
from kdcli.base.tasks import TASKS
from kdcli.config.methods import named_methods
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.models.libraries import LIBRARIES, library_called
from kdcli.models.library import Library
from kdcli.models.reloaded import Reloaded
from kdcli.projectors.maps import Projector, restore_projector
from kdcli.results.calibration import fold_temperature, read_calibration
from kdcli.results.card import model_card
from kdcli.results.graph_code import Codes
from kdcli.runs.cards import CARD, card_content, is_kept_card, keep_edited_card
from kdcli.runs.folder import RunFolder

_TOLERANCE = 1e-4
"""Largest allowed difference of logits, relative to their largest magnitude."""


class Exported(NamedTuple):
    """What came of an export.

    Attributes:
        difference: the largest that was found between the outputs of the reloaded model and the student's, relative to
            their largest magnitude.
        notes: for the user, a sentence each.
    """

    difference: float
    notes: list[str]


def export_safetensors(run: RunFolder, output: Path) -> Exported:
    """Write the student to ``output`` in its library's own format, with a model card.

    A student that embeds texts is written for sentence-transformers too, with the projector that maps it into the
    teacher's space as Dense layers, so that its embeddings compare with the teacher's, and normalised to length 1; but
    not one that is pooled by its backbone's pooler, which sentence-transformers has not.

    The folder is written aside, loaded back through the library alone and compared before it is put in place.

    Raises:
        UserError: when the folder holds other files, or the reloaded model differs.
    """
    student, calibrated = final_student(run)
    library = library_called(student.facts.library)
    projector = None
    if TASKS[student.facts.task].is_label_free:
        projector = embedding_projector(run, student.facts.feature_dims["pooled"])
    differences: list[float] = []

    def save(folder: Path) -> None:
        library.export(student, folder, projector=projector)
        differences.extend(map(compare_outputs, library.reload(student, folder, projector=projector)))
        write_card(run, folder, output)

    notes = calibrated + write_export(output, save, library)
    return Exported(max(differences), notes)


def write_card(run: RunFolder, folder: Path, output: Path, *, graphs: Codes = MappingProxyType({})) -> None:
    """Write the model card of an export into ``folder``; ``output``, where it goes, may have other formats already."""
    before = output / CARD
    card = model_card(run, run.read_result(), graphs=graphs, before=before.read_bytes() if before.is_file() else b"")
    (folder / CARD).write_bytes(card_content(card))


def final_student(run: RunFolder) -> tuple[Model, list[str]]:
    """Return the run's student, its temperature folded into its last layer where it has one, and a note on that."""
    student, found = load_saved(run.student), read_calibration(run)
    if found is None or found.temperature == 1:
        return student, []
    fold_temperature(student, found.temperature)
    return student, [f"Calibrated: the last layer is divided by the temperature {found.temperature:.4g}."]


OF_GRAPHS = frozenset(
    {"preprocessing.json", "model.onnx", "model.int8.onnx", "quantization.json"}
    | {"model.pt2", "model.xml", "model.bin", "model.pte"}
)
"""Files of the formats in :mod:`kdcli.results.graphs`."""
_OWN_FILES = frozenset({CARD}).union(OF_GRAPHS, *(library.files for library in LIBRARIES))


def write_export(output: Path, save: Callable[[Path], object], library: Library) -> list[str]:
    """Let ``save`` write into a folder aside, then put its files in place; return notes for the user.

    Raises:
        UserError: ``output`` holds other files than an export's, or can't be written.
    """
    notes: list[str] = []

    def is_own(file: Path) -> bool:
        return file.name in _OWN_FILES | library.files or is_kept_card(file)

    def complete(folder: Path) -> None:
        save(folder)
        notes.extend(keep_edited_card(output))

    with clear_os_errors(output, hint="Free some space, or give another --output."):
        if output.exists() and not (output.is_dir() and all(map(is_own, output.iterdir()))):
            raise UserError(
                f"{output} holds files that are not an export's.", "Give a new or empty folder as --output."
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_files(output, complete)
    return notes


def embedding_projector(run: RunFolder, student_dim: int) -> Projector | None:
    """Return the run's map of pooled features into the teacher's space; None where there is none."""
    for name, options in named_methods(run.read_config().methods or ()).items():
        if (found := options.embedding_map()) is not None:
            projector, orthogonal_map = found
            prefix = f"{name}.projector."
            tensors = run.read_tensors("projector.safetensors").items()
            own = {key.removeprefix(prefix): tensor for key, tensor in tensors if key.startswith(prefix)}
            return restore_projector(projector, own, student_dim, orthogonal_map=orthogonal_map)
    return None


def compare_outputs(pair: Reloaded) -> float:
    """Return how far apart they are, relative to the largest of what is expected.

    Raises:
        UserError: too far.
    """
    scale = float(pair.expected.abs().max().clamp(min=1e-6))
    difference = float((pair.found.double() - pair.expected.double()).abs().max()) / scale
    if not difference <= _TOLERANCE:
        raise UserError(
            f"The model that {pair.by} loads gives other {pair.what}: they differ by {difference:.2e} of their"
            " largest.",
            "Nothing was exported. Please report this with the run's config.yaml.",
        )
    return difference
