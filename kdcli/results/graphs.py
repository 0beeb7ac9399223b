"""Hand the student over as a graph that needs no library of models: ONNX, torch.export, OpenVINO, ExecuTorch."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.base.facts import TextPreprocessing
from kdcli.base.files import temporary_folder
from kdcli.base.reads import DEPTH, IMAGE, LOGITS, Reads
from kdcli.base.tasks import TASKS
from kdcli.data import TextBatch, TextPair
from kdcli.models.base import Model
from kdcli.models.detections import BOXES
from kdcli.models.libraries import library_called
from kdcli.models.reloaded import Reloaded
from kdcli.results.export import Exported, compare_outputs, final_student, write_card, write_export
from kdcli.results.graph_code import graph_code
from kdcli.runs.folder import RunFolder

Inputs = Mapping[str, Tensor]
Runner = Callable[[Inputs], Tensor]
"""From inputs by name to the one output."""
EMBEDDING = "embedding"
_SAFETENSORS = "Export it as safetensors instead."
_TEXTS = ("Short.", "A text of somewhat more words, and of another length than the first.")


@dataclass(frozen=True)
class Graph:
    """A student with one tensor as its answer, ready to be traced.

    Attributes:
        student: in eval mode, on the CPU.
        output: the name of its answer: a head, or ``embedding`` for its pooled features.
        inputs: the names of what it takes: ``images``; or of texts ``input_ids``, ``attention_mask`` and, where they
            are pairs and its tokenizer has them, ``token_type_ids``.
        has_pairs: whether its texts are pairs.
        notes: for the user, a sentence each.
    """

    student: Model
    output: str
    inputs: tuple[str, ...]
    has_pairs: bool
    notes: tuple[str, ...] = ()

    def example(self, batch: int) -> dict[str, Tensor]:
        """Return made-up inputs of so many samples; texts are of different lengths, and padded."""
        if self.inputs == ("images",):
            images = self.student.example(batch, seed=batch)
            assert isinstance(images, Tensor)
            return {"images": images}
        texts: list[Any] = [_TEXTS[number % 2] for number in range(batch)]
        if self.has_pairs:
            texts = [TextPair(text, _TEXTS[0]) for text in texts]
        return self.prepare(TextBatch(texts=texts, targets=torch.arange(batch), samples=torch.arange(batch)))

    def prepare(self, batch: Any) -> dict[str, Tensor]:
        """Return the inputs for a batch of samples by name."""
        found = self.student.prepare(batch)
        return {"images": found} if isinstance(found, Tensor) else {name: found[name] for name in self.inputs}

    @torch.inference_mode()
    def expected(self, inputs: Inputs) -> Tensor:
        """Return what the student itself answers."""
        given: Any = inputs["images"] if self.inputs == ("images",) else dict(inputs)
        own = self.student(given, Reads(("pooled",)) | self.student.predictions)
        found = own.features["pooled"] if self.output == EMBEDDING else own.heads[self.output]
        assert isinstance(found, Tensor)
        return found

    def module(self) -> nn.Module:
        """Return the module that is traced: its arguments are the inputs, in order."""
        made = _EmbeddingModule(self.student) if self.output == EMBEDDING else _AnswerModule(self.student.native)
        return made.eval()

    def axes(self) -> dict[str, dict[int, Any]]:
        """Return which axes of the inputs vary, as :func:`torch.export.export` takes it."""
        batch = torch.export.Dim("batch", min=1)
        if self.inputs == ("images",):
            return {"images": {0: batch}}
        preprocessing = self.student.facts.preprocessing
        assert isinstance(preprocessing, TextPreprocessing)
        length = torch.export.Dim("length", min=2, max=preprocessing.max_length)
        return {name: {0: batch, 1: length} for name in self.inputs}


class _AnswerModule(nn.Module):
    """The library's model with nothing but its prediction as its output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.module(*inputs) if len(inputs) == 1 else self.module(**dict(zip(_OF_TEXTS, inputs, strict=False)))
        return output if isinstance(output, Tensor) else output.logits


class _EmbeddingModule(nn.Module):
    """A student without a classifier, with nothing but its pooled features as its output."""

    def __init__(self, student: Model) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: Tensor) -> Tensor:
        given: Any = inputs[0] if len(inputs) == 1 else dict(zip(_OF_TEXTS, inputs, strict=False))
        return self.student(given, Reads(("pooled",))).features["pooled"]


