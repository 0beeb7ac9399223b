"""Another package's networks as a library of models: any modules, with heads of their own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import DataFacts, Preprocessing
from kdcli.base.reads import LOGITS, Reads
from kdcli.base.tasks import Modality, TaskFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model, Origin, Probe
from kdcli.models.bounds import building
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.library import Library
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.outputs import ModelOutput
from kdcli.models.place import Place
from kdcli.models.reloaded import Reloaded, check_labels
from kdcli.models.saved import label_names_of, preprocessing_of, read_network, write_network
from kdcli.models.settle import change_input, wanted_input
from kdcli.models.shelf import Built, Shelf
from kdcli.models.shrink import copy_tensors
from kdcli.models.spec import ModelName
from kdcli.models.taps import Layout, edges_of, grid_of, mean_over_places
from kdcli.models.vision import VisionModel
from kdcli.models.weights import Checkpoint, read_checkpoint

Factory = Callable[..., nn.Module]
"""Makes a network: ``factory(num_outputs, **arguments)``, every argument with a default.

The network has two parts, methods or modules. ``features`` takes images (B, 3, H, W) to features (B, C, h, w) or
(B, C). ``head`` takes those to what the task asks for: logits (B, num_outputs), or (B, num_outputs, H, W) of a task
over pixels; or several heads by name. A student has as many outputs as its data have labels. A teacher without
weights (``random:NAME``) has those that ``num_outputs`` has by default, and there is none where it has no default.
"""


class NetworkModel(VisionModel):
    """A network of another package.

    ``pooled`` is what its ``features`` gives, averaged over positions. There is no ``embedding``: what its head reads
    is the network's own business.

    Args:
        module: the network.
        origin: where it came from.
        preprocessing: how it wants its images.
        settings: what its ``config.json`` says beside labels and preprocessing: ``library``, ``network``,
            ``num_outputs``, ``arguments`` and ``task``.
    """

    def __init__(
        self, module: nn.Module, origin: Origin, preprocessing: Preprocessing, settings: Mapping[str, Any]
    ) -> None:
        self.library = settings["library"]
        self._settings = settings
        super().__init__(module, origin, preprocessing, settings["num_outputs"])

    def _probe(self, inputs: Tensor, num_classes: int) -> Probe:
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = _part(self.module, "features")(inputs)
            self._names = tuple(_heads(self.module, features)) if num_classes else ()
        self.module.train(was_training)
        self._layout: Layout = "vector" if features.ndim == 2 else "NCHW"
        grid = grid_of(features, self._layout, 0, (inputs.shape[2], inputs.shape[3]))
        measured = self._measure(inputs, Reads(heads=self._names) or Reads(("pooled",)))
        return Probe({"pooled": features.shape[1]}, measured, {} if grid is None else {"pooled": grid})

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return self._names

    def _run(self, inputs: Tensor, reads: Reads) -> ModelOutput:
        output = ModelOutput()
        features = _part(self.module, "features")(inputs)
        if "pooled" in reads.taps:
            output.edges["pooled"] = edges_of(features)
        if "pooled" in reads.features:
            output.features["pooled"] = mean_over_places(features, self._layout, 0)
        if "pooled" in reads.maps:
            output.maps["pooled"] = features
        if reads.heads:
            found = _heads(self.module, features)
            output.heads |= {name: found[name] for name in reads.heads}
        return output

    @property
    def _num_prefix_tokens(self) -> int:
        return 0

    def _head_names(self) -> None:
        return None

    def _task(self, num_classes: int) -> str:
        return str(self._settings["task"])

    @property
    def native(self) -> nn.Module:
        """Features and head, one after the other."""
        return _Whole(self.module)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, which names the library and the network."""
        write_network(self, folder, self._settings)


