"""Build and load timm's models."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, list_pretrained
from timm.models._hub import download_cached_file, load_model_config_from_path
from torch import nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr
from kdcli.models import hub
from kdcli.models.bounds import bounded, check_extent
from kdcli.models.channels import adapt_into, check_pretrained_channels, said_adapted
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.packaged.classifiers import packaged_input, timm_state
from kdcli.models.place import Place
from kdcli.models.timm.channels import channels_in, check_adaptable, set_channels
from kdcli.models.timm.constructor import check_arguments, read_constructor
from kdcli.models.timm.registry import extension_of_architecture, load_architectures
from kdcli.models.values import check_module, check_types, types_in, types_of
from kdcli.models.vision import check_image_size
from kdcli.models.weights import Checkpoint, Tensors, check_folder, load_raw, reason_of


def load(
    place: Place,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    drop_path: float | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a model of timm.

    Args:
        place: a registry name or a folder.
        pretrained: with its weights; never silently without.
        num_classes: of a new classifier; None keeps the model's own.
        image_size: (height, width) in pixels of the input that the model is built for; None for its own.
        drop_path: rate of stochastic depth in training; None for the architecture's own.

    Returns:
        The model and the arguments beyond the class count that rebuild it.

    Raises:
        UserError: the weights or the size can't be had, or the architecture has no stochastic depth.
    """
    name = _model_name(place)
    cfg = _cfg(place)
    if place.arguments:
        check_arguments(place.name, name, place.arguments)
    arguments: dict[str, Any] = {}
    own, *native = cfg.get("input_size", (3, 224, 224))
    channels = place.channels or own
    check_pretrained_channels(place, own, pretrained=pretrained)
    of_channels = {} if channels == own else {"in_chans": channels}
    sides = list(image_size or ())
    if pretrained and place.folder:
        check_folder(place.folder)
    if sides and cfg.get("fixed_input_size") and sides != native:
        arguments["img_size"] = tuple(sides)
    overlay = None if place.packaged is None else packaged_input(place.packaged)
    if pretrained and not place.folder:
        overlay = (overlay or {}) | weights_overlay(place, cfg)
    stochastic: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
    changed = {**place.arguments, **arguments, **stochastic, **of_channels}
    if changed or place.folder:
        check_extent(
            place.name,
            lambda: timm.create_model(name, num_classes=num_classes, **changed),
            values=(_folder_config(place.folder) if place.folder else name, num_classes, changed),
        )
    try:
        with bounded(place.name):
            module: Any = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, pretrained_cfg_overlay=overlay, **changed
            )
    except UserError:
        raise
    # A folder's config and weights can be anything: on values that don't fit timm and torch raise what they trip over.
    except Exception as error:
        refusal = _refusal(
            error, place, image_size=image_size if arguments else None, native=native, drop_path=drop_path
        )
        if refusal is None:
            raise
        raise refusal from error
    if num_classes and module.num_classes != num_classes:
        raise UserError(
            f"timm has no classifier of {place.name}.", "It can be a teacher, or a student of --task image-embedding."
        )
    for config in (module.pretrained_cfg, module.default_cfg):
        config.pop("state_dict", None)
    set_channels(module, channels)
    if pretrained and channels != own:
        check_adaptable(place.name, module, channels)
    if pretrained:
        types = types_in(place.folder) if place.folder else types_of((overlay or {}).get("state_dict", {}))
        check_types(place.name, types, module)
        further = arguments | of_channels
        check_module(place.name, module, lambda: timm.create_model(name, num_classes=num_classes, **further))
    return module, _saved_model_args(place) | dict(place.arguments) | arguments


