"""A model of images of transformers with the interface that all have."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.base.facts import LabelKind, Preprocessing
from kdcli.base.reads import LOGITS, Reads
from kdcli.models.base import Origin, Probe
from kdcli.models.outputs import ModelOutput
from kdcli.models.taps import Layout, edges_of, grid_of, map_of_places, mean_over_places
from kdcli.models.transformers import processor
from kdcli.models.transformers.recompute import recompute
from kdcli.models.vision import VisionModel

_MAX_SPECIAL_TOKENS = 16
"""More class and register tokens than any model has: more than this beyond the patches is something else."""


_SEVERAL = "multi_label_classification"


class HFModel(VisionModel):
    """A model of transformers: an image classifier, or a vision backbone alone.

    transformers has no public split into features and head, so what ``module`` computes on its way is picked up by
    hooks: the backbone's ``last_hidden_state`` and the classifier's input. A hook is an object that the modules and
    this one share, idle outside ``forward``: ``deepcopy`` copies it with them, ``torch.compile`` traces through it, and
    nothing of it is in the state dict. Features alone run the backbone alone.

    ``pooled`` averages ``last_hidden_state`` as the model returns it (CLIP's comes before its last norm).

    Attributes:
        classifier_names: of the classifiers among the module's children; several with a distillation head.
    """

    library = "transformers"

    def __init__(self, module: Any, origin: Origin, preprocessing: Preprocessing) -> None:
        processor.check_writable(origin.name, preprocessing)
        self._patch_size = _input_patch_size(module)
        height, width = preprocessing.image_size
        if self._patch_size is not None and height != width:
            raise UserError(
                f"{origin.name} takes images as a number of patches, which tells no {height}x{width} pixels.",
                "Give image_size one side, or choose another model.",
            )
        # A masked autoencoder's encoder sorts the patches by this noise.
        self._sorts_patches = "noise" in signature(module.forward).parameters
        self._arguments = _position_arguments(module, origin.image_size)
        super().__init__(module, origin, preprocessing, self._count(module))

    def _count(self, module: Any) -> int:
        """Return how many classes it tells apart."""
        return module.config.num_labels if is_classifier(module) else 0

    def _probe(self, image: Tensor, num_classes: int) -> Probe:
        backbone, takes_images, classifiers = _anatomy(self.module, self._native_inputs(image), num_classes)
        self._backbone, self._runs_alone = backbone, takes_images
        self.classifier_names = classifiers
        self._hidden, self._inputs = Recorder(), [Recorder() for _ in classifiers]
        if classifiers:
            self.module.get_submodule(backbone).register_forward_hook(self._hidden)
        for name, recorder in zip(classifiers, self._inputs, strict=True):
            self.module.get_submodule(name).register_forward_pre_hook(recorder)
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            hidden = self._backbone_output(image)
            self._num_prefix = num_prefix(self.module.config, hidden, image)
            self._layout = layout_of(self.module.config, hidden)
        grid = grid_of(hidden, self._layout, self._num_prefix, (image.shape[2], image.shape[3]))
        assert grid is not None, "a sequence or a map always has positions"
        self._grid = grid
        self.module.train(was_training)
        taps = ("pooled", "embedding") if num_classes else ("pooled",)
        measured = self._measure(image, Reads(taps, heads=(LOGITS,) if num_classes else ()))
        dims = {tap: measured.result.features[tap].shape[1] for tap in taps}
        return Probe(dims, measured, {"pooled": grid})

    @property
    def label_kind(self) -> LabelKind:
        """As the config says."""
        return "classes" if getattr(self.module.config, "problem_type", None) == _SEVERAL else "class"

    def take_several_labels(self) -> None:
        """Write it into the config, in transformers' words."""
        config: Any = self.module.config
        config.problem_type = _SEVERAL

    def _recompute(self) -> None:
        recompute(self.module, self.facts.name)

    @property
    def _num_prefix_tokens(self) -> int:
        return self._num_prefix

    def _head_names(self) -> tuple[str, str] | None:
        return self.classifier_names if len(self.classifier_names) == 2 else None

    def _run(self, images: Tensor, reads: Reads) -> ModelOutput:
        output = ModelOutput()
        if "embedding" not in reads.features and not reads.heads:
            self._add_pooled(output, self._backbone_output(images), reads)
            return output
        result = self._run_recorded(self._native_inputs(images), (self._hidden, *self._inputs))
        hidden, inputs = self._hidden.take(), [recorder.take() for recorder in self._inputs]
        self._add_pooled(output, hidden, reads)
        if "embedding" in reads.features:
            output.edges["embedding"] = edges_of(*inputs)
            embeddings = [value.flatten(1) for value in inputs]
            output.features["embedding"] = sum(embeddings[1:], embeddings[0]) / len(embeddings)
        if reads.heads:
            output.heads[LOGITS] = result.logits
        return output

    @property
    def backbone(self) -> nn.Module:
        """The part without a classifier."""
        return self.module.get_submodule(self._backbone)

    def _backbone_output(self, images: Tensor) -> Tensor:
        inputs = self._native_inputs(images)
        if self._runs_alone:
            return _last_features(self.backbone(inputs.pop("pixel_values"), **inputs))
        self._run_recorded(inputs, (self._hidden,))
        return self._hidden.take()

    def _run_recorded(self, inputs: dict[str, Any], recorders: tuple[Recorder, ...]) -> Any:
        for recorder in recorders:
            recorder.armed = True
        try:
            return self.module(**inputs)
        finally:
            for recorder in recorders:
                recorder.armed = False

    def _native_inputs(self, images: Tensor) -> dict[str, Any]:
        """Return what ``module`` takes for images (B, 3, H, W): those, or what they are cut into."""
        if self._sorts_patches:
            module: Any = self.module
            side = module.config.patch_size
            count = (images.shape[2] // side) * (images.shape[3] // side)
            in_order = torch.arange(count, dtype=torch.float32, device=images.device).expand(len(images), count)
            return {"pixel_values": images, "noise": in_order, **self._arguments}
        if self._patch_size is None:
            return {"pixel_values": images, **self._arguments}
        return _patches(images, self._patch_size) | self._arguments

    def _add_pooled(self, output: ModelOutput, hidden: Tensor, reads: Reads) -> None:
        output.edges["pooled"] = edges_of(hidden)
        if "pooled" in reads.features:
            output.features["pooled"] = mean_over_places(hidden, self._layout, self._num_prefix)
        if "pooled" in reads.maps:
            output.maps["pooled"] = map_of_places(hidden, self._layout, self._num_prefix, self._grid)

    def reset_classifier(self) -> None:
        """Initialise the classifiers anew, as an untrained model of this kind has them, from torch's generator."""
        auto = AutoModelForImageClassification
        fresh = auto.from_config(self.module.config, dtype=torch.float32, trust_remote_code=False)
        for name in self.classifier_names:
            self.module.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())

    def save(self, folder: Path) -> None:
        """Write what ``from_pretrained`` and ``pipeline("image-classification", FOLDER)`` read."""
        folder.mkdir(parents=True, exist_ok=True)
        # Copies: channels-last memory is not for safetensors.
        state = {name: t.detach().cpu().contiguous() for name, t in self.module.state_dict().items()}
        self.module.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
        processor.write(self.preprocessing, folder, patch_size=self._patch_size)


class Recorder:
    """A hook that keeps one tensor while it is armed: before a module its input, after it its last hidden state."""

    def __init__(self) -> None:
        self.armed = False
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        """Keep the tensor, once it is armed."""
        if self.armed:
            self.value = inputs[0] if output is None else _last_features(output)

    def take(self) -> Tensor:
        """Return the tensor, and forget it."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the module that was to be recorded did not run")
        return value


def _last_features(output: Any) -> Tensor:
    """Return a model's last hidden state; of one that transformers has as a backbone alone (HGNet-V2) its last map.

    Of one that looks at an image in several parts (Depth Pro) it is the map of the whole image.
    """
    maps = getattr(output, "feature_maps", None)
    if not maps and isinstance(getattr(output, "features", None), list):
        return output.features[0]
    return maps[-1] if maps else output.last_hidden_state


def has_classifier(config: Any) -> bool:
    """Whether the config describes an image classifier: by its architecture, else by label names of its own."""
    if config.architectures:
        return bool(_classifier_classes() & set(config.architectures))
    return type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and label_names(config) is not None


def is_classifier(module: nn.Module) -> bool:
    """Whether ``module`` is one of transformers' image classifiers."""
    return type(module).__name__ in _classifier_classes()


def label_names(config: Any) -> tuple[str, ...] | None:
    """Return the config's class names; None where they are transformers' LABEL_0, LABEL_1, ..."""
    found = config.id2label or {}  # PVT's is None where it was never set
    names = tuple(str(found.get(index)) for index in range(config.num_labels))
    return None if all(name in {f"LABEL_{i}", "None"} for i, name in enumerate(names)) else names


def head_prefixes(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's children that hold parameters and are not its backbone, which comes first."""
    children = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    return (*children[1:], "pooler")


def _classifier_classes() -> set[str]:
    names: set[str] = set()
    for value in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values():
        names.update((value,) if isinstance(value, str) else value)
    return names


def classifier_of(module: Any) -> tuple[int, set[str]]:
    """Return a model's number of classes and the names of its classifier's parameters."""
    if not is_classifier(module):
        return 0, set()
    prefixes = tuple(f"{name}." for name in head_prefixes(module))
    return module.config.num_labels, {n for n, _ in module.named_parameters() if n.startswith(prefixes)}


def takes_interpolation(module: nn.Module) -> bool:
    """Whether position embeddings can be resized on the way: by the model, or by its backbone, to which it hands on."""
    parts = (module, *module.children())
    return any("interpolate_pos_encoding" in signature(part.forward).parameters for part in parts)


def _position_arguments(module: Any, image_size: tuple[int, int] | None) -> dict[str, bool]:
    own_size = processor.own_image_size(module.config)
    resized = image_size is not None and own_size is not None and own_size != image_size
    return {"interpolate_pos_encoding": True} if resized and takes_interpolation(module) else {}


def _input_patch_size(module: Any) -> int | None:
    """Return the side of the patches that a model takes in place of an image (SigLIP2's); None for an image."""
    if "spatial_shapes" not in signature(module.forward).parameters:
        return None
    return getattr(module.config, "vision_config", module.config).patch_size


def _patches(images: Tensor, side: int) -> dict[str, Tensor]:
    """Cut images (B, 3, H, W) into patches, as SigLIP2's image processor does.

    Returns:
        ``pixel_values`` (B, N, side * side * 3), ``pixel_attention_mask`` of ones (B, N) and ``spatial_shapes`` (B, 2).
    """
    count, channels, height, width = images.shape
    rows, columns = height // side, width // side
    blocks = images[:, :, : rows * side, : columns * side].reshape(count, channels, rows, side, columns, side)
    patches = blocks.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64, device=images.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * count, device=images.device),
    }


