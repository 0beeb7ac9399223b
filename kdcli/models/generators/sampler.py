"""Generators that make images out of random numbers: with the interface that all models have, and their folders."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import DataFacts, Preprocessing
from kdcli.base.reads import IMAGE, Reads
from kdcli.base.tasks import TASKS
from kdcli.config.models import StudentConfig
from kdcli.data import AnyBatch
from kdcli.machine.seeding import draw
from kdcli.models.base import Inputs, Model, Origin, Probe
from kdcli.models.bounds import bounded
from kdcli.models.fit import build_with_weights
from kdcli.models.generators import biggan
from kdcli.models.generators.biggan import SAMPLERS, SIDES
from kdcli.models.generators.model import CODE
from kdcli.models.origin import saved_origin, student_origin
from kdcli.models.outputs import ModelOutput
from kdcli.models.place import Place
from kdcli.models.reloaded import Reloaded, check_labels
from kdcli.models.saved import label_names_of, preprocessing_of, read_network, write_network
from kdcli.models.shrink import copy_tensors
from kdcli.models.taps import LayerTap, describe_layer, edges_of, mean_over_places
from kdcli.models.vision import VisionModel
from kdcli.models.weights import read_checkpoint

_CONDITIONAL = "conditional"
"""The argument that says whether classes are read; by default where the data have any."""

_SNIPPET = """import sys

import torch
from torchvision.transforms.v2 import functional

sys.path.insert(0, "PATH")
from generator import load

model = load("PATH")  # needs torch and safetensors alone
z = torch.randn(NUMBER, model.dim_z)
with torch.inference_mode():
    images = model(CALL)  # (NUMBER, 3, SIDE, SIDE), from -1 to 1
