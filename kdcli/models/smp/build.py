"""Networks of segmentation-models-pytorch from what is known of them, and their encoders' published weights."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.facts import DepthFacts, Preprocessing
from kdcli.models import hub
from kdcli.models.bounds import bounded
from kdcli.models.channels import adapt_into, said_adapted
from kdcli.models.packaged.mobilenet import encoder_state, has_encoder
from kdcli.models.packaged.rows import ROWS
from kdcli.models.place import Place
from kdcli.models.saved import preprocessing_of
from kdcli.models.smp.names import architectures, check_arguments, defaults_of, package, timm_name
from kdcli.models.timm.build import weights_overlay
from kdcli.models.vision import CHANNELS

_SIDE = 224
"""Pixels, of an encoder that takes images of any size."""
_LINEAR = 20.0
"""Above it softplus returns its argument."""
_IN_A_PACKAGE = "mobilenet_v2"
"""The encoder whose weights are in a package too: torchvision's."""
_VIT_HINT = (
    "The architecture dpt takes timm's ViTs, whose maps have one size, and nothing else; all others take encoders whose"
    " maps become smaller, such as resnet18, mobilenet_v2, mit_b0, mobilenetv3_small_050 or convnext_atto."
)


@dataclass(frozen=True)
class Settings:
    """All that makes a network.

    Attributes:
        architecture: in small letters.
        encoder: as the library calls it.
        num_outputs: channels of its output.
        arguments: others of its class, that differ from the defaults.
        task: what it is for; empty where that is not known.
        label_names: of its outputs, where they are classes.
        preprocessing: how it was saved to want its images; None for one that was not saved by kdcli.
        channels: of its images.
    """

    architecture: str
    encoder: str
    num_outputs: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    label_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    channels: int = 3

    def images(self, size: Sequence[int] | None) -> Preprocessing:
        """Return how it is to get its images, at ``size`` (height, width) or at its own.

        The whole image is squashed to that size: nothing of it is cut off in evaluation.
        """
        if self.preprocessing is not None:
            own = self.preprocessing
        else:
            cfg = _cfg_of(self.encoder)
            side = tuple(cfg["input_size"][1:]) if cfg.get("fixed_input_size") else (_SIDE, _SIDE)
            mean, std = cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD)
            own = Preprocessing(side, tuple(mean), tuple(std), "bilinear", geometry="squash")
        own = own.of_channels(self.channels)
        return own if size is None else own.at((size[0], size[1]))

    def at(self, size: Sequence[int]) -> Settings:
        """Return those of a network for images of ``size``, where its encoder is made for one size alone."""
        if not _cfg_of(self.encoder).get("fixed_input_size"):
            return self
        return replace(self, arguments={**self.arguments, "img_size": list(size)})


def settings_of(place: Place) -> Settings:
    """Return what is known of a name, with one output, or of a folder; with the arguments of the name.

    Raises:
        UserError: an argument is none of the architecture's, or the folder's config is damaged.
    """
    if place.folder is None:
        architecture, _, encoder = str(place.architecture).partition("/")
        settings = Settings(architecture, encoder, 1)
    else:
        settings = _saved(place.folder)
    check_arguments(place, settings.architecture)
    return replace(settings, arguments={**settings.arguments, **place.arguments})