def _refusal(
    error: Exception,
    place: Place,
    *,
    image_size: tuple[int, int] | None,
    native: Sequence[int],
    drop_path: float | None,
) -> UserError | None:
    """Return what to tell the user of an error that timm or torch raised; None where nothing of the user's caused it.

    Args:
        error: what they raised.
        place: of the model.
        image_size: where the model was built for another one than its own.
        native: (height, width) of its own images.
        drop_path: the rate that was asked for.
    """
    if drop_path is not None and "drop_path_rate" in str(error):
        return UserError(f"{place.name} has no stochastic depth: {error}", "Leave student.drop_path out.")
    if image_size is not None and isinstance(error, (RuntimeError, AssertionError, TypeError, ValueError)):
        return UserError(
            f"{place.name} can't be built for images of {image_size[0]}x{image_size[1]} pixels: {error}",
            f"It takes {native[0]}x{native[1]} pixels: leave image_size out, or choose another model.",
        )
    if place.arguments and (fixed := re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))):
        return UserError(
            f"{place.name}: timm fixes {fixed[1]} for this architecture.",
            "Leave it out, choose another architecture of the family, or set what it leaves open.",
        )
    if place.arguments:
        return UserError(
            f"timm can't build {place.name}: {reason_of(error)}", "Give other values, or leave arguments out."
        )
    if place.folder:
        return UserError(f"{place.folder} can't be loaded by timm: {reason_of(error)}", "Check the folder's files.")
    return None


def constructor_values(place: Place) -> Mapping[str, Any]:
    """Return what the architecture's class is called with, defaults filled in."""
    return read_constructor(_model_name(place), place.arguments).values


def _model_name(place: Place) -> str:
    return f"local-dir:{place.folder}" if place.folder else str(place.architecture)


def load_with_weights(
    place: Place, checkpoint: Checkpoint, *, image_size: tuple[int, int] | None
) -> tuple[nn.Module, dict[str, Any], LoadReport, str]:
    """Create a model and load a local checkpoint into it; its classifier is as wide as the file's.

    Returns:
        The model, the arguments that rebuild it, the report, and a phrase on what was adapted.
    """
    arguments: dict[str, Any] = {}

    wanted = place.channels

    def build(num_classes: int | None) -> nn.Module:
        module, built_with = load(place, pretrained=False, num_classes=num_classes, image_size=image_size)
        arguments.update(built_with)
        return module

    with torch.device("meta"):
        outline: Any = build(None)
    place = replace(place, channels=channels_in(checkpoint, outline))

    def remap(state: Tensors, module: nn.Module) -> Tensors | None:
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        return convert(state, module) if convert else None

    module, report = build_with_weights(build, checkpoint, classifier=classifier_of, remap=remap)
    found, said = place.channels, ""
    if wanted is not None and wanted != found:
        check_pretrained_channels(replace(place, name=checkpoint.source, channels=wanted), found, pretrained=True)
        place = replace(place, channels=wanted)
        target = build(classifier_of(module)[0])
        module, said = adapt_into(module, target, name=place.name, channels=wanted), said_adapted(place, found)
    return module, arguments, report, said


def own_num_classes(place: Place) -> int | None:
    """Return how many classes the pretrained weights are for."""
    return _cfg(place).get("num_classes")


def own_channels(place: Place) -> int:
    """Return how many channels the images of the weights have, or of the architecture without any."""
    return int(_cfg(place).get("input_size", (3,))[0])


def set_labels(module: Any, names: Sequence[str]) -> None:
    """Write the class names, if any, into the config, and take out what described other classes or other weights."""
    stale = {"label_descriptions", "label_names", "tag"}
    cfg = {key: value for key, value in module.pretrained_cfg.items() if key not in stale}
    cfg |= {"num_classes": len(names), **({"label_names": list(names)} if names else {})}
    module.pretrained_cfg = module.default_cfg = cfg


def _cfg(place: Place) -> dict[str, Any]:
    if place.folder:
        return _folder_config(place.folder)[0]
    found = get_pretrained_cfg(str(place.architecture))
    return found.to_dict() if found else {}


def _saved_model_args(place: Place) -> dict[str, Any]:
    if not place.folder:
        return {}
    args = _folder_config(place.folder)[1]
    for derived in ("num_classes", "global_pool", "in_chans"):  # timm records these from the model itself
        args.pop(derived, None)
    return args