functional.to_pil_image(((images[0] + 1) / 2).clamp(0, 1)).save("made.png")"""


class SamplerModel(VisionModel):
    """A network that makes an image out of random numbers, and a class where it knows any.

    It reads no images: what it makes of a sample is a function of the sample's id and view, of its class, and of a seed
    of its own. ``pooled`` is its last block's maps; the head ``image`` is (B, 3, H, W), from -1 to 1.

    Args:
        module: out of :mod:`kdcli.models.generators.biggan`.
        origin: where it came from.
        preprocessing: of real images as large as those that it makes.
        settings: of its ``config.json``: network, arguments, number of classes and seed.
    """

    module: Any

    def __init__(
        self, module: nn.Module, origin: Origin, preprocessing: Preprocessing, settings: Mapping[str, Any]
    ) -> None:
        self.library, self.settings = str(settings["library"]), settings
        super().__init__(module, origin, preprocessing, int(settings["num_classes"]))

    @property
    def seed(self) -> int:
        """Of its random numbers."""
        return int(self.settings["seed"])

    def prepare(self, batch: AnyBatch) -> Inputs:
        """Return ``z`` (B, dim_z) and ``classes`` (B,) where it has any, of the batch's samples, on their device."""
        found = {"z": draw(batch.samples, batch.view, self.module.dim_z, "z", self.seed)}
        return found | ({"classes": batch.targets} if self.module.num_classes else {})

    def sample(self, numbers: Tensor, *, seed: int, bound: float | None, classes: Tensor | None) -> Tensor:
        """Return images (B, 3, H, W), from -1 to 1.

        Args:
            numbers: int64 (B,), of the images: each is a function of its number, ``seed`` and its class.
            seed: of the random numbers.
            bound: numbers beyond it are drawn again.
            classes: int64 (B,), of a generator that knows any.
        """
        z = draw(numbers, torch.zeros_like(numbers), self.module.dim_z, "sample", seed, bound=bound)
        inputs = {"z": z} | ({} if classes is None else {"classes": classes})
        image: Tensor = self(inputs).heads[IMAGE]
        return image

    def example(self, batch_size: int = 1, *, seed: int = 0) -> Any:
        """Return made-up inputs, with the classes in turn."""
        generator = torch.Generator().manual_seed(seed)
        found = {"z": torch.randn(batch_size, self.module.dim_z, generator=generator)}
        number = self.module.num_classes
        return found | ({"classes": torch.arange(batch_size) % number} if number else {})

    def _probe(self, inputs: Any, num_classes: int) -> Probe:
        measured = self._measure(inputs, Reads(maps=("pooled",), heads=(IMAGE,)))
        _, width, rows, columns = measured.result.maps["pooled"].shape
        return Probe({"pooled": width}, measured, {"pooled": (rows, columns)})

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return (IMAGE,)

    def _run(self, inputs: Any, reads: Reads) -> ModelOutput:
        output = ModelOutput()
        maps = self.module.trunk(inputs["z"], inputs.get("classes"))
        if "pooled" in reads.taps:
            output.edges["pooled"] = edges_of(maps)
        if "pooled" in reads.features:
            output.features["pooled"] = mean_over_places(maps, "NCHW", 0)
        if "pooled" in reads.maps:
            output.maps["pooled"] = maps
        if reads.heads:
            output.heads |= dict.fromkeys(reads.heads, self.module.image(maps))
        return output

    def _describe_layer(self, name: str, outputs: list[Any], inputs: Any) -> tuple[LayerTap, int]:
        image = torch.empty(1, 3, *self.preprocessing.image_size)
        return describe_layer(self.facts.name, name, outputs, image, 0)

    def _layer_lists(self) -> list[list[str]]:
        return [[f"blocks.{number}" for number in range(len(self.module.blocks))]]

    @property
    def _num_prefix_tokens(self) -> int:
        return 0

    def _head_names(self) -> None:
        return None

    def _task(self, num_classes: int) -> str:
        return _row().name

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``generator.py``, whose ``load(FOLDER)`` needs no kdcli."""
        write_network(self, folder, self.settings)
        (folder / CODE).write_bytes(Path(biggan.__file__).read_bytes())


def build_student(place: Place, config: StudentConfig, data: DataFacts, like: Model | None) -> SamplerModel:
    """Build a generator for the data's task, with the data's classes where it is to know any.

    Raises:
        UserError: the data are for another task or have no classes to be told apart, or it can't be set so.
    """
    row, side = TASKS[data.task], SIDES[_network(place, _saved(place))]
    if row.name != _row().name:
        raise UserError(
            f"{place.name} makes images out of random numbers, and the task is {row.name}.",
            f"Name another student, or choose --task {_row().name}.",
        )
    if config.drop_path is not None:
        raise UserError("student.drop_path is not for generators.", "Leave it out.")
    if like is not None:
        raise UserError("A generator of images can't be made of a teacher.", f"Name it: {place.name}.")
    if config.input_size not in (None, (side, side)):
        raise UserError(
            f"{place.name} makes images of {side}x{side} pixels, and student.image_size is {config.image_size}.",
            "Leave it out; generator:biggan32 makes 32x32, generator:biggan64 makes 64x64.",
        )
    settings, asked = settings_of(place)
    if asked and not data.class_names:
        raise UserError(
            f"{place.name} is to make images of a class each, and {data.name} has no labels.",
            "Give data with a class for each image, or leave ?conditional=true out.",
        )
    names = data.class_names if asked or asked is None else ()
    settings |= {"num_classes": len(names), "seed": int(torch.randint(2**31, ()))}
    module = _make(place, settings)
    model = SamplerModel(module, student_origin(place, config, names), preprocessing_at(side), settings)
    if config.pretrained:
        source = open_saved(place)
        leave = (
            set()
            if (source.facts.label_names or ()) == names
            else {name for name, _ in module.named_parameters() if ".scale." in name or ".shift." in name}
        )
        copy_tensors(source.module, module, leave=leave)
    return model


@torch.inference_mode(False)  # spectral normalisations can't be made of inference's tensors
def open_saved(place: Place) -> SamplerModel:
    """Load what :meth:`SamplerModel.save` wrote."""
    assert place.folder is not None, "names have no weights"
    saved = _saved(place)
    settings = settings_of(place)[0] | {key: saved[key] for key in ("num_classes", "seed")}
    given = read_checkpoint(place.folder / "model.safetensors", source=str(place.folder))
    module, _ = build_with_weights(lambda _: _make(place, settings), given, classifier=lambda _: (0, set()))
    names = label_names_of(saved)
    return SamplerModel(module, saved_origin(place, names), preprocessing_of(saved["preprocessing"]), settings)


def refused_teacher(place: Place) -> UserError:
    """Return the error of one that is to teach: it reads no images."""
    return UserError(
        f"{place.name} makes images out of random numbers: it reads no images that it could teach anything about.",
        "Name a model of images as the teacher.",
    )


def reload(student: Model, folder: Path) -> Reloaded:
    """Load ``folder`` by its own Python file and make images by it and by the student of the same numbers."""
    spec = importlib.util.spec_from_file_location("exported_generator", folder / CODE)
    assert spec is not None
    assert spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    if student.facts.label_names:
        check_labels(list(alone.classes_of(folder)), student)
    inputs: Any = student.example(2, seed=2)
    with torch.inference_mode():
        return Reloaded(CODE, IMAGE, alone.load(folder)(**inputs), student(inputs).heads[IMAGE])


def snippet(folder: Path) -> str:
    """Return the lines of Python that load a student by the file beside its weights and make 16 images."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    count = saved["num_classes"]
    words = {
        "NUMBER": "16",
        "SIDE": str(saved["preprocessing"]["image_size"][0]),
        "CALL": f"z, torch.arange(16) % {count}" if count else "z",
    }
    lines = _SNIPPET
    for word, value in words.items():
        lines = lines.replace(word, value)
    return lines


