"""What a bug report has to say of a machine: versions, devices, threads, caches, free space, extras."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch

import kdcli
from kdcli.base import extensions
from kdcli.base.files import cache_folder
from kdcli.machine.devices import devices_here

_PURPOSES = {
    "demo": "the quickstart's teacher without a download",
    "demo-dense": "teachers of edges and texts without a download",
    "onnx": "kdcli export --format onnx",
    "tracking": "--track tensorboard",
    "tune": "kdcli tune",
    "dense": "segmentation students of segmentation-models-pytorch, average precision of boxes",
    "generative": "distances between images that are made and real ones",
    "dev": "kdcli's own tests",
}
_VARIABLES = (
    "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
"""Told where they are set; none of them is a secret."""
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """Something that is told.

    Attributes:
        part: the heading that it stands under.
        name: what it is.
        value: as text.
        problem: what to do about it; empty where all is well.
    """

    part: str
    name: str
    value: str
    problem: str = ""


def examine() -> list[Finding]:
    """Return what there is to say of this machine and installation; nothing is fetched, and nothing is written."""
    return [*_versions(), *_devices(), *_memory(), *_places(), *_extras()]


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _requirements() -> Mapping[str, list[str]]:
    """Return the packages that kdcli wants by extra, those that it always wants under an empty name."""
    found: dict[str, list[str]] = {"": []}
    try:
        lines = requires("kdcli") or []
    except PackageNotFoundError:
        lines = []
    for line in lines:
        package = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
        if package is not None and package[0].lower() != "kdcli":
            found.setdefault("" if extra is None else extra[1], []).append(package[0])
    return found


def _versions() -> list[Finding]:
    found = [
        Finding("versions", "kdcli", f"{kdcli.__version__} in {Path(kdcli.__file__).parent}"),
        Finding("versions", "Python", f"{platform.python_version()} in {sys.prefix}"),
        Finding("versions", "system", platform.platform()),
    ]
    for package in sorted(_requirements()[""]):
        known = _version_of(package)
        problem = "" if known else f"pip install {package}"
        found.append(Finding("versions", package, known or "missing", problem))
    for entry in extensions.installed():
        found.append(Finding("versions", f"extension {entry.name}", f"{entry.package} ({entry.kind})"))
    return found


def _devices() -> list[Finding]:
    found = [Finding("devices", "--device", ", ".join(devices_here()))]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        value = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        found.append(Finding("devices", f"cuda:{number}", value))
    if torch.cuda.is_available():
        found.append(Finding("devices", "bf16", "yes" if torch.cuda.is_bf16_supported() else "no"))
    built = torch.version.cuda or torch.version.hip
    problem = ""
    if built and not torch.cuda.is_available():
        problem = "torch was built for GPUs and finds none: without one, nothing is amiss; with one, look at its driver"
    found.append(
        Finding("devices", "torch built for", f"CUDA {built}" if torch.version.cuda else built or "CPU", problem)
    )
    return found


def _memory() -> list[Finding]:
    cores, here = os.cpu_count() or 1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    memory = psutil.virtual_memory()
    threads = torch.get_num_threads()
    few = here is not None and threads > here
    return [
        Finding(
            "machine", "CPU cores", f"{cores}" + (f", {here} for this process" if here not in (None, cores) else "")
        ),
        Finding(
            "machine",
            "threads of torch",
            f"{threads}",
            f"More than the {here} cores that it has: set OMP_NUM_THREADS={here}" if few else "",
        ),
        Finding("machine", "memory", f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"),
        *(Finding("machine", name, os.environ[name]) for name in _VARIABLES if name in os.environ),
    ]


def _places() -> list[Finding]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    places = {
        "runs": Path("runs"),
        "kdcli's cache": cache_folder(),
        "the hub's cache": home,
        "torch's cache": torch_home,
    }
    return [_place(name, path) for name, path in places.items()]


def _place(name: str, path: Path) -> Finding:
    nearest = path.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        free = shutil.disk_usage(nearest).free
        writable = os.access(nearest, os.W_OK)
    except OSError as error:
        return Finding("places", name, f"{path}", f"can't be looked at: {error.strerror or error}")
    problem = "not writable: name another place" if not writable else "little room" if free < _GIB else ""
    there = "" if path.exists() else ", not there yet"
    return Finding("places", name, f"{path}{there}; {free / _GIB:.1f} GiB free", problem)


def _extras() -> list[Finding]:
    found = []
    for extra, packages in _requirements().items():
        missing = [package for package in packages if _version_of(package) is None]
        if not extra:
            continue
        purpose = f" ({_PURPOSES[extra]})" if extra in _PURPOSES else ""
        value = "installed" if not missing else f"pip install 'kdcli[{extra}]' adds {', '.join(missing)}"
        found.append(Finding("extras", extra, f"{value}{purpose}"))
    return found
