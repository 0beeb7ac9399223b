"""Hand the student over: native safetensors or ONNX, each checked before it is called done."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors, replace_files, temporary_folder
from kdcli.base.reads import Reads
from kdcli.base.tasks import TASKS
from kdcli.config.methods import named_methods
from kdcli.data import Text, TextBatch, TextPair
from kdcli.models import load_saved
from kdcli.models.base import Inputs, Model
from kdcli.models.transformers.files import PROMPTS as MODEL_FILE
from kdcli.models.transformers.files import TOKENIZER as TOKENIZER_FILES
from kdcli.models.transformers.padding import pool
from kdcli.models.transformers.sentence import read_sentence_settings, write_sentence_settings
from kdcli.models.transformers.text import HFTextModel
from kdcli.models.transformers.tokenizer import encode
from kdcli.models.transformers.tokens import HFTokenModel
from kdcli.projectors.maps import Projector, linear_layers, restore_projector
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
    student = load_saved(run.student)
    differences = []

    def save(folder: Path) -> None:
        student.save(folder)
        if isinstance(student, HFTextModel):
            differences.append(_export_text(run, student, folder))
        else:
            differences.append(_check_native(student, folder))
        (folder / CARD).write_bytes(card_content(model_card(run, run.read_result())))

    notes = _write(output, save)
    return Exported(differences[0], notes)


def export_onnx(run: RunFolder, output: Path) -> Exported:
    """Write the student to ``output/model.onnx`` with a dynamic batch size; onnxruntime must give the same output.

    That is ``logits``, or of a student without a classifier ``embedding``, its pooled features. ``preprocessing.json``
    beside it holds what :class:`~kdcli.base.facts.Preprocessing` says of its input, and the labels of its output.

    Raises:
        UserError: when the ``onnx`` extra is missing, the model can't be exported, or the result differs.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs the package {error.name}.", "pip install 'kdcli[onnx]'") from None
    student = load_saved(run.student)
    if isinstance(student, HFTextModel):
        raise UserError("ONNX export is for models of images.", "Export it as safetensors instead.")
    output_name = "logits" if student.facts.num_classes else "embedding"
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
            expected = own.features["pooled"] if own.logits is None else own.logits
            differences.append(_compare(torch.from_numpy(np.asarray(found)), expected, "onnxruntime", output_name))
        wanted = {**asdict(student.facts.preprocessing), "labels": student.facts.label_names}
        (folder / "preprocessing.json").write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_bytes(card_content(model_card(run, run.read_result())))

    notes = _write(output, save)
    return Exported(max(differences), notes)


_OWN_FILES = {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "kdcli_networks.py",
    "__pycache__",  # of importing it
    "README.md",
    "model.onnx",
    "preprocessing.json",
    *TOKENIZER_FILES,
    *("generation_config.json", "additional_chat_templates", MODEL_FILE),
    *("modules.json", "sentence_bert_config.json", "1_Pooling", "2_Dense", "3_Dense"),
    *("2_Normalize", "3_Normalize", "4_Normalize"),
}


def _write(output: Path, save: Callable[[Path], object]) -> list[str]:
    notes: list[str] = []

    def complete(folder: Path) -> None:
        save(folder)
        notes.extend(keep_edited_card(output))

    with clear_os_errors(output, hint="Free some space, or give another --output."):
        if output.exists() and not (output.is_dir() and all(map(_is_own, output.iterdir()))):
            raise UserError(
                f"{output} holds files that are not an export's.", "Give a new or empty folder as --output."
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_files(output, complete)
    return notes


def _is_own(file: Path) -> bool:
    return file.name in _OWN_FILES or is_kept_card(file)


def _check_native(student: Model, folder: Path) -> float:
    """Compare the model that the library loads from ``folder`` with ``student``."""
    module: Any  # a model of either library; their types tell nothing of these attributes
    images = student.example(2, seed=2)
    if isinstance(images, Tensor) and not student.facts.num_classes:
        return _check_backbone(student, folder, images)
    if isinstance(images, Tensor) and (folder / "kdcli_networks.py").is_file():
        logits, names = _run_without_kdcli(folder, images)
        return _compare_native(logits, names, student, images)
    if student.facts.library == "timm":
        import timm

        module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        names = module.pretrained_cfg.get("label_names")
    else:
        from transformers import AutoModelForImageClassification

        module = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False).eval()
        names = [module.config.id2label[index] for index in range(module.config.num_labels)]
    with torch.inference_mode():
        output = module(images)
    return _compare_native(output if isinstance(output, Tensor) else output.logits, names, student, images)