def settings_of(place: Place) -> tuple[dict[str, Any], bool | None]:
    """Return what makes the network of a name or a folder, but for its classes, and whether it is asked to read any.

    Raises:
        UserError: it has no such argument, or the folder's config is damaged.
    """
    saved = _saved(place)
    network = _network(place, saved)
    valid = _defaults(network)
    given = dict(place.arguments)
    asked = given.pop(_CONDITIONAL, None)
    for key in given:
        if key not in valid:
            raise UserError(
                f"{place.name}: there is no argument {key!r}. {did_you_mean(key, [*valid, _CONDITIONAL])}".rstrip(),
                f"Its arguments: {', '.join([*valid, _CONDITIONAL])}.",
            )
    if asked is not None and not isinstance(asked, bool):
        raise UserError(f"{place.name}: {_CONDITIONAL} is true or false, and not {asked!r}.", "Give one of them.")
    arguments = {**valid, **saved.get("arguments", {}), **given}
    return {"library": "generators", "network": network, "arguments": arguments}, asked


def preprocessing_at(side: int) -> Preprocessing:
    """Return how real images are brought to the size of those that are made: from -1 to 1, the middle cut out."""
    return Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3, "bicubic")


def _row() -> Any:
    return next(row for row in TASKS.values() if row.target == "samples")


def _network(place: Place, saved: Mapping[str, Any]) -> str:
    return str(saved.get("network", place.architecture))


def _make(place: Place, settings: Mapping[str, Any]) -> nn.Module:
    try:
        with bounded(place.name):
            module: nn.Module = SAMPLERS[settings["network"]](settings["num_classes"], **settings["arguments"])
            return module
    except UserError:
        raise
    except Exception as error:  # on values that don't fit a network raises whatever it trips over
        reason = str(error) or type(error).__name__
        raise UserError(f"{place.name} can't be built: {reason}", "Give other arguments, or none.") from error


def _defaults(network: str) -> dict[str, Any]:
    _, *parameters = inspect.signature(SAMPLERS[network]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def _saved(place: Place) -> dict[str, Any]:
    """Return the ``config.json`` of a folder; nothing for a network by name."""
    if place.folder is None:
        return {}

    def check(saved: Mapping[str, Any]) -> None:
        if saved["network"] not in SAMPLERS or not isinstance(saved["arguments"], dict):
            raise ValueError(f"there is no network {saved['network']!r}, or its arguments are none")
        int(saved["seed"])
        if int(saved["num_classes"]) != len(saved["label_names"] or ()):
            raise ValueError("num_classes and label_names differ")

    return read_network(place.folder, check)
