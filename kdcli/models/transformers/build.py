"""transformers' vision models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import Preprocessing
from kdcli.base.text import short_repr
from kdcli.models.base import (
    Layout,
    ModelOutput,
    Origin,
    Probe,
    VisionModel,
    check_image_size,
    edges_of,
    grid_of,
    map_of_places,
    mean_over_places,
)
from kdcli.models.bounds import bounded, check_extent
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.locate import Place
from kdcli.models.spec import Library
from kdcli.models.transformers import processor
from kdcli.models.values import check_module, check_types, types_in
from kdcli.models.weights import Checkpoint, check_folder, few, reason_of

# They would stand between kdcli's own lines; what is wrong with a model is the one message of its error.
disable_progress_bar()
set_verbosity_error()

_NOT_OF_THE_NETWORK = {
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "name_or_path", "problem_type"),
    *("id2label", "label2id", "num_labels", "image_size", "num_channels", "return_dict", "chunk_size_feed_forward"),
    *("output_attentions", "output_hidden_states", "use_return_dict", "is_encoder_decoder", "tie_word_embeddings"),
}
"""Keys of a config that come from the data or from an option, or change nothing of what is trained."""
_MAX_SPECIAL_TOKENS = 16
"""More class and register tokens than any model has: what is beyond the patches and more than this is something else."""


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

    library: ClassVar[Library] = "transformers"

    def __init__(self, module: Any, origin: Origin, preprocessing: Preprocessing) -> None:
        processor.check_writable(origin.name, preprocessing)
        self._patch_size = _input_patch_size(module)
        # A masked autoencoder's encoder sorts the patches by this noise.
        self._sorts_patches = "noise" in signature(module.forward).parameters
        self._arguments = _position_arguments(module, origin.image_size)
        super().__init__(module, origin, preprocessing, module.config.num_labels if is_classifier(module) else 0)

    def _probe(self, image: Tensor, num_classes: int) -> Probe:
        backbone, takes_images, classifiers = _anatomy(self.module, self._native_inputs(image), num_classes)
        self._backbone, self._runs_alone = backbone, takes_images
        self.classifier_names = classifiers
        self._hidden, self._inputs = _Recorder(), [_Recorder() for _ in classifiers]
        if classifiers:
            self.module.get_submodule(backbone).register_forward_hook(self._hidden)
        for name, recorder in zip(classifiers, self._inputs, strict=True):
            self.module.get_submodule(name).register_forward_pre_hook(recorder)
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            hidden = self._backbone_output(image)
            self._num_prefix = _num_prefix(self.module.config, hidden, image)
            self._layout = _layout(self.module.config, hidden)
        grid = grid_of(hidden, self._layout, self._num_prefix, (image.shape[2], image.shape[3]))
        assert grid is not None, "a sequence or a map always has positions"
        self._grid = grid
        self.module.train(was_training)
        taps = ("pooled", "embedding") if num_classes else ("pooled",)
        measured = self._measure(image, taps=taps, logits=bool(num_classes))
        dims = {tap: measured.result.features[tap].shape[1] for tap in taps}
        return Probe(dims, measured, {"pooled": grid})

    @property
    def _num_prefix_tokens(self) -> int:
        return self._num_prefix

    def _head_names(self) -> tuple[str, str] | None:
        return self.classifier_names if len(self.classifier_names) == 2 else None

    def _run(self, images: Tensor, taps: tuple[str, ...], logits: bool, pooled_map: bool = False) -> ModelOutput:
        output = ModelOutput({}, None)
        if "embedding" not in taps and not logits:
            self._add_pooled(output, self._backbone_output(images), taps, pooled_map)
            return output
        result = self._run_recorded(self._native_inputs(images), (self._hidden, *self._inputs))
        hidden, inputs = self._hidden.take(), [recorder.take() for recorder in self._inputs]
        self._add_pooled(output, hidden, taps, pooled_map)
        if "embedding" in taps:
            output.edges["embedding"] = edges_of(*inputs)
            embeddings = [value.flatten(1) for value in inputs]
            output.features["embedding"] = sum(embeddings[1:], embeddings[0]) / len(embeddings)
        if logits:
            output.logits = result.logits
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

    def _run_recorded(self, inputs: dict[str, Any], recorders: tuple[_Recorder, ...]) -> Any:
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

    def _add_pooled(self, output: ModelOutput, hidden: Tensor, taps: tuple[str, ...], pooled_map: bool) -> None:
        output.edges["pooled"] = edges_of(hidden)
        if "pooled" in taps:
            output.features["pooled"] = mean_over_places(hidden, self._layout, self._num_prefix)
        if pooled_map:
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


class _Recorder:
    """A hook that keeps one tensor while it is armed: before a module its input, after it its last hidden state."""

    def __init__(self) -> None:
        self.armed = False
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        if self.armed:
            self.value = inputs[0] if output is None else _last_features(output)

    def take(self) -> Tensor:
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the module that was to be recorded did not run")
        return value


def _last_features(output: Any) -> Tensor:
    """Return a model's last hidden state; of one that transformers has as a backbone alone (HGNet-V2) its last map."""
    maps = getattr(output, "feature_maps", None)
    return maps[-1] if maps else output.last_hidden_state