def _folder_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pretrained config and the model's arguments out of a folder's ``config.json``.

    Raises:
        UserError: it is damaged, or timm has no such architecture.
    """
    hint = "Check the folder's config.json."
    try:
        cfg, architecture, args = load_model_config_from_path(folder)
        _, height, width = cfg.get("input_size", (3, 224, 224))
        args = dict(args or {})
    except Exception as error:  # on values of the wrong type timm raises whatever it trips over
        raise UserError(f"{folder / 'config.json'} is damaged: {type(error).__name__}: {error}.", hint) from error
    if isinstance(architecture, str) and (entry := extension_of_architecture(architecture)) is not None:
        load_architectures(entry)
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        nearest = did_you_mean(str(architecture), timm.list_models())
        raise UserError(
            f"{folder}: timm {timm.__version__} has no architecture {short_repr(architecture)}. {nearest}".rstrip(),
            f"Upgrade timm, install the package that adds it, or: {hint}",
        )
    if "features_only" in args:
        raise UserError(f"{folder} holds a feature extractor, not a whole model.", hint)
    size = args.get("img_size") or ()
    check_image_size(str(folder), [height, width, *(size if isinstance(size, (list, tuple)) else [size])])
    return cfg, args


def weights_overlay(place: Place, cfg: dict[str, Any]) -> dict[str, Any]:
    """Return what hands timm a registered model's weights.

    They are fetched here, before the model is built: a model without weights, or without a network, is an error at
    once, and timm's own fallback to random weights is never reached.
    """
    if place.packaged is not None:
        return {"state_dict": timm_state(place.packaged), "custom_load": False}
    repo, filename = cfg.get("hf_hub_id"), cfg.get("hf_hub_filename")
    if repo:
        names = (filename,) if filename else ("model.safetensors", "pytorch_model.bin")
        if filename and filename.endswith(".bin"):
            names = (filename.replace("pytorch_model.bin", "model.safetensors"), filename)
        path = hub.first_of(repo, names, what=f"Pretrained weights of {place.name} ({repo})")
        if path.suffix in {".npz", ".npy"}:
            return {"file": str(path), "custom_load": True}
        return {"state_dict": dict(load_raw(path)), "custom_load": False}
    if file := cfg.get("file"):
        return {"state_dict": dict(load_raw(Path(file))), "custom_load": False}
    if url := cfg.get("url"):
        try:
            path = Path(download_cached_file(url, check_hash=False))
        except OSError as error:  # urllib's errors among them
            raise UserError(f"The weights of {place.name} can't be downloaded: {error}", hub.OFFLINE_HINT) from error
        return {"state_dict": dict(load_raw(path)), "custom_load": False}
    if place.name.startswith("cifar:"):
        raise UserError(
            f"There are no published weights of {place.name}.",
            f"Train it first (kdcli distill --teacher none --student {place.name} --data ... --output runs/NAME) and"
            " name runs/NAME. A teacher can also have a checkpoint (--teacher-weights FILE) or be untrained"
            " (random:NAME), a student be untrained (--no-student-pretrained).",
        )
    with_weights = list_pretrained(f"{(place.architecture or '').partition('.')[0]}.*")
    tagged = f"With weights: {', '.join(with_weights)}. " if with_weights else ""
    raise UserError(
        f"timm has no pretrained weights of {place.name}.",
        f"{tagged}Give a checkpoint (--teacher-weights FILE), or take random:NAME for the architecture untrained.",
    )


def classifier_of(module: Any) -> tuple[int, set[str]]:
    """Return a model's number of classes and the names of its classifier's parameters."""
    found = module.get_classifier()
    classifiers = found if isinstance(found, (tuple, list, nn.ModuleList)) else (found,)
    own = {id(parameter) for classifier in classifiers for parameter in classifier.parameters()}
    return module.num_classes, {name for name, p in module.named_parameters() if id(p) in own}