_OF_TEXTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Format:
    """A format of graphs.

    Attributes:
        name: as ``--format`` takes it.
        title: what it is called.
        packages: what it needs: the name to import, and what pip installs.
        write: writes a graph into a folder.
        open: loads it from there.
        batches: sizes that it is compared at.
        reads_texts: whether graphs of texts can be written.
    """

    name: str
    title: str
    packages: tuple[tuple[str, str], ...]
    write: Callable[[Graph, Path], None]
    open: Callable[[Graph, Path], Runner]
    batches: tuple[int, ...] = (1, 3)
    reads_texts: bool = False

    def check_packages(self) -> None:
        """Raise a UserError where a package is missing."""
        for package, install in self.packages:
            try:
                import_module(package)
            except ImportError as error:
                name = error.name if error.name and error.name.partition(".")[0] == package else package
                raise UserError(f"{self.title} export needs the package {name}.", f"pip install {install}") from None


def graph_of(run: RunFolder, form: Format) -> Graph:
    """Return a run's student as a graph.

    Raises:
        UserError: it has no answer that is one tensor, or is none that the format can be of.
    """
    (student, notes), title = final_student(run), form.title
    task, name = TASKS[student.facts.task], student.facts.name
    if not task.reads_images:
        if not form.reads_texts:
            raise UserError(f"{title} export is for models of images.", "Export it as onnx or as safetensors instead.")
        if task.head != "sequence":
            raise UserError(f"{title} export is for models of images and for classifiers of texts.", _SAFETENSORS)
        assert isinstance(student.facts.preprocessing, TextPreprocessing)
        if student.facts.preprocessing.prompt:
            raise UserError(f"{name} puts a prompt before every text, which a graph does not have.", _SAFETENSORS)
        has_pairs = run.read_config().data.text_pair_column is not None
        graph = Graph(student, LOGITS, _OF_TEXTS[:2], has_pairs)
        inputs = student.prepare(
            TextBatch(
                texts=[TextPair(*_TEXTS)] if has_pairs else [_TEXTS[0]],
                targets=torch.zeros(1),
                samples=torch.zeros(1),
            )
        )
        assert isinstance(inputs, dict)
        return Graph(student, graph.output, tuple(key for key in _OF_TEXTS if key in inputs), has_pairs, tuple(notes))
    if BOXES in student.facts.heads:
        raise UserError(
            f"{name} can't be exported to {title}: it gives another number of boxes for every image, chosen by steps"
            " that an exported graph of a fixed shape does not have.",
            "Export it as safetensors instead; its library loads that alone.",
        )
    if not isinstance(student.example(), Tensor):
        raise UserError(
            f"{name} can't be exported to {title}: it takes random numbers, and no images.",
            "Export it as safetensors instead: generator.py in the folder needs torch alone.",
        )
    heads = student.facts.predictions or (EMBEDDING,)
    if heads[0] not in (LOGITS, DEPTH, IMAGE, EMBEDDING):
        raise UserError(
            f"{title} export is for models with one tensor as their answer, and {name} gives {heads[0]}.", _SAFETENSORS
        )
    return Graph(student, heads[0], ("images",), False, tuple(notes))


def export_graph(
    run: RunFolder, output: Path, form: Format, *, complete: Callable[[Graph, Path], list[str]] | None = None
) -> Exported:
    """Write the student to ``output`` as a graph that must give the same output when it is loaded back.

    That is the head that makes its prediction, ``logits``, ``depth`` or ``image``, of classes of images or texts
    (B, C), of pixels (B, C, h, w), of depth (B, 1, h, w), an image (B, 3, h, w) from -1 to 1; or of a student of images
    without one ``embedding``, its pooled features. ``preprocessing.json`` beside it holds what
    :class:`~kdcli.base.facts.Preprocessing` says of its input, and the labels of its output; a student of texts has its
    tokenizer beside it.

    Args:
        run: with the student.
        output: the folder.
        form: the format.
        complete: adds to the folder once the graph is there and checked; returns what there is to say.

    Raises:
        UserError: a package is missing, the model can't be exported, or the result differs.
    """
    form.check_packages()
    graph = graph_of(run, form)
    differences: list[float] = []
    told: list[str] = []

    def save(folder: Path) -> None:
        form.write(graph, folder)
        runner = form.open(graph, folder)
        for batch in form.batches:
            inputs = graph.example(batch)
            pair = Reloaded(form.title, graph.output, runner(inputs), graph.expected(inputs))
            differences.append(compare_outputs(pair))
        _write_preprocessing(graph, folder)
        if complete is not None:
            told.extend(complete(graph, folder))
        code = graph_code(
            graph.student,
            form.name,
            inputs=graph.inputs,
            output=graph.output,
            pairs=graph.has_pairs,
            int8=complete is not None,
        )
        write_card(run, folder, output, graphs={form.title: code})

    notes = write_export(output, save, library_called(graph.student.facts.library))
    return Exported(max(differences), [*graph.notes, *told, *notes])