def read_config(place: Place) -> Any:
    """Return the config in ``place.folder``, or the default of a kind of model, changed as ``place.arguments`` say.

    Raises:
        UserError: transformers doesn't know the model, or knows it only by code in the folder, which is never run; or
            the model is quantised or made for absurdly large images.
    """
    try:
        if place.folder is None:
            config = AutoConfig.for_model(str(place.architecture))
        else:
            config = AutoConfig.from_pretrained(str(place.folder), local_files_only=True, trust_remote_code=False)
        own_size = processor.own_image_size(config)
        config.architectures = [str(name) for name in config.architectures or ()]
    except Exception as error:  # on values of the wrong type transformers raises whatever it trips over
        raise UserError(
            f"{place.name} is no model that transformers can build: {reason_of(error)}",
            "kdcli runs no code from model folders; choose a model that transformers itself has.",
        ) from error
    if getattr(config, "quantization_config", None):
        raise UserError(f"The weights of {place.name} are quantised.", "Choose the same model's float weights.")
    check_image_size(place.name, own_size or ())
    # What would have transformers fetch code when the model is built, here or from the saved student: compiled attention
    # kernels, and the model's own modules.
    config._attn_implementation = None
    vars(config).pop("auto_map", None)
    configure(config, place.arguments, label=place.name)
    return config


def config_values(place: Place) -> dict[str, Any]:
    """Return what can be changed of the config of a model, or of its vision tower."""
    config = read_config(place)
    tower = getattr(config, "vision_config", config)
    return {key: getattr(tower, key) for key in _changeable(tower) if key not in tower.attribute_map}


def configure(config: Any, arguments: Mapping[str, Any], *, label: str) -> None:
    """Change values of a config, of two towers the vision tower's.

    Args:
        config: any config of transformers.
        arguments: key -> value, of the type that the config has there.
        label: what to call the model.

    Raises:
        UserError: there is no such key, with the nearest valid ones, or the value is of another type.
    """
    tower = getattr(config, "vision_config", config)
    for key, value in arguments.items():
        valid = _changeable(tower)
        if key not in valid:
            raise UserError(
                f"{label}: there is no argument {key!r}. {did_you_mean(key, valid)}".rstrip(),
                "Set student.image_size or teacher.image_size."
                if key == "image_size"
                else f"Its config has: {', '.join(valid)}.",
            )
        own = getattr(tower, key)
        if not _is_like(value, own):
            raise UserError(
                f"{label}: {key} is {short_repr(value)}, and the config has {short_repr(own)} there.",
                "Give a value of the same type.",
            )
        try:
            setattr(tower, key, value)
        except Exception as error:  # transformers checks values in its own ways
            raise UserError(
                f"{label}: {key} can't be {short_repr(value)}: {reason_of(error)}", "Give another value."
            ) from error
    if arguments and getattr(tower, "stage_names", None) and not {"out_features", "out_indices"} & set(arguments):
        _renew_stages(tower, label)


def _renew_stages(config: Any, label: str) -> None:
    """Let a config name its stages anew, as many as there are now; transformers does so only when it makes one."""
    derived = ("stage_names", "out_features", "out_indices")
    try:
        new = type(config)(**{key: value for key, value in config.to_dict().items() if key not in derived})
    except Exception as error:  # transformers checks values in its own ways
        raise UserError(f"{label} can't be built: {reason_of(error)}", "Give other values.") from error
    for key in ("stage_names", "_out_features", "_out_indices"):
        setattr(config, key, getattr(new, key))


def _changeable(config: Any) -> list[str]:
    """Return the keys of a config that say what the network is like: plain values, or lists of these."""
    keys = [*config.to_dict(), *config.attribute_map]
    return sorted(
        key
        for key in keys
        if not key.startswith("_") and key not in _NOT_OF_THE_NETWORK and not isinstance(getattr(config, key), dict)
    )


