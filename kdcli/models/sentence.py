"""What a folder of sentence-transformers says beside the model: how to pool, how long texts may be, what follows.

The folder's ``modules.json`` lists a Transformer, a Pooling and perhaps Dense layers and a Normalize. No class that a
file names is imported: other modules are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.config import Pooling
from kdcli.errors import UserError
from kdcli.models.values import check_tensors
from kdcli.models.weights import read_checkpoint
from kdcli.text import short_repr

_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
"""sentence-transformers' name of a pooling -> ours."""
_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
"""The same -> the end of its flag in files of sentence-transformers before 5.2, which later versions read too."""
_OTHER_FLAGS = ("mean_sqrt_len_tokens", "weightedmean_tokens")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}
_TYPE = "sentence_transformers.models."


@dataclass(frozen=True)
class SentenceSettings:
    """What comes with a model of sentence-transformers.

    Attributes:
        pooling: None where the folder says nothing of it.
        max_length: in tokens; None likewise.
        head: what follows the pooling, Dense and Normalize; None for nothing.
    """

    pooling: Pooling | None = None
    max_length: int | None = None
    head: nn.Sequential | None = None


class Normalize(nn.Module):
    """Scales features (B, d) to length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the features, each divided by its Euclidean norm."""
        return F.normalize(features, dim=1)


def module_files(modules: Path) -> list[str]:
    """Return the files, within their repository, that a ``modules.json`` refers to and that may be there.

    Raises:
        UserError: it is damaged, or lists something that kdcli has not.
    """
    files = []
    for kind, path in _read_modules(modules):
        files += [f"{path}/config.json"] if kind in ("Pooling", "Dense") else []
        files += [f"{path}/model.safetensors"] if kind == "Dense" else []
    return files


def read_sentence_settings(folder: Path | None) -> SentenceSettings:
    """Read what sentence-transformers keeps in ``folder``.

    Raises:
        UserError: a file is damaged, or a module is none that kdcli has.
    """
    if folder is None:
        return SentenceSettings()
    length = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise UserError(
            f"{folder / 'sentence_bert_config.json'}: max_seq_length is {short_repr(length)}.", "Set max_length."
        )
    if not (folder / "modules.json").is_file():
        return SentenceSettings(max_length=length)
    pooling: Pooling | None = None
    layers: list[nn.Module] = []
    for kind, path in _read_modules(folder / "modules.json"):
        if kind == "Pooling":
            pooling = _read_pooling(folder / path)
        elif kind == "Dense":
            layers.append(_read_dense(folder / path))
        elif kind == "Normalize":
            layers.append(Normalize())
    return SentenceSettings(pooling, length, nn.Sequential(*layers) if layers else None)


def write_sentence_settings(
    folder: Path, *, pooling: Pooling, width: int, max_length: int, layers: Sequence[nn.Linear | nn.ReLU]
) -> None:
    """Make a model's folder one that sentence-transformers loads too: pooling, Dense layers, Normalize.

    Args:
        folder: that holds the model and its tokenizer.
        pooling: any but ``pooler``, which sentence-transformers has not.
        width: of the model's features.
        max_length: in tokens.
        layers: that follow the pooling.
    """
    name = next(name for name, ours in _MODES.items() if ours == pooling)
    flags = {f"pooling_mode_{flag}": other == name for other, flag in _FLAGS.items()}
    flags |= {f"pooling_mode_{flag}": False for flag in _OTHER_FLAGS}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    for layer, after in zip_longest(layers, layers[1:]):
        if isinstance(layer, nn.Linear):
            modules.append((f"{len(modules)}_Dense", "Dense"))
            _write_dense(folder / modules[-1][0], layer, nn.ReLU if isinstance(after, nn.ReLU) else nn.Identity)
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": _TYPE + kind}
        for index, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    (folder / modules[-1][0]).mkdir()


def _read_modules(file: Path) -> list[tuple[str, str]]:
    """Return the kind and the folder of every module."""
    modules = []
    for entry in _read_json(file, list):
        kind = str(entry.get("type")).rpartition(".")[2] if isinstance(entry, dict) else ""
        path = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(path, str) or not re.fullmatch(r"(\w[\w.-]*)?", path):
            raise UserError(f"{file} lists {short_repr(path)}, which is no folder beside it.", "Choose another model.")
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise UserError(
                f"{file} lists a module {short_repr(kind or entry)}, which kdcli does not have.",
                "Choose a model of Transformer, Pooling, Dense and Normalize; without modules.json the model alone is read.",
            )
        modules.append((kind, path))
    return modules


def _read_pooling(folder: Path) -> Pooling:
    settings = _read_json(folder / "config.json")
    mode = settings.get("pooling_mode")
    if mode is None:
        flags = {**{flag: name for name, flag in _FLAGS.items()}, **{flag: flag for flag in _OTHER_FLAGS}}
        found = [name for flag, name in flags.items() if settings.get(f"pooling_mode_{flag}")]
        mode = found[0] if len(found) == 1 else found or "mean"
    if not isinstance(mode, str) or mode not in _MODES:
        raise UserError(
            f"{folder / 'config.json'} pools by {short_repr(mode)}, which kdcli does not have.",
            f"Set pooling; sentence-transformers' {', '.join(_MODES)} are read.",
        )
    return _MODES[mode]


def _read_dense(folder: Path) -> nn.Module:
    settings = _read_json(folder / "config.json")
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    width, out = settings.get("in_features"), settings.get("out_features")
    if activation not in _ACTIVATIONS or not isinstance(width, int) or not isinstance(out, int):
        raise UserError(
            f"{folder / 'config.json'} describes a Dense layer that kdcli does not have.", "Choose another model."
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        file = folder / "pytorch_model.bin"
    tensors = read_checkpoint(file, source=str(file)).tensors
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.shape != (out, width) or (bias is not None and bias.shape != (out,)):
        raise UserError(f"{file} does not fit its config.json: {out} x {width}.", "Choose another model.")
    given: dict[str, Tensor] = {n: tensors[n] for n in ("linear.weight", "linear.bias") if n in tensors}
    check_tensors(str(file), {name: torch.zeros(tensor.shape) for name, tensor in given.items()}, given)
    with torch.device("meta"):
        linear = nn.Linear(width, out, bias=bias is not None)
    linear.weight = nn.Parameter(weight.float())
    if bias is not None:
        linear.bias = nn.Parameter(bias.float())
    return nn.Sequential(linear, _ACTIVATIONS[activation]())


def _write_dense(folder: Path, linear: nn.Linear, activation: type[nn.Module]) -> None:
    settings = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
    }
    _write_json(folder / "config.json", settings)
    tensors = {f"linear.{name}": parameter.detach().contiguous() for name, parameter in linear.named_parameters()}
    save_file(tensors, folder / "model.safetensors")


def _read_json(file: Path, kind: type = dict) -> Any:
    """Return the content of ``file``; of one that is missing an empty ``kind``."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}", "Choose another model.") from None
    if not isinstance(found, kind):
        raise UserError(f"{file} holds no {'list' if kind is list else 'mapping'}.", "Choose another model.")
    return found


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
