"""What a machine or a batch is too small for, told in one message with what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from kdcli.base.errors import UserError
from kdcli.config.training import TrainConfig


@contextlib.contextmanager
def hardware_errors(train: TrainConfig, *, step: Callable[[], int], processes: int) -> Iterator[None]:
    """Raise a :class:`UserError` where memory runs out, the system ends a loader process or a batch is too small.

    Args:
        train: with the batch that was too large.
        step: tells how many batches were trained on.
        processes: how many train together.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, ValueError) as error:
        text = str(error).strip()
        if text.startswith("Expected more than 1 value per channel"):
            raise UserError(
                f"At step {step() + 1} a batch normalisation got one value a channel, and can't be trained on it:"
                f" a batch of {train.batch_size} is too small for {processes} process{'' if processes == 1 else 'es'}.",
                f"Give each process 2 samples or more (--batch-size {2 * processes}), or layers larger maps.",
            ) from error
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
            where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "the machine"
            half = max(train.batch_size // 2 // processes * processes, processes, 2)
            raise UserError(
                f"The memory of {where} ran out at step {step() + 1} with a batch of {train.batch_size}.",
                f"--batch-size {half} --set train.accumulation={train.accumulation * train.batch_size // half} takes"
                " less memory for steps of as many images"
                + ("." if train.activation_checkpointing else "; so does --set train.activation_checkpointing=true."),
            ) from error
        if text.startswith("DataLoader worker"):
            raise UserError(
                f"The system ended a process that loads data: {text.splitlines()[0]}",
                "Mostly memory ran out: use fewer (--set data.workers=1, or 0), or give a container more shared memory"
                " (--shm-size). A run that has a checkpoint goes on with --resume.",
            ) from error
        raise