def _is_like(value: Any, own: Any) -> bool:
    if own is None:
        return True
    if isinstance(own, (bool, str)):
        return type(value) is type(own)
    if isinstance(own, int):
        return type(value) is int
    if isinstance(own, float):
        return type(value) in (int, float)
    return isinstance(value, list)


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


def build_teacher(place: Place, *, pretrained: bool) -> nn.Module:
    """Build the classifier, or the vision backbone, that ``place.folder`` describes.

    Raises:
        UserError: the weights are missing, damaged or incomplete.
    """
    config = read_config(place)
    auto, config = _auto_class(config)
    module = load_weights(auto, place, config, may_miss=("pooler",)) if pretrained else from_config(auto, place, config)
    _check_reads_images(place, module)
    return module


def _check_reads_images(place: Place, module: Any) -> None:
    if module.main_input_name != "pixel_values":
        raise UserError(
            f"{place.name} is no model of images: it reads {module.main_input_name}.", "Choose a vision model."
        )


def build_teacher_with_weights(place: Place, checkpoint: Checkpoint) -> tuple[nn.Module, LoadReport]:
    """Build what ``place.folder`` describes with a local checkpoint's weights, its classifier as wide as theirs."""

    def build(num_classes: int | None) -> nn.Module:
        auto, config = _auto_class(read_config(place))
        if num_classes == 0:
            auto = AutoModel
        elif num_classes is not None:
            config.num_labels = num_classes
        return from_config(auto, place, config)

    return build_with_weights(build, checkpoint, classifier=classifier_of)


def build_student(place: Place, names: Sequence[str], *, pretrained: bool, image_size: int | None) -> nn.Module:
    """Build an image classifier over ``names``, or the vision backbone alone where there are none.

    Pretrained weights keep their own input size: transformers resizes position embeddings only on the way, which the
    saved student's other users would not know of.

    Raises:
        UserError: transformers has no classifier of this kind, or the weights or the size can't be had.
    """
    config = read_config(place)
    if names and type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"transformers has no image classifier of the kind {config.model_type!r} ({place.name}).",
            "Choose another student, such as resnet18 or mobilenetv3_small_100.",
        )
    own_size = processor.own_image_size(config)
    if image_size is not None and own_size is not None and not pretrained:
        tower = getattr(config, "vision_config", config)
        tower.image_size = image_size if isinstance(tower.image_size, int) else [image_size, image_size]
    auto: Any = AutoModelForImageClassification if names else AutoModel
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        config.num_labels = len(names)  # PVT's config has a number of its own beside the names
    else:
        config = getattr(config, "vision_config", config)
    if pretrained:
        module = load_weights(auto, place, config, may_miss=None if names else ("pooler",))
    else:
        module = from_config(auto, place, config)
    if not names:
        _check_reads_images(place, module)
    if not pretrained:
        return module
    if image_size and own_size and own_size != (image_size, image_size) and _takes_interpolation(module):
        raise UserError(
            f"{place.name} was trained for images of {own_size[0]} pixels, and its position embeddings are kept at that.",
            f"Leave student.image_size out, take the same model from timm, or start untrained (not {image_size}).",
        )
    return module


def load_saved_module(place: Place) -> nn.Module:
    """Load what :meth:`HFModel.save` wrote."""
    auto, config = _auto_class(read_config(place))
    return load_weights(auto, place, config, may_miss=())


def _auto_class(config: Any) -> tuple[Any, Any]:
    """Return the class to build with and the config it wants: of two towers, the vision tower's."""
    if has_classifier(config):
        return AutoModelForImageClassification, config
    return AutoModel, getattr(config, "vision_config", config)


def from_config(auto: Any, place: Place, config: Any, **arguments: Any) -> nn.Module:
    """Build an untrained model by transformers' class ``auto``.

    Raises:
        UserError: the values of ``config`` don't fit together.
    """
    _unmask(config)
    if place.arguments or place.folder:
        values = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
        check_extent(
            place.name,
            lambda: auto.from_config(config, dtype=torch.float32, **arguments),
            values=(auto.__name__, values, arguments),
        )
    try:
        with bounded(place.name):
            return auto.from_config(config, dtype=torch.float32, trust_remote_code=False, **arguments)
    except UserError:
        raise
    except Exception as error:  # on values that don't fit together transformers raises whatever it trips over
        raise UserError(f"{place.name} can't be built: {reason_of(error)}", "Choose another model.") from error


def _unmask(config: Any) -> None:
    """Let the encoder of a masked autoencoder see the whole image."""
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0


