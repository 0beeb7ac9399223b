"""Which device, precision and trackers a run has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from numpy.typing import NDArray
from torch import distributed

from kdcli.base.errors import UserError
from kdcli.base.files import utf8_path
from kdcli.config.training import TrainConfig
from kdcli.machine.launch import is_launched

_SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_XPU,
}


_KINDS = ("cpu", "cuda", "mps")
_OTHER_NAMES = dict.fromkeys(("gpu", "nvidia", "rocm", "amd"), "A GPU is called cuda.") | {
    "metal": "Apple's GPU is called mps.",
    "apple": "Apple's GPU is called mps.",
}


def resolve_precision(train: TrainConfig) -> str:
    """Return ``no``, ``fp16`` or ``bf16``: ``auto`` is bf16 where the GPU has it, fp16 on other GPUs, else ``no``."""
    if train.mixed_precision != "auto":
        return train.mixed_precision
    if train.device == "cpu" or not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def make_accelerator(train: TrainConfig, *, tracking: Path | None = None) -> Accelerator:
    """Return the Accelerator for the configured device, precision and trackers.

    Args:
        train: the configuration.
        tracking: where trackers that write files put them.

    Raises:
        UserError: when the device does not exist here, can't compute in the precision asked for, or a tracker is not
            installed.
    """
    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in train.track:
        if name not in available:
            package = "'kdcli[tracking]'" if name == "tensorboard" else name
            raise UserError(f"The tracker {name} is not installed.", f"pip install {package}")
    # Accelerate keeps its state in process-wide singletons; a second run in this process may differ from the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if train.device != "auto":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(_check_device(train.device))
    precision = resolve_precision(train)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=train.device == "cpu" or (is_launched() and not torch.cuda.is_available()),
            gradient_accumulation_steps=train.accumulation,
            log_with=list(train.track) or None,
            project_dir=tracking and utf8_path(tracking.parent) / tracking.name,
            # A student may have parameters that its loss never reaches, such as a class token that nothing reads.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if accelerator.distributed_type not in _SUPPORTED:
            raise UserError(
                f"kdcli trains data-parallel, and was started for {accelerator.distributed_type.value}.",
                "Use an Accelerate config for several GPUs or CPUs without FSDP, DeepSpeed or Megatron: the orthogonal"
                " projector's retraction needs whole matrices. A teacher that does not fit one GPU:"
                " --set teacher.sharded=true.",
            )
        if precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would compute in float32
            raise ValueError("the CPU does not train in fp16.")
        return accelerator
    except ValueError as error:
        raise UserError(
            f"--mixed-precision {precision} does not work here: {error}", "Use --mixed-precision no."
        ) from None


def track_picture(accelerator: Accelerator, name: str, picture: NDArray[np.uint8], *, step: int) -> None:
    """Give a picture (H, W, 3) to those of the run's trackers that take pictures: TensorBoard and W&B."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: picture[None]}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: [picture]}, step=step)


def leave_processes() -> None:
    """Take leave of the other training processes, after all that is done together."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first GPU, else the CPU.

    Raises:
        UserError: when it does not exist here.
    """
    return Accelerator().device if name == "auto" else _check_device(name)


def _check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = name.partition(":")[0] in _KINDS
        reason = f": {str(error).splitlines()[0]}" if known else f". {_OTHER_NAMES.get(name.lower(), '')}".rstrip()
        here = ", ".join(devices_here())
        raise UserError(
            f"The device {name!r} can't be used here{reason}", f"Devices are cpu, cuda, cuda:N and mps; here: {here}."
        ) from None
    return device


def devices_here() -> list[str]:
    """Return the devices that can be computed on, as ``--device`` takes them; GPUs with their names."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(count)]
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