def _check_backbone(student: Model, folder: Path, images: Tensor) -> float:
    """Compare the features that the library computes from ``folder`` with those of ``student``."""
    if (folder / "kdcli_networks.py").is_file():
        features, _ = _run_without_kdcli(folder, images)
    elif student.facts.library == "timm":
        import timm

        with torch.inference_mode():
            features = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    else:
        from transformers import AutoModel

        with torch.inference_mode():
            features = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()(images).last_hidden_state
    with torch.inference_mode():
        output = student.module(images)
    expected = output if isinstance(output, Tensor) else output.last_hidden_state
    return _compare(features, expected, student.facts.library, "features")


def _compare_native(logits: Tensor, names: list[str] | None, student: Model, inputs: Inputs) -> float:
    if tuple(names or ()) != student.facts.label_names:
        raise UserError("The exported model lost its label names.", "Please report this with the run's config.yaml.")
    return _compare(logits, _logits(student, inputs), student.facts.library)


_WITHOUT_KDCLI = """
import json, sys
sys.modules["kdcli"] = None  # importing it is now an error
folder, file = sys.argv[1:]
sys.path.append(folder)
import kdcli_networks, timm, torch
from safetensors.torch import load_file, save_file
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.inference_mode():
    save_file({"output": model(load_file(file)["images"])}, file)
print(json.dumps(model.pretrained_cfg.get("label_names")))
"""


def _run_without_kdcli(folder: Path, images: Tensor) -> tuple[Tensor, list[str] | None]:
    """Load ``folder`` with its own copy of the architecture, where kdcli can't be imported; return output and labels."""
    with temporary_folder(Path(tempfile.gettempdir())) as place:
        file = str(place / "tensors.safetensors")
        save_file({"images": images}, file)
        # -B leaves no __pycache__ in the export, -P keeps the working folder's modules out.
        command = [sys.executable, "-B", "-P", "-c", _WITHOUT_KDCLI, str(folder.absolute()), file]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            raise UserError(
                f"The exported model can't be loaded without kdcli: {reason}",
                "Nothing was exported. Please report this with the run's config.yaml.",
            )
        return load_file(file)["output"], json.loads(result.stdout.splitlines()[-1])


_TEXTS = ("Short.", "A text of somewhat more words, and of another length.", "Cut: " + "so much to say " * 2000)


