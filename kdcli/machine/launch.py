"""Training by several processes, started here or by somebody else's launcher.

Every process runs the same command line; torch's elastic agent starts them and, when one fails, ends the others. Only
the process with rank 0 prints and writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError
from kdcli.config.training import TrainConfig
from kdcli.machine.signals import stop_signals

_ERRORS = "KDCLI_ERRORS"
"""Names the folder in which processes that kdcli started leave their errors, for the first of them to be shown."""
_PR_SET_PDEATHSIG = 1
_LOST = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "socket timeout", "broken pipe")


def is_launched() -> bool:
    """Whether this is one of the processes that a launcher started."""
    return "LOCAL_RANK" in os.environ


def rank() -> int:
    """Return this process's number among all that train together; 0 where it is alone."""
    return int(os.environ.get("RANK", 0))


def processes_to_start(train: TrainConfig) -> int:
    """Return how many processes to start here: as asked for, else one for each GPU; 1 for none but this one.

    Raises:
        UserError: several were asked for on one named device, or more than a launcher started; or they can't share a
            batch evenly.
    """
    import torch

    if is_launched():
        started = int(os.environ.get("WORLD_SIZE", 1))
        if train.num_processes not in (None, started):
            raise UserError(
                f"--num-processes {train.num_processes} was asked for, and a launcher started {started}.",
                "Drop --num-processes: the launcher decides.",
            )
        check_share(train.batch_size, started)
        return 1
    gpus = torch.cuda.device_count() if train.device in ("auto", "cuda") else 0
    wanted = train.num_processes or max(gpus if train.device == "auto" else 0, 1)
    if wanted > 1 and train.device not in ("auto", "cuda", "cpu"):
        raise UserError(
            f"--num-processes {wanted} can't all train on {train.device}.", "Drop --device, or use --device cpu."
        )
    if gpus and wanted > gpus:
        raise UserError(f"--num-processes {wanted}, and there are {gpus} GPUs.", "Use fewer, or --device cpu.")
    if not gpus and wanted > (most := max(num_cores(), 2)):
        raise UserError(f"--num-processes {wanted}, and there are {num_cores()} CPU cores.", f"Use at most {most}.")
    check_share(train.batch_size, wanted)
    return wanted


def check_share(batch_size: int, num_processes: int) -> None:
    """Raise ``UserError`` where a batch is not the same number of samples for each process."""
    if batch_size % num_processes:
        raise UserError(
            f"A batch of {batch_size} can't be shared evenly by {num_processes} processes.",
            f"Use --batch-size {math.ceil(batch_size / num_processes) * num_processes}, or another --num-processes.",
        )


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run ``kdcli ARGUMENTS`` in ``num_processes`` processes on this machine and wait for them.

    Returns:
        The exit code: 0, or that of the process that failed first.

    Raises:
        UserError: one of them raised it, or the system ended one.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from kdcli.base.files import temporary_folder

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its reports would be a second message
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns where no parameter is unused
    os.environ.setdefault("OMP_NUM_THREADS", str(max(num_cores() // num_processes, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(["SIGQUIT", *(number.name for number in stop_signals())]),
    )
    with temporary_folder(Path(tempfile.gettempdir())) as errors, _handlers_restored():
        os.environ[_ERRORS] = str(errors)
        try:
            elastic_launch(config, sys.executable)("-m", "kdcli", *arguments)
        except SignalException as stop:
            return 128 + int(stop.sigval)
        except ChildFailedError as failed:
            codes = {number: failure.exitcode for number, failure in failed.failures.items()}
            _raise_first_error(errors, codes)
            return max(codes.values())
        finally:
            del os.environ[_ERRORS]
    return 0


@contextlib.contextmanager
def _handlers_restored() -> Iterator[None]:
    """Give signals back the handlers that they had: the agent leaves its own, in a program that goes on after it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGQUIT, *stop_signals())}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)


def end_with_the_launcher() -> None:
    """Have Linux tell this process to stop when the one that launched it is no more."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def reporting_to_launcher() -> Iterator[None]:
    """In a process that kdcli's launcher started: leave a user's error to be shown by it, and only exit here.

    When another process has failed, this one loses its connection; that is left too, for where there is no better word.
    """
    folder = os.environ.get(_ERRORS)
    try:
        yield
    except UserError as error:
        if folder is None:
            raise UserError(f"Process {rank()}: {error.message}", error.hint) from None
        _leave(Path(folder), error, is_cause=True)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in _LOST):
            raise
        lost = UserError(
            f"The connection to another training process was lost: {str(error).strip().splitlines()[0]}",
            "Its own message says why. Go on with: kdcli distill --resume RUN",
        )
        if folder is None:
            raise lost from None
        _leave(Path(folder), lost, is_cause=False)
        raise SystemExit(2) from None


def _leave(folder: Path, error: UserError, *, is_cause: bool) -> None:
    """Leave an error to the launcher.

    Raises:
        UserError: the error itself, where the launcher has gone or there is no room.
    """
    from kdcli.base.files import write_atomically

    content = json.dumps({"message": error.message, "hint": error.hint, "is_cause": is_cause})
    try:
        write_atomically(folder / f"{rank()}.json", lambda file: file.write_text(content, encoding="utf-8"))
    except UserError:
        raise error from None


def _raise_first_error(folder: Path, codes: dict[int, int]) -> None:
    """Raise the error that says most about why the processes ended; return where they have said it themselves."""
    errors: list[dict[str, Any]] = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))
    ]
    for error in errors:
        if error["is_cause"]:
            raise UserError(error["message"], error["hint"])
    for number, code in sorted(codes.items()):
        if code < 0 and -code != signal.SIGTERM:
            raise UserError(
                f"Training process {number} was ended by {signal.Signals(-code).name}.",
                "If nobody did so, memory ran out. Go on with: kdcli distill --resume RUN",
            )
    if errors and set(codes.values()) <= {2, -signal.SIGTERM}:  # the latter were ended by the launcher
        raise UserError(errors[0]["message"], errors[0]["hint"])
