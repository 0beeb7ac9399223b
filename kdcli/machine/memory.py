"""The most memory that a piece of work takes."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Run ``work`` and return the most bytes that were taken meanwhile, with all that was there before.

    Of a GPU what torch had given out; of a CPU what the process held in memory. Where the system can't forget earlier
    peaks (only Linux can), the process's largest so far.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    can_reset = _reset_peak()
    work()
    if can_reset:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forgets_peaks(device: torch.device) -> bool:
    """Whether :func:`peak_memory` is that of the work alone, and not of anything before it."""
    return device.type == "cuda" or _reset_peak()


def available_memory(device: torch.device) -> int:
    """Return the bytes that are free on the device, those that this process holds already left out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _reset_peak() -> bool:
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True
