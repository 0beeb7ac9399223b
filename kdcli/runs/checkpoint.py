"""Checkpoints of a run: written whole or not at all, verified before they are read, never unpickled.

One checkpoint is a folder ``checkpoints/step-NNNNNNNN``: ``state.json`` with everything that is not a tensor,
``state.safetensors`` with the tensors, ``best/`` with the best student so far and its projectors, and ``manifest.json``
with the SHA-256 of each of them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcli.base.checksums import file_digest
from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors, link_file, link_files, temporary_folder, utf8_path

FORMAT = "kdcli-checkpoint-1"
_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        state: as it was given to :meth:`Checkpoints.save`, with its tensors on the CPU.
    """

    path: Path
    state: dict[str, Any]

    @property
    def best(self) -> Path | None:
        """The folder with the best student so far; None before the first validation."""
        return self.path / "best" if (self.path / "best").is_dir() else None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        keep: how many to keep; older ones are removed.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps at which checkpoints were taken, in order."""
        if not self.folder.is_dir():
            return []
        names = (_FOLDER.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in names if match)

    def save(self, step: int, state: dict[str, Any], *, best: Path | None, beside: Sequence[Path] = ()) -> Path:
        """Write a checkpoint, then remove the ones that are too old.

        Args:
            step: names it.
            state: nested dicts, lists and tuples of tensors, numbers, strings, torch's dtypes, None.
            best: folder of the best student so far. Its files are linked where the file system can, for a run never
                changes a file in place.
            beside: files that go with the best student, those that are there.

        Raises:
            UserError: the file system refuses; earlier checkpoints are as they were.
        """
        target = self._path(step)
        with clear_os_errors(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary_folder(self.folder) as temporary:
                new = temporary / "new"
                new.mkdir()
                tensors: dict[str, Tensor] = {}
                tree = pack(state, tensors)
                save_file(tensors, new / "state.safetensors")
                (new / "state.json").write_text(json.dumps({"format": FORMAT, "state": tree}), encoding="utf-8")
                if best is not None:
                    link_files(best, new / "best" / "student")
                for file in beside:
                    if best is not None and file.is_file():
                        link_file(file, new / "best" / file.name)
                files = sorted(path for path in new.rglob("*") if path.is_file())
                manifest = {path.relative_to(new).as_posix(): file_digest(path) for path in files}
                (new / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                for path in (*files, new / "manifest.json"):
                    _flush(path)
                if target.exists():
                    self._remove(step)
                new.rename(target)
                _flush(self.folder)
            for old in self.steps()[: -self.keep]:
                self._remove(old)
        return target

    def load(self, *, warn: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None where there is none at all.

        Args:
            warn: told of each damaged one that is passed over.

        Raises:
            UserError: all of them are damaged, or the newest whole one is not kdcli's.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self._path(step)
            if problem := _damage(path):
                warn(f"The checkpoint {path} is damaged ({problem}); going on from the one before.")
                continue
            return Checkpoint(path, _read(path))
        if steps:
            raise UserError(
                f"None of the {len(steps)} checkpoints in {self.folder} can be read.", "The run has to be repeated."
            )
        return None

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: damaged ones that were passed over."""
        for later in self.steps():
            if later > step:
                self._remove(later)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _remove(self, step: int) -> None:
        # Moved first: a folder that is half removed is not taken for a checkpoint.
        with temporary_folder(self.folder) as doomed:
            self._path(step).rename(doomed / "old")


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON can hold it; its tensors go into ``tensors`` (contiguous copies on the CPU) by number.

    Raises:
        TypeError: for anything but tensors, dicts, lists, tuples, numbers, strings, dtypes and None.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[pack(key, tensors), pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [pack(item, tensors) for item in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint can't hold a {type(value).__name__}")


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what :func:`pack` was given."""
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {unpack(key, tensors): unpack(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    if kind == "dtype" and isinstance(dtype := getattr(torch, content), torch.dtype):
        return dtype
    return float(content)


def restore_module(module: torch.nn.Module, saved: dict[str, Tensor], *, what: str, path: Path) -> None:
    """Load ``saved`` into ``module``.

    Raises:
        UserError: names or shapes differ; it says which.
    """
    own = module.state_dict()
    differences = [f"{name} is missing" for name in own.keys() - saved.keys()]
    differences += [f"{name} is unknown" for name in saved.keys() - own.keys()]
    for name in own.keys() & saved.keys():
        if own[name].shape != saved[name].shape:
            differences.append(f"{name} has shape {tuple(saved[name].shape)}, not {tuple(own[name].shape)}")
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise UserError(
            f"The checkpoint {path} does not fit the run's {what}: {len(differences)} tensors differ ({shown}).",
            "It is another run's, or a package that builds the model has changed.",
        )
    module.load_state_dict(saved)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        state = unpack(content["state"], load_file(utf8_path(path / "state.safetensors")))
        if not isinstance(state, dict):
            raise TypeError("its state is no mapping")
    except Exception as error:  # its checksums are right: it was written so, by something else
        raise UserError(
            f"{path} is no checkpoint of this version of kdcli: {type(error).__name__}: {error}.",
            "Go on with the version that wrote it, or remove that folder.",
        ) from error
    return state


def _damage(path: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not {"state.json", "state.safetensors"} <= manifest.keys():
            return "its manifest.json is not whole"
        for name, digest in manifest.items():
            file = path / name
            if not file.resolve().is_relative_to(path.resolve()):
                return f"{name} is outside of it"
            if file_digest(file) != digest:
                return f"{name} has changed"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _flush(path: Path) -> None:
    """Have the system put a file, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