def load_weights(
    auto: Any, place: Place, config: Any, *, may_miss: tuple[str, ...] | None, **arguments: Any
) -> nn.Module:
    """Load a model with its weights by transformers' class ``auto``.

    Args:
        auto: one of transformers' auto classes.
        place: where the weights lie.
        config: of the model.
        may_miss: how the names of parameters start that may stay untrained; None for the classifier's.
        arguments: of the model's own class.

    Raises:
        UserError: the weights are damaged, or other parameters would stay untrained.
    """
    _unmask(config)
    assert place.folder is not None  # locate found weights there
    check_folder(place.folder)
    try:
        with bounded(place.name):
            module, info = auto.from_pretrained(
                place.folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **arguments,
            )
    except UserError:
        raise
    except Exception as error:  # on damaged files transformers raises whatever it trips over
        raise UserError(
            f"The weights of {place.name} can't be loaded: {reason_of(error)}",
            "Check the folder's files, give a checkpoint (--teacher-weights FILE), or take random:NAME untrained.",
        ) from error
    allowed = may_miss if may_miss is not None else _head_prefixes(module)

    def needed(name: str) -> bool:
        return not any(part in allowed for part in name.split(".")[:2])

    missing = sorted(name for name in info["missing_keys"] if needed(name))
    misfits = sorted(entry for entry in info["mismatched_keys"] if may_miss is not None or needed(entry[0]))
    if missing or misfits:
        shapes = tuple(f"{name} {tuple(theirs)} for {tuple(ours)}" for name, theirs, ours in misfits)
        problems = [f"{len(misfits)} are of another shape ({few(shapes)})"] if misfits else []
        problems += [f"{len(missing)} are missing ({few(tuple(missing))})"] if missing else []
        raise UserError(
            f"The weights of {place.name} don't fit its config.json: of {len(module.state_dict())} tensors"
            f" {' and '.join(problems)}.",
            "Choose complete weights, or take random:NAME for the architecture untrained.",
        )
    check_types(place.name, types_in(place.folder), module)
    check_module(place.name, module, lambda: from_config(auto, place, config, **arguments))
    return module


def _head_prefixes(module: nn.Module) -> tuple[str, ...]:
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
    prefixes = tuple(f"{name}." for name in _head_prefixes(module))
    return module.config.num_labels, {n for n, _ in module.named_parameters() if n.startswith(prefixes)}


def _takes_interpolation(module: nn.Module) -> bool:
    """Whether position embeddings can be resized on the way: by the model, or by its backbone, to which it hands on."""
    parts = (module, *module.children())
    return any("interpolate_pos_encoding" in signature(part.forward).parameters for part in parts)


def _position_arguments(module: Any, image_size: int | None) -> dict[str, bool]:
    own_size = processor.own_image_size(module.config)
    resized = image_size is not None and own_size is not None and own_size != (image_size, image_size)
    return {"interpolate_pos_encoding": True} if resized and _takes_interpolation(module) else {}


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
        The backbone's name, whether the images are given to it itself, and the classifiers' names. Where there is no child
        that takes the images, the last one that returns hidden states stands for the backbone (HGNet-V2's encoder).

    Raises:
        UserError: there is no such division.
    """
    if not num_classes:
        return "", True, ()
    backbones: list[str] = []
    encoders: list[str] = []
    classifiers: list[str] = []

    def look(name: str, child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("pixel_values")
        if isinstance(getattr(output, "last_hidden_state", None), Tensor):
            (backbones if given is inputs["pixel_values"] else encoders).append(name)
        elif isinstance(output, Tensor) and output.shape == (1, num_classes) and any(True for _ in child.parameters()):
            classifiers.append(name)

    handles = [
        child.register_forward_hook(partial(look, name), with_kwargs=True) for name, child in module.named_children()
    ]
    was_training = module.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module.eval()(**inputs)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    if not (backbones or encoders) or not classifiers:
        raise UserError(
            f"{type(module).__name__} has no backbone and classifier that kdcli can tell apart.",
            "Choose another model; timm may have the same one.",
        )
    return (backbones or encoders[-1:])[0], bool(backbones), tuple(classifiers)


def _num_prefix(config: Any, hidden: Tensor, image: Tensor) -> int:
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


def _layout(config: Any, hidden: Tensor) -> Layout:
    if hidden.ndim == 3:
        return "NLC"
    return "NHWC" if hidden.shape[-1] == getattr(config, "hidden_size", None) != hidden.shape[1] else "NCHW"