def _anatomy(module: nn.Module, inputs: dict[str, Any], num_classes: int) -> tuple[str, bool, tuple[str, ...]]:
    """Find the child that is the backbone and those that are classifiers, by what they return for ``inputs``.

    Returns:
        The backbone's name, whether the images are given to it itself, and the classifiers' names. Where there is no
        child that takes the images, the last one that returns hidden states stands for the backbone (HGNet-V2's
        encoder).

    Raises:
        UserError: there is no such division.
    """
    if not num_classes:
        return "", True, ()
    backbones: list[str] = []
    encoders: list[str] = []
    classifiers: list[str] = []

    def look(name: str, child: nn.Module, given: Any, output: Any) -> None:
        if isinstance(getattr(output, "last_hidden_state", None), Tensor):
            (backbones if given is inputs["pixel_values"] else encoders).append(name)
        elif isinstance(output, Tensor) and output.shape == (1, num_classes) and any(True for _ in child.parameters()):
            classifiers.append(name)

    watch_children(module, inputs, look)
    if not (backbones or encoders) or not classifiers:
        raise UserError(
            f"{type(module).__name__} has no backbone and classifier that kdcli can tell apart.",
            "Choose another model; timm may have the same one.",
        )
    return (backbones or encoders[-1:])[0], bool(backbones), tuple(classifiers)


