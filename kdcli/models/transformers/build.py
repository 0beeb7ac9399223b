"""Build and load transformers' models of images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
)

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr
from kdcli.models.bounds import bounded, check_extent
from kdcli.models.channels import adapt_into, check_pretrained_channels
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.place import Place
from kdcli.models.quantization import settle_layers
from kdcli.models.transformers import processor
from kdcli.models.transformers.quantized import loading_arguments
from kdcli.models.transformers.vision import (
    classifier_of,
    has_classifier,
    head_prefixes,
    is_classifier,
    takes_interpolation,
)
from kdcli.models.values import check_module, check_types, types_in
from kdcli.models.vision import check_image_size
from kdcli.models.weights import Checkpoint, check_folder, few, reason_of

_NOT_OF_THE_NETWORK = {
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "name_or_path", "problem_type"),
    *("id2label", "label2id", "num_labels", "image_size", "num_channels", "return_dict", "chunk_size_feed_forward"),
    *("output_attentions", "output_hidden_states", "use_return_dict", "is_encoder_decoder", "tie_word_embeddings"),
}
"""Keys of a config that come from the data or from an option, or change nothing of what is trained."""


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
    # What would have transformers fetch code when the model is built, here or from the saved student: compiled
    # attention kernels, and the model's own modules.
    config._attn_implementation = None
    vars(config).pop("auto_map", None)
    configure(config, place.arguments, label=place.name)
    return config


def config_values(place: Place) -> dict[str, Any]:
    """Return what can be changed of the config of a model, or of its vision tower."""
    config = read_config(place)
    tower = _tower(config)
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
    tower = _tower(config)
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


def _tower(config: Any) -> Any:
    """Return the vision tower's config where there are two towers, or the config itself: some have none by default."""
    return getattr(config, "vision_config", None) or config


def _changeable(config: Any) -> list[str]:
    """Return the keys of a config that say what the network is like: plain values, or lists of these.

    Not those that stand for another one that is not there (Hiera), or for one that differs by layer (Gemma 4).
    """
    keys = [*config.to_dict(), *config.attribute_map]
    return sorted(
        key for key in keys if not key.startswith("_") and key not in _NOT_OF_THE_NETWORK and _is_plain(config, key)
    )


def _is_plain(config: Any, key: str) -> bool:
    try:
        return not isinstance(getattr(config, key), dict)
    except Exception:  # kinds raise errors of their own
        return False


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


def build_teacher(place: Place, *, pretrained: bool) -> nn.Module:
    """Build the classifier, or the vision backbone, that ``place.folder`` describes.

    Raises:
        UserError: the weights are missing, damaged or incomplete.
    """
    auto, config = _auto_class(read_config(place))
    if pretrained:
        module = load_weights(auto, place, config, may_miss=("pooler",))
        module = for_channels(auto, place, config, module)
    else:
        module = from_config(auto, place, with_channels(config, place))
    _check_reads_images(place, module)
    return module


def with_channels(config: Any, place: Place) -> Any:
    """Return a config for the channels that are wanted; where it has no word for them, as it is."""
    if place.channels in (None, processor.channels_of(config)) or not hasattr(_tower(config), "num_channels"):
        return config
    config = copy.deepcopy(config)
    _tower(config).num_channels = place.channels
    return config


def for_channels(auto: Any, place: Place, config: Any, module: nn.Module) -> nn.Module:
    """Return a model with weights for the channels that are wanted; where its config has no word for them, as it is.

    Raises:
        UserError: they can't be adapted.
    """
    own = processor.channels_of(config)
    check_pretrained_channels(place, own, pretrained=True)
    wanted = with_channels(config, place)
    if wanted is config:
        return module
    if place.quantization is not None:
        raise UserError(
            f"The first layer of {place.name} can't be adapted to {place.channels} channels, as it is quantised.",
            "Leave teacher.quantization out.",
        )
    target = from_config(auto, place, wanted)
    return adapt_into(module, target, name=place.name, channels=processor.channels_of(wanted))


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

    module: Any
    module, report = build_with_weights(build, checkpoint, classifier=classifier_of)
    own: Any = module.config
    auto = AutoModelForImageClassification if has_classifier(own) and is_classifier(module) else AutoModel
    return for_channels(auto, place, own, module), report


def build_student(
    place: Place, names: Sequence[str], *, pretrained: bool, image_size: tuple[int, int] | None
) -> nn.Module:
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
        processor.set_image_size(_tower(config), image_size, label=place.name)
    auto: Any = AutoModelForImageClassification if names else AutoModel
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        config.num_labels = len(names)  # PVT's config has a number of its own beside the names
    else:
        config = _tower(config)
    if pretrained:
        module = load_weights(auto, place, config, may_miss=None if names else ("pooler",))
        module = for_channels(auto, place, config, module)
    else:
        module = from_config(auto, place, with_channels(config, place))
    if not names:
        _check_reads_images(place, module)
    if not pretrained:
        return module
    if image_size and own_size and own_size != image_size and takes_interpolation(module):
        raise UserError(
            f"{place.name} was trained for images of {own_size[0]}x{own_size[1]} pixels, and its position embeddings"
            " are kept at that.",
            "Leave student.image_size out, take the same model from timm, or start untrained"
            f" (not {image_size[0]}x{image_size[1]}).",
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
    return AutoModel, _tower(config)


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
        size = processor.own_image_size(config)
        if size is not None and size[0] != size[1]:
            raise UserError(
                f"{place.name} can't be built for images of {size[0]}x{size[1]} pixels: {reason_of(error)}",
                "Give image_size one side, or choose another model.",
            ) from error
        raise UserError(f"{place.name} can't be built: {reason_of(error)}", "Choose another model.") from error


def _unmask(config: Any) -> None:
    """Let the encoder of a masked autoencoder see the whole image."""
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0


def load_weights(
    auto: Any,
    place: Place,
    config: Any,
    *,
    may_miss: tuple[str, ...] | None,
    heads: tuple[str, ...] = (),
    **arguments: Any,
) -> nn.Module:
    """Load a model with its weights by transformers' class ``auto``.

    Args:
        auto: one of transformers' auto classes.
        place: where the weights lie.
        config: of the model.
        may_miss: how the names of parameters start that may stay untrained; None for the classifier's.
        heads: with ``may_miss`` None, the modules that are the classifiers, wherever they are; by default the model's
            children but the first.
        arguments: of the model's own class.

    Raises:
        UserError: the weights are damaged, or other parameters would stay untrained.
    """
    _unmask(config)
    assert place.folder is not None  # locate found weights there
    packing = {} if place.quantization is None else loading_arguments(place.quantization)
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
                **packing,
                **arguments,
            )
    except UserError:
        raise
    except Exception as error:  # on damaged files transformers raises whatever it trips over
        raise UserError(
            f"The weights of {place.name} can't be loaded: {reason_of(error)}",
            "Check the folder's files, give a checkpoint (--teacher-weights FILE), or take random:NAME untrained.",
        ) from error
    allowed = may_miss if may_miss is not None else heads or head_prefixes(module)
    depth = None if heads else 2

    def needed(name: str) -> bool:
        return not any(part in allowed for part in name.split(".")[:depth])

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
    if packing:
        settle_layers(place.name, module)
    return module
