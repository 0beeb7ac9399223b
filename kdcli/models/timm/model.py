"""A model of timm with the interface that all have."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.layers import set_reentrant_ckpt
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.base.facts import GEOMETRIES, Interpolation, LabelKind, Preprocessing
from kdcli.base.reads import LOGITS, Reads
from kdcli.base.text import short_repr
from kdcli.models.base import Origin, Probe
from kdcli.models.outputs import ModelOutput
from kdcli.models.recompute import no_recomputing
from kdcli.models.taps import Layout, edges_of, grid_of, map_of_places, mean_over_places
from kdcli.models.timm import kdcli_networks
from kdcli.models.timm.channels import set_channels
from kdcli.models.vision import VisionModel

PROBLEM, SEVERAL = "problem_type", "multi_label_classification"
"""What a folder's ``config.json`` says of labels that are several a sample, in transformers' words."""


@dataclass(frozen=True)
class _Features:
    """How ``pooled`` comes out of what ``forward_features`` returns."""

    layouts: tuple[Layout, ...]
    """One per tensor that counts; several (CrossViT's branches, EfficientViM's stages) are concatenated, as in
    the head."""
    num_prefix: int
    """Class, distillation and register tokens at the head of a sequence."""
    is_list: bool
    class_tokens_only: bool
    """PiT: ``forward_features`` returns nothing but class tokens, so the final map is asked for beside them."""


class TimmModel(VisionModel):
    """A model of timm, with ``forward_features`` and ``forward_head`` of its own.

    Where the classifiers are applied to the embedding itself (nearly everywhere; checked when the model is made) the
    head is computed once. Elsewhere (DeiT with its distillation token, CrossViT, VOLO, ...) the
    embedding is a second call of ``forward_head`` that stops before the classifier: some pooling more. A model with a
    distillation head returns the mean of both heads in training too, as timm's own models do in evaluation.
    """

    library = "timm"
    _label_kind: LabelKind = "class"

    def __init__(self, module: Any, origin: Origin, model_args: dict[str, Any]) -> None:
        size = origin.image_size
        if size is not None:
            set_input(module, {"image_size": size})
        self._model_args = model_args
        super().__init__(module, origin, _preprocessing(module, origin.name), module.num_classes)

    def _probe(self, image: Tensor, num_classes: int) -> Probe:
        module: Any = self.module
        was_training = module.training
        module.eval()
        with torch.no_grad():
            features = module.forward_features(image)
            self._layout = _describe(module, features)
            features, parts = self._final(image, features)
            dims = {"pooled": _pool(parts, self._layout.num_prefix).shape[1]}
            grid = _grid(parts, self._layout.num_prefix, (image.shape[2], image.shape[3]))
            self._grid = grid
            self._one_pass = False
            if num_classes:
                embedding = module.forward_head(features, pre_logits=True)
                dims["embedding"] = embedding.shape[1]
                self._one_pass = _reads_embedding(module, self._classifiers(), features, embedding)
        module.train(was_training)
        reads = Reads(heads=(LOGITS,)) if num_classes else Reads(("pooled",))
        grids = {} if grid is None else {"pooled": grid}
        return Probe(dims, self._measure(image, reads), grids)

    @property
    def _num_prefix_tokens(self) -> int:
        return self._layout.num_prefix

    @property
    def label_kind(self) -> LabelKind:
        """As a folder's config says; timm itself has no word for it."""
        return self._label_kind

    def take_several_labels(self) -> None:
        """Write it into what is saved."""
        self._label_kind = "classes"

    def _recompute(self) -> None:
        set_reentrant_ckpt(False)
        switch: Any = getattr(self.module, "set_grad_checkpointing", None)
        try:
            if switch is None:
                raise no_recomputing(self.facts.name, "its network has no checkpoints between its blocks")
            switch(True)
        except AssertionError as error:  # how timm's own models say it
            raise no_recomputing(self.facts.name, f"timm says {str(error) or 'nothing more'}") from None

    def _head_names(self) -> tuple[str, str] | None:
        """Return what timm calls ``head`` and ``head_dist`` where a model has both; EfficientViM's are lists."""
        names = [name for name, child in self.module.named_modules() if not isinstance(child, nn.Identity)]
        pairs = [(name.removesuffix("_dist"), name) for name in names if name.rpartition(".")[2] == "head_dist"]
        return next((pair for pair in pairs if pair[0] in names), None)

    def _layer_lists(self) -> list[list[str]]:
        listed = getattr(self.module, "feature_info", [])
        return [[str(entry["module"]) for entry in listed], *super()._layer_lists()]

    def _run(self, images: Tensor, reads: Reads) -> ModelOutput:
        module: Any = self.module
        output = ModelOutput()
        if "pooled" in reads.taps:
            features, parts = self._final(images)
            output.edges["pooled"] = edges_of(*(part for part, _ in parts))
            if "pooled" in reads.features:
                output.features["pooled"] = _pool(parts, self._layout.num_prefix)
            if "pooled" in reads.maps:
                ((part, layout),) = parts
                assert self._grid is not None
                output.maps["pooled"] = map_of_places(part, layout, self._layout.num_prefix, self._grid)
        else:
            features = module.forward_features(images)
        if not reads.heads and "embedding" not in reads.features:
            return output
        if "embedding" in reads.features:
            output.features["embedding"] = embedding = _average(module.forward_head(features, pre_logits=True))
            shared = embedding if self._one_pass else features
            output.edges["embedding"] = edges_of(*(shared if isinstance(shared, (tuple, list)) else (shared,)))
            if reads.heads and self._one_pass:
                output.heads[LOGITS] = _average(tuple(classifier(embedding) for classifier in self._classifiers()))
                return output
        if reads.heads:
            output.heads[LOGITS] = _average(module.forward_head(features))
        return output

    def _final(self, images: Tensor, features: Any = None) -> tuple[Any, list[tuple[Tensor, Layout]]]:
        """Return what ``forward_features`` returns, or ``features``, and its tensors that ``pooled`` averages."""
        module: Any = self.module
        if self._layout.class_tokens_only:
            features, (grid,) = module.forward_intermediates(images, indices=1)
            return features, [(grid, "NCHW")]
        if features is None:
            features = module.forward_features(images)
        parts = features[-len(self._layout.layouts) :] if self._layout.is_list else (features,)
        return features, list(zip(parts, self._layout.layouts, strict=True))

    def _classifiers(self) -> tuple[nn.Module, ...]:
        found = self.module.get_classifier()  # type: ignore[operator]
        return tuple(found) if isinstance(found, (tuple, list, nn.ModuleList)) else (found,)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``: ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

        With an architecture of :mod:`kdcli.models.timm.kdcli_networks` goes a copy of that file, to be imported first.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # Copies: safetensors takes neither shared nor channels-last memory.
        state = self.module.state_dict()
        tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config: dict[str, Any] = {"num_classes": self.facts.num_classes}
        if self.label_kind == "classes":
            config[PROBLEM] = SEVERAL
        if self.facts.label_names:
            config["label_names"] = list(self.facts.label_names)
        save_config_for_hf(self.module, str(folder / "config.json"), model_config=config, model_args=self._model_args)
        _say_classes_once(folder / "config.json")
        if self.module.pretrained_cfg["architecture"] in kdcli_networks.NAMES:  # type: ignore[index,operator]
            shutil.copyfile(kdcli_networks.__file__, folder / "kdcli_networks.py")