@torch.inference_mode()
def _export_text(run: RunFolder, student: HFTextModel, folder: Path) -> float:
    """Complete ``folder``, and compare what transformers loads from it, tokens included, with ``student``."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ours = _same_tokens(student, tokenizer, _TEXTS)
    if student.facts.num_classes:
        auto: Any = getattr(transformers, TASKS[student.facts.task].auto_class)
        module = auto.from_pretrained(folder, trust_remote_code=False).eval()
        names = student.facts.label_names
        if names is not None and tuple(module.config.id2label.values()) != names:
            raise UserError(
                "The exported model lost its label names.", "Please report this with the run's config.yaml."
            )
        if isinstance(student, HFTokenModel):
            tokens = {name: ours[name] for name in ("input_ids", "attention_mask")}
            logits = module(**tokens).logits.flatten(0, 1)[tokens["attention_mask"].flatten().bool()]
            output = student(ours)
            expected = output.logits if output.vocabulary is None else output.vocabulary.dense()
            return _compare(logits, expected, "transformers")
        pairs = [TextPair(text, other) for text, other in zip(_TEXTS, reversed(_TEXTS), strict=True)]
        differences = []
        for inputs in (ours, _same_tokens(student, tokenizer, pairs)):
            logits = torch.cat([module(**text).logits for text in _each(inputs)])
            differences.append(_compare(logits, _logits(student, inputs), "transformers"))
        return max(differences)
    pooling = student.preprocessing.pooling
    assert pooling != "none", "models of tokens have heads"
    module = getattr(transformers, type(student.module).__name__).from_pretrained(folder).eval()
    outputs = [(module(**text), text["attention_mask"]) for text in _each(ours)]
    pooled = torch.cat(
        [
            output.pooler_output if pooling == "pooler" else pool(output.last_hidden_state, mask, pooling)
            for output, mask in outputs
        ]
    )
    expected = student(ours, Reads(("pooled",))).features["pooled"]
    difference = _compare(pooled, expected, "transformers", "embeddings")
    if pooling == "pooler":
        return difference
    projector = _embedding_projector(run, expected.shape[1])
    write_sentence_settings(
        folder,
        pooling=pooling,
        width=expected.shape[1],
        max_length=student.preprocessing.max_length,
        layers=[] if projector is None else linear_layers(projector),
    )
    head = read_sentence_settings(folder).head
    assert head is not None
    projected = F.normalize(expected if projector is None else projector(expected), dim=1)
    return max(difference, _compare(head(pooled), projected, "sentence-transformers", "embeddings"))


def _same_tokens(student: HFTextModel, tokenizer: Any, texts: Sequence[Text]) -> dict[str, Tensor]:
    """Return the student's inputs for ``texts``.

    Raises:
        UserError: the exported tokenizer, which pads on a side of its own, gives a text other tokens.
    """
    ours = student.prepare(TextBatch(list(texts), indices := torch.arange(len(texts)), indices))
    options: dict[str, Any] = {"truncation": True}
    if TASKS[student.facts.task].is_language_model:  # whose tokenizers keep a length of their own
        tokenizer.truncation_side = "right"
        options["max_length"] = student.preprocessing.max_length
    before = student.preprocessing.prompt
    for text, row in zip(texts, _each(ours), strict=True):
        found = encode(tokenizer, [f"{before}{text}" if isinstance(text, str) else text], **options)
        if any(found[name] != tensor.tolist() for name, tensor in row.items() if name in found):
            raise UserError(
                "The exported tokenizer gives other tokens.", "Please report this with the run's config.yaml."
            )
    return ours


def _each(inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs of each text by itself, without padding."""
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        yield {
            name: inputs[name][row : row + 1, :length]
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in inputs
        }


def _embedding_projector(run: RunFolder, student_dim: int) -> Projector | None:
    """Return the run's map of pooled features into the teacher's space; None where there is none."""
    for name, options in named_methods(run.read_config().methods or ()).items():
        if (found := options.embedding_map()) is not None:
            projector, orthogonal_map = found
            prefix = f"{name}.projector."
            tensors = run.read_tensors("projector.safetensors").items()
            own = {key.removeprefix(prefix): tensor for key, tensor in tensors if key.startswith(prefix)}
            return restore_projector(projector, own, student_dim, orthogonal_map=orthogonal_map)
    return None


def _compare(actual: Tensor, expected: Tensor, library: str, what: str = "logits") -> float:
    scale = float(expected.abs().max().clamp(min=1e-6))
    difference = float((actual.double() - expected.double()).abs().max()) / scale
    if not difference <= _TOLERANCE:
        raise UserError(
            f"The model that {library} loads gives other {what}: they differ by {difference:.2e} of their largest.",
            "Nothing was exported. Please report this with the run's config.yaml.",
        )
    return difference


@torch.inference_mode()
def _logits(student: Model, inputs: Inputs) -> Tensor:
    logits = student(inputs).logits
    assert isinstance(logits, Tensor)
    return logits


class _LogitsModule(torch.nn.Module):
    """The library's model with nothing but logits as its output."""

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
    return (_LogitsModule(student.module) if student.facts.num_classes else _EmbeddingModule(student)).eval()
