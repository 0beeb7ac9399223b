"""What a folder of sentence-transformers says beside the model: how to pool, how long texts may be, what follows.

The folder's ``modules.json`` lists a Transformer, a Pooling and perhaps Dense layers and a Normalize. No class that a
file names is imported: other modules are refused, and so is a setting that is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.text import short_repr
from kdcli.config.models import Pooling
from kdcli.models.transformers import files
from kdcli.models.values import check_tensors
from kdcli.models.weights import read_checkpoint

_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
"""sentence-transformers' name of a pooling -> ours."""
_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
"""The same -> the end of its flag in files of sentence-transformers before 5.2, which later versions read too."""
_OTHER_FLAGS = ("mean_sqrt_len_tokens", "weightedmean_tokens")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}
_TYPE = "sentence_transformers.models."
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_EMBEDDING = (None, "sentence_embedding")
_KNOWN: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "model": {
        "__version__": None,
        "model_type": (None, "SentenceTransformer"),
        "prompts": None,
        "default_prompt_name": None,
        "similarity_fn_name": None,
    },
    "Transformer": {
        "max_seq_length": None,
        "do_lower_case": None,
        "transformer_task": (None, "feature-extraction"),
        "modality_config": (None, _TEXT_ONLY),
        "module_output_name": (None, "token_embeddings"),
        "processing_kwargs": (None, {}),
        "unpad_inputs": None,
    },
    "Pooling": {
        "word_embedding_dimension": None,
        "embedding_dimension": None,
        "pooling_mode": None,
        "include_prompt": None,
        **{f"pooling_mode_{flag}": None for flag in (*_FLAGS.values(), *_OTHER_FLAGS)},
    },
    "Dense": {
        "in_features": None,
        "out_features": None,
        "bias": None,
        "activation_function": None,
        "module_input_name": _EMBEDDING,
        "module_output_name": _EMBEDDING,
        "use_residual": (None, False),
    },
    "Normalize": {"module_input_name": _EMBEDDING, "module_output_name": _EMBEDDING},
}
"""The settings of each file that kdcli obeys, or that change nothing; the values allowed, None for any."""


@dataclass(frozen=True)
class SentenceSettings:
    """What comes with a model of sentence-transformers.

    Attributes:
        pooling: None where the folder says nothing of it.
        max_length: in tokens; None likewise.
        head: what follows the pooling, Dense and Normalize; None for nothing.
        prompt: what stands before every text; empty for nothing.
        pools_prompt: whether its tokens count in the pooling.
        lower_case: whether texts are read in small letters.
        remarks: one sentence each on what else is there.
    """

    pooling: Pooling | None = None
    max_length: int | None = None
    head: nn.Sequential | None = None
    prompt: str = ""
    pools_prompt: bool = True
    lower_case: bool = False
    remarks: tuple[str, ...] = ()


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
    found = []
    for kind, path in _read_modules(modules):
        found += [f"{path}/config.json"] if kind != "Transformer" else []
        found += [f"{path}/model.safetensors"] if kind == "Dense" else []
    return found


def read_sentence_settings(folder: Path | None) -> SentenceSettings:
    """Read what sentence-transformers keeps in ``folder``.

    Raises:
        UserError: a file is damaged, or a module or a setting is none that kdcli has.
    """
    if folder is None:
        return SentenceSettings()
    names = files.SENTENCE_TRANSFORMER
    file = folder / next((name for name in names if (folder / name).is_file()), names[0])
    transformer = _read_settings(file, "Transformer")
    length, lower = transformer.get("max_seq_length"), transformer.get("do_lower_case") or False
    if length is not None and (not isinstance(length, int) or length < 1):
        raise UserError(f"{file}: max_seq_length is {short_repr(length)}.", "Set max_length.")
    if not isinstance(lower, bool):
        raise UserError(f"{file}: do_lower_case is {short_repr(lower)}.", "Set it to true or false.")
    prompt, remarks = _read_prompt(folder / files.PROMPTS)
    settings = SentenceSettings(None, length, None, prompt, True, lower, remarks)
    if not (folder / files.MODULES).is_file():
        return settings
    layers: list[nn.Module] = []
    for kind, path in _read_modules(folder / files.MODULES):
        found = _read_settings(folder / path / "config.json", kind) if kind != "Transformer" else {}
        if kind == "Pooling":
            include = found.get("include_prompt", True)
            settings = replace(settings, pooling=_read_pooling(folder / path, found), pools_prompt=bool(include))
        elif kind == "Dense":
            layers.append(_read_dense(folder / path, found))
        elif kind == "Normalize":
            layers.append(Normalize())
    return replace(settings, head=nn.Sequential(*layers) if layers else None)