def _say_classes_once(file: Path) -> None:
    """Leave the number of classes out of a config's arguments: it is in the config itself.

    transformers' wrapper of timm's models gives it too, and an argument that is given twice is an error.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("model_args", {}).pop("num_classes", None) is not None:
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def label_names(module: Any, *, is_registered: bool) -> tuple[str, ...] | None:
    """Return the class names that the config carries; for timm's own ImageNet classifiers, the WordNet synsets.

    timm knows ImageNet's subsets by their number of classes only, so this holds for models of its registry alone.
    """
    return _configured_names(module) or (_imagenet_names(module) if is_registered else None)


def _configured_names(module: Any) -> tuple[str, ...] | None:
    names = module.pretrained_cfg.get("label_names")
    if isinstance(names, dict):
        by_index = {str(index): name for index, name in names.items()}
        names = [by_index.get(str(index)) for index in range(module.num_classes)]
    if not isinstance(names, (list, tuple)) or not names or len(names) != module.num_classes or None in names:
        return None
    return tuple(str(name) for name in names)


def _imagenet_names(module: Any) -> tuple[str, ...] | None:
    subset = infer_imagenet_subset({"num_classes": module.num_classes})
    if not subset:
        return None
    names = tuple(ImageNetInfo(subset).label_names())
    return names if len(names) == module.num_classes else None


def set_input(module: Any, wanted: Mapping[str, Any]) -> None:
    """Write how images are to be prepared into a model's config.

    Args:
        module: of timm.
        wanted: any of ``image_size`` (height, width), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and
            ``crop_mode``, as timm calls them.
    """
    cfg = dict(module.pretrained_cfg)
    values = dict(wanted)
    if size := values.pop("image_size", None):
        values["input_size"] = (cfg.get("input_size", (3,))[0], *size)
        for key in ("test_input_size", "test_crop_pct"):
            cfg.pop(key, None)
    module.pretrained_cfg = module.default_cfg = cfg | values
    set_channels(module, module.pretrained_cfg.get("input_size", (3,))[0])


def copy_input(source: Any, target: Any) -> None:
    """Let ``target`` have its images prepared as ``source`` has them, but for their size."""
    cfg = resolve_model_data_config(source)
    set_input(target, {key: cfg[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")})


def _preprocessing(module: Any, name: str) -> Preprocessing:
    """Return what timm's evaluation transform does by the model's config.

    Raises:
        UserError: it has a setting that is not one of timm's, or impossible ones.
    """
    config = resolve_model_data_config(module)
    hint = "Check the model's config.json, or choose another model."
    for key, known in (("interpolation", get_args(Interpolation)), ("crop_mode", tuple(GEOMETRIES))):
        if config[key] not in known:
            raise UserError(
                f"{name}: {key} is {short_repr(config[key])}, and kdcli knows {', '.join(known)}.",
                hint,
            )
    try:
        _, height, width = config["input_size"]
        crop_pct = float(config["crop_pct"])
        resize = (math.floor(height / crop_pct), math.floor(width / crop_pct))
        mean, std = tuple(config["mean"]), tuple(config["std"])
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{name} wants impossible images: {error}.", hint) from error
    geometry = GEOMETRIES[config["crop_mode"]]
    return Preprocessing((height, width), mean, std, config["interpolation"], resize, geometry)


def _describe(module: Any, features: Any) -> _Features:
    width = module.num_features
    if isinstance(features, (list, tuple)):
        if sum(part.shape[-1] for part in features) == width:
            layouts: tuple[Layout, ...] = tuple("NLC" for _ in features)
        elif sum(part.shape[1] for part in features) == width:
            layouts = tuple("NCL" if part.ndim == 3 else "NCHW" for part in features)
        else:  # CoaT: parallel scales of one width, of which the last is the coarsest
            layouts = (_layout(features[-1], width, module),)
        last = features[-1]
        prefix = _num_prefix(module, last) if layouts[-1] == "NLC" else 0
        return _Features(layouts, prefix, is_list=True, class_tokens_only=False)
    layout = _layout(features, width, module)
    prefix = _num_prefix(module, features) if layout == "NLC" else 0
    return _Features((layout,), prefix, False, layout == "NLC" and prefix == features.shape[1])


def _pool(parts: list[tuple[Tensor, Layout]], num_prefix: int) -> Tensor:
    means = [mean_over_places(part, layout, num_prefix) for part, layout in parts]
    return means[0] if len(means) == 1 else torch.cat(means, dim=1)


def _grid(parts: list[tuple[Tensor, Layout]], num_prefix: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid of the final map; None where ``pooled`` comes out of several maps, or of none."""
    if len(parts) > 1:
        return None
    ((part, layout),) = parts
    return grid_of(part, layout, num_prefix, image_size)