class _Whole(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return _heads(self.module, _part(self.module, "features")(images))[LOGITS]


class Networks(Library):
    """A library of networks that are made by functions; a subclass names itself and them.

    Attributes:
        networks: name -> what makes the network.
        preprocessing: how they want their images.
    """

    networks: ClassVar[Mapping[str, Factory]]
    preprocessing: ClassVar[Preprocessing] = Preprocessing((224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def find(self, name: ModelName, *, weights: bool, modality: Modality) -> Place:
        """Return the network of this name, which has no published weights."""
        network = name.target.removeprefix(f"{self.prefix}:")
        if network not in self.networks:
            valid = [f"{self.prefix}:{other}" for other in self.networks]
            raise UserError(
                f"There is no model {name.text!r}. {did_you_mean(name.target, valid)}".rstrip(),
                f"Valid: {', '.join(valid)}.",
            )
        if weights:
            untrained = "" if _default_outputs(self.networks[network]) is None else " or be untrained (random:NAME)"
            raise UserError(
                f"There are no published weights of {name.target}.",
                f"A teacher can be a run or a saved folder, have a checkpoint (--teacher-weights FILE){untrained}, a"
                " student be untrained (--no-student-pretrained).",
            )
        return Place(self.name, name.target, architecture=network)

    def is_own(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the config names this library."""
        return config.get("library") == self.name

    def load(
        self, place: Place, name: ModelName, config: TeacherConfig, *, task: TaskFacts, checkpoint: Checkpoint | None
    ) -> NetworkModel:
        """Load a network that was saved, or fits a checkpoint; one that is new is for ``task``."""
        saved = self._saved(place)
        wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
        preprocessing = change_input(self._preprocessing(saved), wanted)
        settings = self._settings(place, saved, task=task.name)
        names, phrase = None if name.random else label_names_of(saved), ""
        if name.random:
            if settings["num_outputs"] is None:
                raise UserError(
                    f"{name.text} can't be a teacher: it has as many outputs as a student's data have labels, and no"
                    " number of its own.",
                    "Take a run, a saved folder or a checkpoint (--teacher-weights FILE).",
                )
            module = self._make(place, settings)
        else:
            module, settings, report = self._with_weights(place, settings, checkpoint or self._checkpoint(place))
            if checkpoint is not None:
                count = settings["num_outputs"]
                names = names_of_file(checkpoint.recorded, names, count)
                phrase = phrase_of_file(checkpoint, report, told, name, count)
        origin = teacher_origin(place, name, names, image_size=config.input_size, file_phrase=phrase)
        return NetworkModel(module, origin, preprocessing, settings)

    def build(
        self, place: Place, config: StudentConfig, data: DataFacts, *, teacher: Model | None, like: Model | None
    ) -> NetworkModel:
        """Build a network with an output for each of the data's labels; a head stays only where they are the same."""
        if config.drop_path is not None:
            raise UserError(
                f"student.drop_path is not for models of {self.name}.", "Set it as an argument of the name."
            )
        saved, names = self._saved(place), data.class_names
        preprocessing = self._preprocessing(saved) if like is None else like.preprocessing
        assert isinstance(preprocessing, Preprocessing), "it is a model of images"
        if config.input_size is not None:
            preprocessing = preprocessing.at(config.input_size)
        settings = {**self._settings(place, saved, task=data.task), "task": data.task, "num_outputs": len(names)}
        module = self._make(place, settings)
        model = NetworkModel(module, student_origin(place, config, names), preprocessing, settings)
        source = self.open(place) if config.pretrained else like
        if source is not None:
            same = source.facts.label_names == names
            report = copy_tensors(source.module, module, leave=set() if same else _classifier_of(module)[1])
            if like is not None:
                model.facts = replace(model.facts, weights=report.summary())
        return model

    def open(self, place: Place) -> NetworkModel:
        """Load a folder that :meth:`NetworkModel.save` wrote."""
        saved = self._saved(place)
        module, settings, _ = self._with_weights(place, self._settings(place, saved), self._checkpoint(place))
        origin = saved_origin(place, label_names_of(saved))
        return NetworkModel(module, origin, self._preprocessing(saved), settings)

    def arguments(self, place: Place) -> Mapping[str, Any]:
        """Return the arguments of what makes the network."""
        settings = self._settings(place, self._saved(place))
        return {**_defaults(self._factory(place, settings)), **settings["arguments"]}

    def reload(self, student: Model, folder: Path, *, projector: Any) -> Iterator[Reloaded]:
        """Make the network anew, with the folder's weights and without kdcli's model around it."""
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        module = self.networks[saved["network"]](saved["num_outputs"], **saved["arguments"]).eval()
        module.load_state_dict(load_file(folder / "model.safetensors"))
        if student.facts.label_names is not None:
            check_labels(saved["label_names"], student)
        images: Any = student.example(2, seed=2)
        with torch.inference_mode():
            features = _part(module, "features")(images)
            if not student.facts.heads:
                own = _part(student.module, "features")(images)
                yield Reloaded(self.name, "features", features, own)
                return
            expected = student(images)
            for name, found in _heads(module, features).items():
                yield Reloaded(self.name, name, found, expected.heads[name])

    def snippet(self, folder: Path, task: TaskFacts) -> str:
        """Return the lines that make the network and load its weights."""
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        factory = self.networks[saved["network"]]
        arguments = ", ".join([str(saved["num_outputs"]), *(f"{k}={v!r}" for k, v in saved["arguments"].items())])
        return (
            f"from {factory.__module__} import {factory.__name__}\nfrom safetensors.torch import load_model\n\n"
            f'model = {factory.__name__}({arguments}).eval()\nload_model(model, "PATH/model.safetensors")\n'
            "outputs = model.head(model.features(images))"
        )

    def shelf(self, task: TaskFacts) -> Shelf:
        """Return the networks."""
        return _NetworkShelf(self)

    def _saved(self, place: Place) -> dict[str, Any]:
        """Return the ``config.json`` of a folder; nothing for a network by name.

        Raises:
            UserError: it is damaged, or there is no such network.
        """
        if place.folder is None:
            return {}

        def check(saved: Mapping[str, Any]) -> None:
            if not isinstance(saved["num_outputs"], int) or not isinstance(saved["arguments"], dict):
                raise ValueError("num_outputs is no number, or arguments are none")

        saved = read_network(place.folder, check)
        network = str(saved["network"])
        if network not in self.networks:
            nearest = did_you_mean(network, self.networks)
            raise UserError(
                f"{place.folder / 'config.json'}: {self.name} has no network {network!r}. {nearest}".rstrip(),
                "Upgrade its package.",
            )
        return saved

    def _settings(self, place: Place, saved: Mapping[str, Any], *, task: str = "") -> dict[str, Any]:
        """Return a network's settings, as saved and else its own; with the arguments of the name."""
        network = saved.get("network", place.architecture)
        settings = {
            "library": self.name,
            "network": network,
            "num_outputs": saved.get("num_outputs"),
            "arguments": {**saved.get("arguments", {}), **place.arguments},
            "task": saved.get("task", task),
        }
        valid = _defaults(factory := self.networks[str(network)])
        for key in place.arguments:
            if key not in valid:
                raise UserError(
                    f"{place.name}: there is no argument {key!r}. {did_you_mean(key, valid)}".rstrip(),
                    f"Its arguments: {', '.join(valid)}." if valid else "It has none.",
                )
        if settings["num_outputs"] is None:
            settings["num_outputs"] = _default_outputs(factory)
        return settings

    def _factory(self, place: Place, settings: Mapping[str, Any]) -> Factory:
        return self.networks[str(settings["network"])]

    def _make(self, place: Place, settings: Mapping[str, Any]) -> nn.Module:
        with building(place.name):
            return self._factory(place, settings)(settings["num_outputs"], **settings["arguments"])

    def _with_weights(
        self, place: Place, settings: dict[str, Any], checkpoint: Checkpoint
    ) -> tuple[nn.Module, dict[str, Any], LoadReport]:
        """Make a network with a checkpoint's weights, its head as wide as theirs; return its settings, too."""

        def build(num_outputs: int | None) -> nn.Module:
            if num_outputs is not None:
                settings["num_outputs"] = num_outputs
            elif settings["num_outputs"] is None:
                settings["num_outputs"] = 1  # until it is known how wide the weights' head is
            return self._make(place, settings)

        module, report = build_with_weights(build, checkpoint, classifier=_classifier_of)
        return module, settings, report

    def _checkpoint(self, place: Place) -> Checkpoint:
        assert place.folder is not None, "names have no weights"
        return read_checkpoint(place.folder / "model.safetensors", source=str(place.folder))

    def _preprocessing(self, saved: Mapping[str, Any]) -> Preprocessing:
        return preprocessing_of(saved["preprocessing"]) if saved else self.preprocessing


class _NetworkShelf(Shelf):
    def __init__(self, library: Networks) -> None:
        self._library = library

    def places(self, prefix: str) -> Mapping[str, Place]:
        names = {f"{self._library.prefix}:{network}": network for network in self._library.networks}
        return {name: Place(self._library.name, name, architecture=network) for name, network in names.items()}

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        module = self._library.networks[str(place.architecture)](num_classes).eval()
        height, width = self._library.preprocessing.image_size if size is None else (size, size)
        image = torch.randn(1, 3, height, width)
        return Built(module, lambda: _heads(module, _part(module, "features")(image)), (height, width))


def _part(module: Any, name: str) -> Callable[[Tensor], Any]:
    return getattr(module, name)


def _heads(module: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Return what the network's head gives, by name."""
    found = _part(module, "head")(features)
    return {LOGITS: found} if isinstance(found, Tensor) else dict(found)


def _classifier_of(module: nn.Module) -> tuple[int, set[str]]:
    """Return the number of outputs and the names of the head's parameters; nothing of a head that is no module."""
    head = getattr(module, "head", None)
    parameters = dict(head.named_parameters()) if isinstance(head, nn.Module) else {}
    width = len(list(parameters.values())[-1]) if parameters else 0
    return width, {f"head.{name}" for name in parameters}


def _defaults(factory: Factory) -> dict[str, Any]:
    """Return the arguments of what makes a network, but the number of outputs, with their defaults."""
    _, *parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _default_outputs(factory: Factory) -> int | None:
    """Return how many outputs a network has by default; None where its data alone tell."""
    default = next(iter(inspect.signature(factory).parameters.values())).default
    return None if default is inspect.Parameter.empty else int(default)