def _write_preprocessing(graph: Graph, folder: Path) -> None:
    facts = graph.student.facts
    wanted = {**asdict(facts.preprocessing), "labels": facts.label_names}
    if (other := {1: "L", 4: "RGBA"}.get(facts.preprocessing.num_channels)) is not None:
        wanted["channels"] = other
    (folder / "preprocessing.json").write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    if not TASKS[facts.task].reads_images:
        with temporary_folder(folder) as saved:
            graph.student.save(saved)
            for file in saved.iterdir():
                if file.suffix != ".safetensors" and file.name not in ("config.json", "generation_config.json"):
                    shutil.move(file, folder / file.name)  # the tokenizer's


# --- the formats ------------------------------------------------------------------------------------------------------


def _refused(graph: Graph, title: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{graph.student.facts.name} can't be exported to {title}: {reason}", _SAFETENSORS)


def _write_onnx(graph: Graph, folder: Path) -> None:
    # Two samples: one would be taken for a constant.
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*axis name.*will not be used")  # one axis, one name
            torch.onnx.export(
                graph.module(),
                tuple(graph.example(2).values()),
                str(folder / "model.onnx"),
                dynamo=True,
                input_names=list(graph.inputs),
                output_names=[graph.output],
                dynamic_shapes=(tuple(graph.axes().values()),),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _refused(graph, "ONNX", error) from error


def open_onnx(graph: Graph, file: Path) -> Runner:
    """Return what runs a file of ONNX."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        (found,) = session.run([graph.output], {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(np.asarray(found))

    return run


def _traced(graph: Graph, *, batch: int) -> torch.export.ExportedProgram:
    """Return the student as a program of torch.export; of any number of samples, but of one where ``batch`` is 1."""
    axes = None if batch == 1 else (tuple(graph.axes().values()),)
    try:
        return torch.export.export(graph.module(), tuple(graph.example(batch).values()), dynamic_shapes=axes)
    except (torch._dynamo.exc.UserError, RuntimeError, ValueError) as error:
        raise _refused(graph, "torch.export", error) from error


def _write_torch(graph: Graph, folder: Path) -> None:
    torch.export.save(_traced(graph, batch=2), folder / "model.pt2")


def _open_torch(graph: Graph, folder: Path) -> Runner:
    module = torch.export.load(folder / "model.pt2").module()

    @torch.inference_mode()
    def run(inputs: Inputs) -> Tensor:
        return module(*inputs.values())

    return run


def _write_openvino(graph: Graph, folder: Path) -> None:
    import openvino

    _write_onnx(graph, folder)
    model = openvino.convert_model(folder / "model.onnx")
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    (folder / "model.onnx").unlink()


def _open_openvino(graph: Graph, folder: Path) -> Runner:
    import openvino

    # Newer processors would compute in bfloat16.
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: Inputs) -> Tensor:
        found = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(np.asarray(found[0]))

    return run


def _write_executorch(graph: Graph, folder: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(_traced(graph, batch=1), partitioner=[XnnpackPartitioner()])
    (folder / "model.pte").write_bytes(program.to_executorch().buffer)


def _open_executorch(graph: Graph, folder: Path) -> Runner:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program((folder / "model.pte").read_bytes()).load_method("forward")
    assert method is not None, "it was exported with one"

    def run(inputs: Inputs) -> Tensor:
        return method.execute([tensor.contiguous() for tensor in inputs.values()])[0].clone()

    return run


_ONNX = tuple((package, "'kdcli[onnx]'") for package in ("onnx", "onnxruntime", "onnxscript"))


def _open_onnx(graph: Graph, folder: Path) -> Runner:
    return open_onnx(graph, folder / "model.onnx")


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        Format("onnx", "ONNX", _ONNX, _write_onnx, _open_onnx, reads_texts=True),
        Format("torch-export", "torch.export", (), _write_torch, _open_torch),
        Format("openvino", "OpenVINO", (*_ONNX, ("openvino", "openvino")), _write_openvino, _open_openvino),
        Format("executorch", "ExecuTorch", (("executorch", "executorch"),), _write_executorch, _open_executorch, (1,)),
    )
}
"""By name; :func:`kdcli.results.export.export_safetensors` is the library's own format."""
