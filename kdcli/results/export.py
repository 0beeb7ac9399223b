"""Hand the student over: native safetensors or ONNX, each checked before it is called done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors, replace_files
from kdcli.base.reads import DEPTH, IMAGE, LOGITS, Reads
from kdcli.base.tasks import TASKS
from kdcli.config.methods import named_methods
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.models.detections import BOXES
from kdcli.models.libraries import LIBRARIES, library_called
from kdcli.models.library import Library
from kdcli.models.reloaded import Reloaded
from kdcli.projectors.maps import Projector, restore_projector
from kdcli.results.calibration import fold_temperature, read_calibration
from kdcli.results.card import model_card
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
    student, calibrated = _student_of(run)
    library = library_called(student.facts.library)
    projector = None
    if TASKS[student.facts.task].is_label_free:
        projector = embedding_projector(run, student.facts.feature_dims["pooled"])
    differences: list[float] = []

    def save(folder: Path) -> None:
        library.export(student, folder, projector=projector)
        differences.extend(map(_compare, library.reload(student, folder, projector=projector)))
        (folder / CARD).write_bytes(card_content(model_card(run, run.read_result())))

    notes = calibrated + _write(output, save, library)
    return Exported(max(differences), notes)


def _student_of(run: RunFolder) -> tuple[Model, list[str]]:
    """Return the run's student, its temperature folded into its last layer where it has one, and a note on that."""
    student, found = load_saved(run.student), read_calibration(run)
    if found is None:
        return student, []
    fold_temperature(student, found.temperature)
    return student, [f"Calibrated: the last layer is divided by the temperature {found.temperature:.4g}."]


def export_onnx(run: RunFolder, output: Path) -> Exported:
    """Write the student to ``output/model.onnx`` with a dynamic batch size; onnxruntime must give the same output.

    That is the head that makes its prediction, ``logits``, ``depth`` or ``image``, of classes of images (B, C), of
    pixels (B, C, h, w), of depth (B, 1, h, w), an image (B, 3, h, w) from -1 to 1; or of a student without one
    ``embedding``, its pooled features.
    ``preprocessing.json`` beside it holds what :class:`~kdcli.base.facts.Preprocessing` says of its input, and the
    labels of its output.

    Raises:
        UserError: when the ``onnx`` extra is missing, the model can't be exported, or the result differs.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs the package {error.name}.", "pip install 'kdcli[onnx]'") from None
    student, calibrated = _student_of(run)
    if not TASKS[student.facts.task].reads_images:
        raise UserError("ONNX export is for models of images.", "Export it as safetensors instead.")
    if BOXES in student.facts.heads:
        raise UserError(
            f"{student.facts.name} can't be exported to ONNX: it gives another number of boxes for every image, chosen"
            " by steps that an exported graph of a fixed shape does not have.",
            "Export it as safetensors instead; its library loads that alone.",
        )
    if not isinstance(student.example(), Tensor):
        raise UserError(
            f"{student.facts.name} can't be exported to ONNX: it takes random numbers, and no images.",
            "Export it as safetensors instead: generator.py in the folder needs torch alone.",
        )
    output_name = _output_of(student)
    outputs = _outputs_module(student)
    differences = []

    def save(folder: Path) -> None:
        file = folder / "model.onnx"
        images = student.example(2, seed=2)
        try:
            torch.onnx.export(
                outputs,
                (images,),
                str(file),
                dynamo=True,
                input_names=["images"],
                output_names=[output_name],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UserError(
                f"{student.facts.name} can't be exported to ONNX: {str(error).splitlines()[0]}",
                "Export it as safetensors instead.",
            ) from error
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for batch in (1, 3):
            images = student.example(batch, seed=batch)
            assert isinstance(images, Tensor)
            (found,) = session.run([output_name], {"images": images.numpy()})
            with torch.inference_mode():
                own = student(images, Reads(("pooled",)) | student.predictions)
            expected = own.features["pooled"] if output_name == _EMBEDDING else own.heads[output_name]
            pair = Reloaded("onnxruntime", output_name, torch.from_numpy(np.asarray(found)), expected)
            differences.append(_compare(pair))
        wanted = {**asdict(student.facts.preprocessing), "labels": student.facts.label_names}
        (folder / "preprocessing.json").write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_bytes(card_content(model_card(run, run.read_result())))

    notes = calibrated + _write(output, save, library_called(student.facts.library))
    return Exported(max(differences), notes)


_OWN_FILES = frozenset({CARD, "model.onnx", "preprocessing.json"}).union(*(library.files for library in LIBRARIES))


def _write(output: Path, save: Callable[[Path], object], library: Library) -> list[str]:
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


def _compare(pair: Reloaded) -> float:
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


class _AnswerModule(torch.nn.Module):
    """The library's model with nothing but its prediction as its output."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        output = self.module(images)
        return output if isinstance(output, Tensor) else output.logits


class _EmbeddingModule(torch.nn.Module):
    """A student without a classifier, with nothing but its pooled features as its output."""

    def __init__(self, student: Model) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images, Reads(("pooled",))).features["pooled"]


def _outputs_module(student: Model) -> torch.nn.Module:
    return (_EmbeddingModule(student) if _output_of(student) == _EMBEDDING else _AnswerModule(student.native)).eval()


_EMBEDDING = "embedding"


def _output_of(student: Model) -> str:
    """Return the name of the one output.

    Raises:
        UserError: there are several.
    """
    heads = student.facts.predictions or (_EMBEDDING,)
    if heads[0] not in (LOGITS, DEPTH, IMAGE, _EMBEDDING):
        raise UserError(
            f"ONNX export is for models with one tensor as their answer, and {student.facts.name} gives {heads[0]}.",
            "Export it as safetensors instead.",
        )
    return heads[0]