def watch_children(module: nn.Module, inputs: dict[str, Any], look: Callable[[str, nn.Module, Any, Any], None]) -> None:
    """Run ``module`` once in evaluation, and tell ``look`` of every child its name, itself, its input and its output.

    Args:
        module: whose mode is the same afterwards.
        inputs: of it, ``pixel_values`` among them.
        look: its third argument is the child's first one, or its ``pixel_values``.
    """

    def hook(name: str, child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        look(name, child, args[0] if args else kwargs.get("pixel_values"), output)

    handles = [
        child.register_forward_hook(partial(hook, name), with_kwargs=True) for name, child in module.named_children()
    ]
    was_training = module.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module.eval()(**inputs)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()


def num_prefix(config: Any, hidden: Tensor, image: Tensor) -> int:
    """Return how many tokens of a sequence (1, N, d) come before the patches.

    The patches are a grid of the image at the config's patch size, or at that times a power of two where stages merge
    patches (Swin has no other tokens, PVT a class token in its last stage): the finest grid that the sequence holds.
    """
    if hidden.ndim != 3:
        return 0
    height, width = image.shape[2:]
    length = hidden.shape[1]
    patch = getattr(config, "patch_size", None) or getattr(config, "patch_stride", None) or 4
    rows, columns = (patch, patch) if isinstance(patch, int) else (patch[0], patch[1])
    while rows <= height and columns <= width:
        rest = length - (height // rows) * (width // columns)
        if 0 <= rest <= _MAX_SPECIAL_TOKENS:
            return rest
        rows, columns = rows * 2, columns * 2
    side = math.isqrt(length)
    return length - side * side


def layout_of(config: Any, hidden: Tensor) -> Layout:
    """Return how a last hidden state (1, N, d) or (1, C, H, W) is laid out."""
    if hidden.ndim == 3:
        return "NLC"
    return "NHWC" if hidden.shape[-1] == getattr(config, "hidden_size", None) != hidden.shape[1] else "NCHW"
