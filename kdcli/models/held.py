"""Modules that a program hands over, as a library of models: a library for each, as long as the process runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import Preprocessing
from kdcli.base.tasks import Modality, TaskFacts
from kdcli.config.models import TeacherConfig
from kdcli.models.base import Model, Origin
from kdcli.models.networks import NetworkModel, Networks
from kdcli.models.place import Place
from kdcli.models.reloaded import Reloaded
from kdcli.models.spec import ModelName
from kdcli.models.weights import Checkpoint

_NETWORK = "network"


class HeldModule(nn.Module):
    """A module with the layer whose output are its features; one pass gives both features and logits.

    Args:
        network: takes images (B, 3, H, W) to logits (B, num_classes).
        layer: the name of the submodule whose output, (B, C, h, w) or (B, C), are the features.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self._layer = layer
        self._logits: Any = None

    def features(self, images: Tensor) -> Tensor:
        """Return the features of ``images``; the logits of the same pass wait for :meth:`head`."""
        found: list[Tensor] = []
        hook = self.network.get_submodule(self._layer).register_forward_hook(
            lambda module, inputs, output: found.append(output)
        )
        try:
            self._logits = self.network(images)
        finally:
            hook.remove()
        if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].ndim not in (2, 4):
            raise ValueError(f"the layer {self._layer} is to give one tensor (B, C, h, w) or (B, C) for each pass")
        return found[0]

    def head(self, features: Tensor) -> Tensor:
        """Return the logits of the pass that gave ``features``."""
        logits, self._logits = self._logits, None
        assert isinstance(logits, Tensor), "features are asked for first"
        return logits


class HeldNetwork(Networks):
    """A module, or what makes one, as a library with one network.

    Args:
        make: makes the network for a number of classes.
        layer: see :class:`HeldModule`.
        preprocessing: how it wants its images.
        num_outputs: what it has by itself; None where the data alone tell.
        label_names: of its classes.
    """

    def __init__(
        self,
        make: Callable[[int], nn.Module],
        layer: str,
        preprocessing: Preprocessing,
        num_outputs: int | None,
        label_names: tuple[str, ...] | None,
    ) -> None:
        def factory(num_outputs: int = num_outputs or 0) -> nn.Module:
            return HeldModule(make(num_outputs), layer)

        self._label_names = label_names
        self.networks = {_NETWORK: factory}  # type: ignore[misc]
        self.preprocessing = preprocessing  # type: ignore[misc]

    def called(self, name: str) -> None:
        """Take the name under which it was lent."""
        self.name = self.prefix = name  # type: ignore[misc]

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place:
        """Return the one network, whatever is written after its prefix; the module has its weights in it."""
        return Place(self.name, name.target, architecture=_NETWORK)

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> NetworkModel:
        """Take the module as it is as a teacher of ``task``."""
        if place.folder is not None or checkpoint is not None:
            return super().load(place, name, config, task=task, checkpoint=checkpoint)
        settings = self._settings(place, {}, task=task.name)
        size = config.input_size
        preprocessing = self.preprocessing if size is None else self.preprocessing.at(size)
        names = self._label_names
        origin = Origin(place.name, True, "as the program gave it", names, size)
        return NetworkModel(self._make(place, settings), origin, preprocessing, settings)

    def reload(self, student: Model, folder: Path, *, projector: Any) -> Iterator[Reloaded]:
        """Put the folder's weights into another copy of the module."""
        module = self.networks[_NETWORK](student.facts.num_classes).eval()
        module.load_state_dict(load_file(folder / "model.safetensors"))
        images: Any = student.example(2, seed=2)
        with torch.inference_mode():
            module.features(images)  # type: ignore[operator]
            yield Reloaded(self.name, "logits", module.head(images), student(images).heads["logits"])  # type: ignore[operator]

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that put the weights back into the program's own module."""
        return (
            'from safetensors.torch import load_file\n\nstate = load_file("PATH/model.safetensors")\n'
            'module.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})'
        )


def hold(
    module: nn.Module | Callable[[int], nn.Module],
    *,
    features: str,
    preprocessing: Preprocessing,
    label_names: tuple[str, ...] | None = None,
    what: str = "",
) -> str:
    """Add a module to this process's models, and return the name that a teacher or a student has.

    Args:
        module: takes images (B, 3, H, W) to logits (B, num_classes); or a function that makes one for a number of
            classes. A module is copied: the one that is given stays as it is.
        features: the name of the layer whose output are the features.
        preprocessing: how it wants its images.
        label_names: of the outputs.
        what: a word for it.

    Raises:
        UserError: there is no such layer, or what it gives are no features.
    """
    what = what or (type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", "module"))
    num_outputs = None
    make: Callable[[int], nn.Module]
    if isinstance(module, nn.Module):
        num_outputs = _outputs_of(module, features, preprocessing, what)
        own, count = module, num_outputs
        if label_names is not None and len(label_names) != count:
            raise UserError(f"{what} has {count} outputs, and {len(label_names)} labels.", "Name each output.")

        def make(wanted: int) -> nn.Module:
            if wanted != count:
                raise UserError(
                    f"{what} has {count} outputs, and the data {wanted} classes.",
                    "Give a module with as many, or a function that makes one for a number of classes.",
                )
            return copy.deepcopy(own)
    else:
        make = module
    library = HeldNetwork(make, features, preprocessing, num_outputs, label_names)
    name = extensions.lend("models", library, what=what)
    library.called(name)
    return f"{name}:{what}"


def _outputs_of(module: nn.Module, layer: str, preprocessing: Preprocessing, what: str) -> int:
    """Return how many classes a module has, after one pass of an empty image.

    Raises:
        UserError: the layer is none, or the module does not take images to logits.
    """
    layers: Mapping[str, nn.Module] = dict(module.named_modules())
    if not layer or layer not in layers:
        raise UserError(
            f"{what} has no layer {layer!r}. {did_you_mean(layer, layers)}".rstrip(),
            "Name the one whose output are the features; the outermost are:"
            f" {', '.join(child for child, _ in module.named_children())}.",
        )
    held, was_training = HeldModule(copy.deepcopy(module), layer).eval(), module.training
    try:
        with torch.no_grad():
            held.features(torch.zeros(1, 3, *preprocessing.image_size))
            logits = held.head(torch.zeros(0))
    except Exception as error:  # of the program's own module
        raise UserError(
            f"{what} can't take images of {preprocessing.image_size} pixels: {error}", "Mend it."
        ) from error
    finally:
        module.train(was_training)
    if logits.ndim != 2:
        raise UserError(f"{what} gives {tuple(logits.shape)} for one image, not (1, classes).", "Give a classifier.")
    return int(logits.shape[1])