def prompt_of(settings: SentenceSettings, *, asked: str | None, name: str) -> str:
    """Return what stands before every text: what is asked for, else the model's own.

    Raises:
        UserError: the model ``name`` leaves its prompt's tokens out of the pooling, which kdcli does not.
    """
    prompt = settings.prompt if asked is None else asked
    if prompt and not settings.pools_prompt:
        raise UserError(
            f"{name} leaves the prompt {short_repr(prompt)} out of its pooling (include_prompt), which kdcli does not"
            " have.",
            "Set teacher.prompt to '' to go on without it, or choose another model.",
        )
    return prompt


def write_prompt(folder: Path, prompt: str) -> None:
    """Let a folder's model put ``prompt``, unless it is empty, before every text, in sentence-transformers too."""
    if prompt:
        _write_json(folder / files.PROMPTS, {"prompts": {"default": prompt}, "default_prompt_name": "default"})


def _read_prompt(file: Path) -> tuple[str, tuple[str, ...]]:
    """Return the prompt that stands before every text, and remarks on what else the model's file says."""
    settings = _read_settings(file, "model")
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, (str, type(None))) for text in prompts.values()):
        raise UserError(f"{file}: prompts is {short_repr(prompts)}.", "Give each prompt's name its text.")
    if default is not None and default not in prompts:
        raise UserError(
            f"{file}: default_prompt_name is {short_repr(default)}, and the prompts are"
            f" {', '.join(prompts) or 'none'}.",
            "Name one of them.",
        )
    prompt = "" if default is None else prompts[default] or ""
    remarks = []
    others = [name for name, text in prompts.items() if text and name != default]
    if others:
        remarks.append(f"Its prompts {', '.join(others)} are for other uses, and put before no text.")
    if (similarity := settings.get("similarity_fn_name") or "cosine") != "cosine":
        remarks.append(f"Its own similarity is {similarity}; kdcli compares embeddings by their cosines.")
    return prompt, tuple(remarks)


def _read_settings(file: Path, kind: str) -> dict[str, Any]:
    """Return the settings in ``file``.

    Raises:
        UserError: one of them is not known, or has a value that kdcli does not have.
    """
    settings: dict[str, Any] = _read_json(file)
    known = _KNOWN[kind]
    for name, value in settings.items():
        if value is not None and name not in known:
            raise UserError(
                f"{file} sets {short_repr(name)} to {short_repr(value)}, a setting that kdcli does not know.",
                "Remove it if it changes nothing, or choose another model.",
            )
        if (allowed := known.get(name)) is not None and value not in allowed:
            raise UserError(
                f"{file} sets {name} to {short_repr(value)}, which kdcli does not have.", "Choose another model."
            )
    return settings


def write_sentence_settings(
    folder: Path, *, pooling: Pooling, width: int, max_length: int, layers: Sequence[nn.Linear | nn.ReLU]
) -> None:
    """Make a model's folder one that sentence-transformers loads too: pooling, Dense layers, Normalize.

    Its prompt is there already, by :func:`write_prompt`, and its tokenizer sees to small letters.

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
    _write_json(folder / files.MODULES, listed)
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
                "Choose a model of Transformer, Pooling, Dense and Normalize; without modules.json the model alone is"
                " read.",
            )
        modules.append((kind, path))
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise UserError(
            f"{file} lists {', '.join(kinds) or 'no modules'}, and kdcli reads a Transformer, a Pooling, then others.",
            "Choose another model; without modules.json the model alone is read.",
        )
    if modules[0][1]:
        raise UserError(
            f"{file} has its Transformer in the folder {modules[0][1]}.",
            f"Name that folder as the model, or move its files beside {file.name}.",
        )
    return modules


def _read_pooling(folder: Path, settings: dict[str, Any]) -> Pooling:
    mode = settings.get("pooling_mode")
    if mode is None:
        flags = {**{flag: name for name, flag in _FLAGS.items()}, **{flag: flag for flag in _OTHER_FLAGS}}
        found = [name for flag, name in flags.items() if settings.get(f"pooling_mode_{flag}")]
        mode = found[0] if len(found) == 1 else found or "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if not isinstance(mode, str) or mode not in _MODES:
        raise UserError(
            f"{folder / 'config.json'} pools by {short_repr(mode)}, which kdcli does not have.",
            f"Set pooling; sentence-transformers' {', '.join(_MODES)} are read.",
        )
    return _MODES[mode]


def _read_dense(folder: Path, settings: dict[str, Any]) -> nn.Module:
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