def _layout(features: Tensor, width: int, module: nn.Module) -> Layout:
    if features.ndim == 2:
        return "vector"
    if features.ndim == 3:
        return "NCL" if features.shape[1] == width != features.shape[2] else "NLC"
    if getattr(module, "output_fmt", None) == "NHWC" and features.shape[-1] == width:
        return "NHWC"
    return "NHWC" if features.shape[-1] == width != features.shape[1] else "NCHW"


def _num_prefix(module: Any, tokens: Tensor) -> int:
    """Return how many tokens come before the patches: timm's attribute, else what is beyond a square of patches."""
    length = tokens.shape[1]
    class_token = getattr(module, "cls_token", None)
    if isinstance(class_token, Tensor) and class_token.ndim == 3 and class_token.shape[1] == length:
        return length
    declared = getattr(module, "num_prefix_tokens", None)
    if isinstance(declared, int):
        return declared
    return length - int(length**0.5) ** 2


def _reads_embedding(module: Any, classifiers: tuple[nn.Module, ...], features: Any, embedding: Tensor) -> bool:
    """Whether the head is the mean of the classifiers over ``embedding``, and nothing in between.

    The classifiers' input is compared bit by bit: a batch normalisation in between (SHViT) is all but an identity when
    it is new.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def look(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(given[0])
        outputs.append(output)

    handles = [classifier.register_forward_hook(look) for classifier in classifiers]
    try:
        logits = module.forward_head(features)
    finally:
        for handle in handles:
            handle.remove()
    return (
        len(inputs) == len(classifiers)
        and all(torch.equal(given, embedding) for given in inputs)
        and torch.allclose(_average(tuple(outputs)), logits)
    )


def _average(outputs: Any) -> Tensor:
    """Average a distilled model's heads; a single tensor is returned as it is."""
    if isinstance(outputs, Tensor):
        return outputs
    return outputs[0] if len(outputs) == 1 else sum(outputs) / len(outputs)
