"""The int8 form of an exported graph: ranges from training samples, and what it costs and saves, on validation."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.base.result import show_metric
from kdcli.data import AnyBatch, Source
from kdcli.machine.seeding import stable_seed
from kdcli.machine.team import ALONE
from kdcli.models.measure import time_passes
from kdcli.models.outputs import ModelOutput
from kdcli.results.graphs import EMBEDDING, Graph, Runner, open_onnx
from kdcli.results.samples import loader_of
from kdcli.runs.folder import RunFolder
from kdcli.tasks import Task, build_task, task_class
from kdcli.training.evaluation import run_meter
from kdcli.training.provenance import changes_since, insist_unchanged, read_record, take_record

INT8, REPORT = "model.int8.onnx", "quantization.json"
CALIBRATION = 128
"""Training samples that ranges are set by."""
_BATCH = 16
_ROUNDS = 3


@dataclass(frozen=True)
class Measured:
    """What a graph was measured to be.

    Attributes:
        metrics: on the validation split, the one that students are chosen by first.
        latency_ms: the median of one sample.
        size_mb: of its file.
    """

    metrics: dict[str, float]
    latency_ms: float
    size_mb: float


class Quantizer:
    """Quantises a run's exported graph, and measures both forms.

    Images: static, weights by channel; activations' ranges are the least and the greatest that training images, as in
    evaluation, have shown. Texts: dynamic, as onnxruntime advises for transformers: ranges of texts of many lengths
    vary too much for fixed ones, so that they are taken anew of every batch.

    Args:
        run: whose data are read.
        samples: how many of its training samples ranges are set by.

    Raises:
        UserError: its task has nothing to measure by, or its data can't be had or have changed.
    """

    def __init__(self, run: RunFolder, *, samples: int = CALIBRATION) -> None:
        config = run.read_config()
        if config.task_facts.is_label_free:
            raise UserError(
                f"--quantize measures what it costs by labels, and the task {config.task} has none.",
                "Leave --quantize out.",
            )
        name = config.extension_task or config.task
        data = task_class(name).open(config.data, seed=config.seed, evaluation=None)
        if (record := read_record(run)) is not None:
            splits = ("train", "validation")
            now = take_record(data, None, splits=splits)
            changes = changes_since(record, now, splits=splits, teacher=False)
            insist_unchanged(run, changes, what="Quantised")
        self.config, self.noun = config, data.facts.noun
        self.task: Task = build_task(data.facts, reference=_no_reference, extension=config.extension_task)
        self.validation: Source = data.validation
        order = torch.randperm(
            len(data.train), generator=torch.Generator().manual_seed(stable_seed("quantize", config.seed))
        )
        self.train: Source = data.train.take(sorted(order[:samples].tolist()))
        self.is_static = config.reads_images
        self.measured: dict[str, Measured] = {}

    def __call__(self, graph: Graph, folder: Path) -> list[str]:
        """Write ``model.int8.onnx`` and ``quantization.json`` beside ``model.onnx``; return what there is to say.

        Raises:
            UserError: onnxruntime can't quantise it.
        """
        single, quantized = folder / "model.onnx", folder / INT8
        try:
            with _without_warnings():
                self._quantize(graph, single, quantized)
        except Exception as error:  # of onnx, onnxruntime or their C++, of many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{graph.student.facts.name} can't be quantised by onnxruntime: {reason}", "Leave --quantize out."
            ) from error
        runners = {"float32": open_onnx(graph, single), "int8": open_onnx(graph, quantized)}
        latencies = _latencies(graph, runners)
        for name, file in (("float32", single), ("int8", quantized)):
            metrics = self._metrics(graph, runners[name])
            self.measured[name] = Measured(metrics, latencies[name], file.stat().st_size / 1e6)
        told = {
            "quantization": "static" if self.is_static else "dynamic",
            "calibration_samples": len(self.train) if self.is_static else 0,
            "split": "validation",
            "samples": len(self.validation),
            "metric": self._names()[0],
            "threads": torch.get_num_threads(),
            "models": {name: vars(measured) for name, measured in self.measured.items()},
        }
        (folder / REPORT).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        return [self._conclusion()]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows: the float graph beside the quantised one."""
        found = self.measured.values()
        names = self._names()
        rows = [[name, *(show_metric(name, one.metrics[name]) for one in found)] for name in names]
        rows.append(["latency in ms", *(f"{one.latency_ms:.2f}" for one in found)])
        rows.append(["size in MB", *(f"{one.size_mb:.2f}" for one in found)])
        return ["", *self.measured], rows

    def _names(self) -> list[str]:
        """Return the metrics' names, the one that students are chosen by first."""
        names = list(self.measured["float32"].metrics)
        return sorted(names, key=lambda name: name != self.task.monitor)

    def _conclusion(self) -> str:
        single, quantized = self.measured["float32"], self.measured["int8"]
        name = self._names()[0]
        how = (
            f"static, ranges from {len(self.train)} training {self.noun}s"
            if self.is_static
            else "dynamic: ranges of texts' activations vary too much to be fixed beforehand"
        )
        return (
            f"int8 ({how}): {name} {quantized.metrics[name] - single.metrics[name]:+.4f} on {len(self.validation)}"
            f" validation {self.noun}s, latency of one {quantized.latency_ms / single.latency_ms:.2f} times, size"
            f" {quantized.size_mb / single.size_mb:.2f} times that of float32."
        )

    def _quantize(self, graph: Graph, single: Path, quantized: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as place:
            prepared = Path(place) / "prepared.onnx"
            quant_pre_process(single, prepared, skip_symbolic_shape=True)  # onnx's own inference suffices
            if self.is_static:
                reader: Any = _Calibration(self._batches(graph, self.train))
                quantize_static(prepared, quantized, reader, per_channel=True, activation_type=QuantType.QUInt8)
            else:
                quantize_dynamic(prepared, quantized, per_channel=True, weight_type=QuantType.QInt8)

    def _batches(self, graph: Graph, source: Source) -> Iterator[dict[str, Tensor]]:
        for batch in loader_of(source, graph.student.facts.preprocessing, _BATCH, self.config.data):
            if len(batch):
                yield graph.prepare(batch)

    def _metrics(self, graph: Graph, runner: Runner) -> dict[str, float]:
        model: Any = _Answering(graph, runner)
        batches = loader_of(self.validation, graph.student.facts.preprocessing, _BATCH, self.config.data)
        return run_meter(self.task.meter(ALONE), lambda batch: self.task.predict(model, batch), batches, ALONE)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Let onnxruntime keep to itself which weights have no channels, and that a graph could be prepared further."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Calibration:
    """What onnxruntime reads: the next inputs as arrays by name, None at the end."""

    def __init__(self, batches: Iterator[dict[str, Tensor]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Any] | None:
        found = next(self._batches, None)
        return None if found is None else {name: tensor.numpy() for name, tensor in found.items()}


class _Answering:
    """Stands for the student, as far as tasks ask it for predictions: its graph gives the answers."""

    def __init__(self, graph: Graph, runner: Runner) -> None:
        self._graph, self._runner = graph, runner
        self.facts = graph.student.facts
        self.training = False

    def prepare(self, batch: AnyBatch) -> dict[str, Tensor]:
        return self._graph.prepare(batch)

    def __call__(self, inputs: dict[str, Tensor], reads: Reads) -> ModelOutput:
        found = self._runner(inputs)
        if self._graph.output == EMBEDDING:
            return ModelOutput(features={"pooled": found})
        return ModelOutput(heads={self._graph.output: found})


def _latencies(graph: Graph, runners: dict[str, Runner]) -> dict[str, float]:
    """Return the median milliseconds of one sample, of each runner in turn."""
    inputs = graph.example(1)
    times: dict[str, list[Tensor]] = {name: [] for name in runners}
    for _ in range(_ROUNDS):
        for name, runner in runners.items():
            times[name].append(
                time_passes(lambda run=runner: run(inputs), device=torch.device("cpu"), most=20, seconds=0.5, fewest=5)  # type: ignore[misc]
            )
    return {name: 1e3 * float(torch.cat(found).median()) for name, found in times.items()}


def _no_reference(batch: AnyBatch) -> Tensor:
    raise NotImplementedError("tasks that compare with a teacher are refused")
