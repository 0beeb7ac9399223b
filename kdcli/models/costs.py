"""What a model costs: time, memory, size on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.base.facts import Preprocessing, TextPreprocessing
from kdcli.base.reads import Reads
from kdcli.models.base import Model, to_device
from kdcli.models.measure import time_passes


def latency_of(model: Model, *, fastest: bool = False) -> float:
    """Return the median milliseconds of a few passes of one sample, on the device that the model is on.

    Args:
        model: left as it is.
        fastest: take the fastest pass: what else the machine did meanwhile is not in it.
    """
    device = next(model.parameters()).device
    was_training = model.training
    inputs = to_device(model.example(), device)
    reads = model.predictions or Reads(("pooled",))
    model.eval()

    def one_pass() -> None:
        if (vocabulary := model(inputs, reads).vocabulary) is not None:
            vocabulary.dense()

    times = time_passes(one_pass, device=device, most=50 if fastest else 11, seconds=0.5)
    model.train(was_training)
    return 1e3 * float(times.min() if fastest else times.median())


_WARM_UP = 3


_REPEATS = 50


_FEWEST_REPEATS = 5


_TIMING_SECONDS = 2.0
"""After the fewest repeats a measurement stops when it has taken this long."""


def measure_costs(model: Model, folder: Path | None, *, device: torch.device, batch_size: int) -> dict[str, Any]:
    """Return what a model costs: size, operations, and time on the device that it is on.

    Args:
        model: in eval mode.
        folder: that its weights lie in; None for a model that has none.
        device: where ``model`` is.
        batch_size: images of a batch, for the throughput; the latency is that of one image.
    """
    facts = model.facts
    size, size_of = weights_size(model, folder)
    latency = _time_forward(model, 1, device)
    batches = _time_forward(model, batch_size, device)
    low, median, high = latency.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {
        "parameters": facts.num_parameters,
        "macs": facts.macs,
        "size_mb": size / 1e6,
        "size_of": size_of,
        "input_size": _input_size(facts.preprocessing),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "latency": {"median_ms": 1e3 * median, "iqr_ms": 1e3 * (high - low), "repeats": len(latency)},
        "throughput": {"images_per_second": batch_size / float(batches.median()), "repeats": len(batches)},
    }


def _input_size(preprocessing: Preprocessing | TextPreprocessing) -> list[int]:
    """Return height and width in pixels, or the longest text in tokens."""
    if isinstance(preprocessing, TextPreprocessing):
        return [preprocessing.max_length]
    return list(preprocessing.image_size)


def weights_size(model: Model, folder: Path | None) -> tuple[int, str]:
    """Return the bytes of the model's weights and what they are of: its safetensors files, or its state dict."""
    files = []
    if folder is not None:
        whole = folder / "model.safetensors"
        files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if files:
        return sum(file.stat().st_size for file in files), ", ".join(file.name for file in files)
    state = model.module.state_dict()
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values()), "state dict"


def _time_forward(model: Model, batch_size: int, device: torch.device) -> Tensor:
    inputs = to_device(model.example(batch_size), device)
    reads = model.predictions or Reads(("pooled",))
    return time_passes(
        lambda: model(inputs, reads),
        device=device,
        warm_up=_WARM_UP,
        fewest=_FEWEST_REPEATS,
        most=_REPEATS,
        seconds=_TIMING_SECONDS,
    )