def make(place: Place, settings: Settings, weights: Mapping[str, Any] | None = None) -> nn.Module:
    """Make the network; untrained but for the encoder where it gets ``weights``.

    Args:
        place: its name, for messages.
        settings: what makes it.
        weights: further arguments that hand timm an encoder's published weights.

    Raises:
        UserError: architecture, encoder and arguments do not go together; it says why.
    """
    pretrained = {} if weights is None else {"encoder_weights": "imagenet", **weights}
    arguments = {"encoder_weights": None, "in_channels": settings.channels, **settings.arguments, **pretrained}
    try:
        with bounded(place.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are deprecated, and of readouts of absent tokens
            module: nn.Module = architectures()[settings.architecture](
                encoder_name=settings.encoder, classes=settings.num_outputs, **arguments
            )
    except UserError:
        raise
    except Exception as error:  # of what does not go together the library raises whatever it trips over
        given = " with these arguments" if place.arguments else ""
        raise UserError(f"{place.name} can't be built{given}: {_reason(error)}", _VIT_HINT) from error
    return module


def with_published_encoder(place: Place, settings: Settings) -> tuple[nn.Module, Preprocessing, str]:
    """Make the network with its encoder's published weights; return how these want their images, and their source.

    Raises:
        UserError: there are none, or they can't be had.
    """
    if settings.channels != 3:
        whole, own, source = with_published_encoder(place, replace(settings, channels=3))
        source += said_adapted(replace(place, channels=settings.channels), 3)
        module = adapt_into(whole, make(place, settings), name=place.name, channels=settings.channels)
        return module, own.of_channels(settings.channels), source
    if (name := timm_name(settings.encoder)) is not None:
        overlay = weights_overlay(Place("timm", f"timm:{name}", architecture=name), _cfg_of(settings.encoder))
        return make(place, settings, {"pretrained_cfg_overlay": overlay}), settings.images(None), f"timm:{name}"
    if settings.encoder == _IN_A_PACKAGE and has_encoder():
        module = make(place, settings)
        module.encoder.load_state_dict(encoder_state())  # type: ignore[union-attr]
        return module, settings.images(None), ROWS[_IN_A_PACKAGE].phrase.removeprefix("pretrained, ")
    published = package().encoders.encoders[settings.encoder]["pretrained_settings"]
    if not published:
        raise UserError(
            f"There are no published weights of the encoder {settings.encoder}.", "Set student.pretrained to false."
        )
    chosen = published.get("imagenet") or next(iter(published.values()))
    repo, what = f"{chosen['repo_id']}@{chosen['revision']}", f"Published weights of the encoder {settings.encoder}"
    try:
        file = hub.first_of(repo, ("model.safetensors",), what=what)
    except UserError as error:
        if settings.encoder != _IN_A_PACKAGE:
            raise
        raise UserError(error.message, f"{error.hint} Or: {ROWS[_IN_A_PACKAGE].install}") from None
    told = json.loads(hub.first_of(repo, ("config.json",), what=what).read_text(encoding="utf-8"))
    module = make(place, settings)
    module.encoder.load_state_dict(load_file(file))  # type: ignore[union-attr]
    scale = float(max(told.get("input_range", [0, 1])))
    mean, std = (tuple(value / scale for value in told[key]) for key in ("mean", "std"))
    channels = told.get("input_space", "RGB")
    return module, replace(settings.images(None), mean=mean, std=std, channels=channels), repo


def config_of(module: Any, settings: Settings) -> dict[str, Any]:
    """Return the ``config.json`` by which the library makes the network anew.

    Keys that begin with an underscore are passed over by it: its class, and what kdcli knows beside.
    """
    own = {key: value for key, value in module.config.items() if not key.startswith("_")}
    own.pop("pretrained_cfg_overlay", None)
    return {"_model_class": type(module).__name__, **own, "encoder_weights": None, "_task": settings.task}


@torch.no_grad()
def start_depth(module: Any, depth: DepthFacts) -> None:
    """Let an untrained head start at :attr:`DepthFacts.start`, and not at the 0.7 m that softplus makes of 0."""
    *_, last = (part for part in module.segmentation_head.modules() if isinstance(part, nn.Conv2d))
    assert last.bias is not None
    last.bias.fill_(math.log(math.expm1(depth.start)) if depth.start < _LINEAR else depth.start)


def classifier_of(module: Any) -> tuple[int, set[str]]:
    """Return the number of outputs and the names of the parameters that make them, of the last convolution."""
    convolutions = [
        (name, part) for name, part in module.segmentation_head.named_modules() if isinstance(part, nn.Conv2d)
    ]
    name, last = convolutions[-1]
    own = {f"segmentation_head.{name}.{parameter}" for parameter, _ in last.named_parameters()}
    return last.out_channels, own


def _saved(folder: Path) -> Settings:
    file = folder / "config.json"
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        architecture, encoder = str(saved["_model_class"]).lower(), str(saved["encoder_name"])
        valid = {*defaults_of(architecture), "img_size"}
        arguments = {key: value for key, value in saved.items() if key in valid}
        names, told = saved.get("_label_names"), saved.get("_preprocessing")
        channels = saved.get("in_channels", 3)
        if channels not in CHANNELS or not isinstance(saved["classes"], int):
            raise ValueError("in_channels is not 1, 3 or 4, or classes is no number")
        preprocessing = None if told is None else preprocessing_of(told)
        label_names = None if names is None else tuple(map(str, names))
    except UserError:
        raise
    except Exception as error:  # whatever rubbish trips over
        raise UserError(f"{file} is damaged: {type(error).__name__}: {error}.", "Check the folder.") from error
    task = str(saved.get("_task", ""))
    return Settings(architecture, encoder, saved["classes"], arguments, task, label_names, preprocessing, channels)


def _cfg_of(encoder: str) -> dict[str, Any]:
    """Return what timm says of an encoder's input; nothing of the library's own, which take images of any size."""
    name = timm_name(encoder)
    found = None if name is None else get_pretrained_cfg(name)
    return {} if found is None else found.to_dict()


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "downsampling pattern" in text:
        return "its encoder's maps don't become smaller from stage to stage, by half each time."
    return text
