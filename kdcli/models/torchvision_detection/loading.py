"""Teachers, students and saved folders of torchvision's detectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import GEOMETRIES, DataFacts, Preprocessing
from kdcli.base.tasks import task_of
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.bounds import building
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.origin import names_of_file, phrase_of_file, saved_origin, student_origin, teacher_origin
from kdcli.models.place import Place
from kdcli.models.saved import label_names_of, preprocessing_of, read_network
from kdcli.models.settle import wanted_input
from kdcli.models.shrink import copy_tensors
from kdcli.models.spec import ModelName
from kdcli.models.torchvision_detection.model import TorchvisionDetector
from kdcli.models.torchvision_detection.networks import NETWORKS, RESNETS, Network
from kdcli.models.weights import Checkpoint, read_checkpoint

OWN_CLASSES = 90
"""Of COCO's numbering, which leaves some out: what a detector has where nobody says how many."""
_SQUASHED = "torchvision keeps an image's proportions; here the whole image is squashed into one size"
_HEADS = (
    "head.classification_head.cls_logits.weight",
    "head.classification_head.module_list.0.1.weight",
    "head.classification_head.module_list.0.weight",
    "roi_heads.box_predictor.cls_score.weight",
)
"""What has a row for each class, background among them, and for each anchor."""
_OVER_CLASSES = re.compile(
    r"classification_head\.(cls_logits|module_list\.\d+(\.1)?)\.(weight|bias)$|\.box_predictor\.|^box_predictor\."
)
_TINY = 1e-5


def load_teacher(
    place: Place, name: ModelName, config: TeacherConfig, checkpoint: Checkpoint | None
) -> TorchvisionDetector:
    """Load a detector with its own classes."""
    saved = read_saved(place)
    network, settings = network_of(place, saved), _settings(place, saved)
    wanted, told = wanted_input(config, checkpoint.recorded if checkpoint else None)
    size = wanted.get("image_size") or _size_of(network, saved)
    names = None if name.random else label_names_of(saved)
    phrase = full_name = ""
    if name.random:
        module = make(place, network, settings, size)
    elif place.folder is None and checkpoint is None:
        module, names = _published(place, network, settings, size)
        full_name = f"{place.name}.COCO_V1"
    else:
        checkpoint_of_all = checkpoint or _checkpoint(place)
        module, report = _with_weights(place, network, settings, size, checkpoint_of_all)
        if checkpoint is not None:
            names = names_of_file(checkpoint.recorded, names, settings["num_outputs"])
            phrase = phrase_of_file(checkpoint, report, told, name, settings["num_outputs"])
    preprocessing = _changed(_preprocessing(network, module, saved, size), wanted)
    origin = teacher_origin(place, name, names, image_size=config.input_size, file_phrase=phrase, full_name=full_name)
    return TorchvisionDetector(module, origin, preprocessing, settings)


def build_student(place: Place, config: StudentConfig, data: DataFacts, *, like: Model | None) -> TorchvisionDetector:
    """Build a detector of the data's classes.

    Published weights are those of the whole detector where torchvision has them, with heads of its own where the
    classes are others, and else those of ImageNet for the backbone.
    """
    if data.task != task_of("image", "boxes").name:
        raise UserError(
            f"{place.name} is a detector, and the task is {data.task}.", "Name another student, or choose another task."
        )
    if config.drop_path is not None:
        raise UserError(f"student.drop_path is not for {place.name}: it has no stochastic depth.", "Leave it out.")
    saved, names = read_saved(place), data.class_names
    network = network_of(place, saved)
    settings = {**_settings(place, saved), "num_outputs": len(names)}
    size = config.input_size or _size_of(network, saved)
    if like is not None and config.image_size is None:
        assert isinstance(like.preprocessing, Preprocessing), "it is a model of images"
        size = like.preprocessing.image_size
    module = make(place, network, settings, size)
    full_name, source = "", like
    if config.pretrained and place.folder is not None:
        source = open_saved(place)
    elif config.pretrained:
        full_name = _start_from_published(place, network, settings, module, size, names)
    report = None
    if source is not None:
        same = source.facts.label_names == names
        report = copy_tensors(source.module, module, leave=set() if same else heads_of(module))
    preprocessing = _preprocessing(network, module, saved if like is None else {}, size)
    if like is not None:
        preprocessing = like.preprocessing.at(size)  # type: ignore[union-attr]  # it is a model of images
    model = TorchvisionDetector(
        module, student_origin(place, config, names, full_name=full_name), preprocessing, settings
    )
    if like is not None and report is not None:
        model.facts = replace(model.facts, weights=report.summary())
    return model


def open_saved(place: Place) -> TorchvisionDetector:
    """Load a folder that :meth:`TorchvisionDetector.save` wrote."""
    saved = read_saved(place)
    network, settings = network_of(place, saved), _settings(place, saved)
    size = _size_of(network, saved)
    module, _ = _with_weights(place, network, settings, size, _checkpoint(place))
    origin = saved_origin(place, label_names_of(saved))
    return TorchvisionDetector(module, origin, _preprocessing(network, module, saved, size), settings)


def make(place: Place, network: Network, settings: Mapping[str, Any], size: tuple[int, int]) -> nn.Module:
    """Return a network without weights; what is frozen of it is.

    Raises:
        UserError: its arguments don't go together.
    """
    with building(place.name):
        module: nn.Module = network.made(settings["num_outputs"], settings["arguments"], size).make()
    if settings["frozen"]:
        freeze(network, module)
    return module


def freeze(network: Network, module: Any) -> None:
    """Keep the normalisations of the backbone and its first stages, as torchvision does of published weights."""
    for part in module.backbone.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.requires_grad_(False)
    if network.frozen:
        body = module.backbone.body
        stems = ("conv1", "bn1", "layer1") if _is_resnet(network) else tuple(map(str, _first_blocks(body)))
        for name, part in body.named_children():
            if name in stems:
                part.requires_grad_(False)


def _is_resnet(network: Network) -> bool:
    return network.backbone in RESNETS or "resnet" in network.name


def _first_blocks(body: Any) -> list[int]:
    """Return the blocks of a MobileNet before the last three of its stages, as torchvision counts them."""
    blocks = dict(body.named_children())
    stages = [0, *(int(name) for name, block in blocks.items() if getattr(block, "_is_cn", False)), len(blocks) - 1]
    return list(range(stages[len(stages) - 3]))


def heads_of(module: nn.Module) -> set[str]:
    """Return the names of the parameters that are over classes."""
    return {name for name, _ in module.named_parameters() if _OVER_CLASSES.search(name)}


def read_saved(place: Place) -> dict[str, Any]:
    """Return the ``config.json`` of a folder; nothing for a network by name.

    Raises:
        UserError: it is damaged, or there is no such network.
    """
    if place.folder is None:
        return {}

    def check(saved: Mapping[str, Any]) -> None:
        is_sound = isinstance(saved["num_outputs"], int) and isinstance(saved["arguments"], dict)
        if not (is_sound and isinstance(saved["frozen"], bool)):
            raise ValueError("num_outputs is no number, arguments are none, or frozen is neither true nor false")

    saved = read_network(place.folder, check)
    network = str(saved["network"])
    if network not in NETWORKS:
        raise UserError(
            f"{place.folder / 'config.json'}: there is no detector {network!r}."
            f" {did_you_mean(network, NETWORKS)}".rstrip(),
            "Check the folder.",
        )
    return saved


def network_of(place: Place, saved: Mapping[str, Any]) -> Network:
    """Return the network of a place."""
    return NETWORKS[str(saved.get("network", place.architecture))]


def _settings(place: Place, saved: Mapping[str, Any]) -> dict[str, Any]:
    network = network_of(place, saved)
    network.check(place.arguments, shown=place.name)
    return {
        "library": TorchvisionDetector.library,
        "network": network.name,
        "num_outputs": saved.get("num_outputs", OWN_CLASSES),
        "arguments": {**saved.get("arguments", {}), **place.arguments},
        "frozen": saved.get("frozen", False),
    }


def _size_of(network: Network, saved: Mapping[str, Any]) -> tuple[int, int]:
    return preprocessing_of(saved["preprocessing"]).image_size if saved else (network.side, network.side)


def _preprocessing(network: Network, module: Any, saved: Mapping[str, Any], size: tuple[int, int]) -> Preprocessing:
    if saved:
        return preprocessing_of(saved["preprocessing"]).at(size)
    mean, std = (tuple(map(float, values)) for values in (module.transform.image_mean, module.transform.image_std))
    assert len(mean) == 3
    assert len(std) == 3
    return Preprocessing(size, mean, std, interpolation="bilinear", geometry="squash", note=f"{_SQUASHED}.")


def _changed(preprocessing: Preprocessing, wanted: Mapping[str, Any]) -> Preprocessing:
    """Return what the user wants of it; a crop would leave boxes out, and is refused."""
    if wanted.get("crop_pct") not in (None, 1.0) or GEOMETRIES.get(wanted.get("crop_mode", "squash")) == "crop":
        raise UserError(
            "teacher.crop_pct and teacher.crop_mode=center cut images, and a detector is to see the whole of them.",
            "Leave them out; crop_mode=border keeps an image's proportions.",
        )
    changes = {key: wanted[key] for key in ("mean", "std", "interpolation") if key in wanted}
    if "crop_mode" in wanted:
        changes["geometry"] = GEOMETRIES[wanted["crop_mode"]]
    return replace(preprocessing, **changes)


def _checkpoint(place: Place) -> Checkpoint:
    assert place.folder is not None, "names have no weights of their own"
    return read_checkpoint(place.folder / "model.safetensors", source=str(place.folder))


def _with_weights(
    place: Place, network: Network, settings: dict[str, Any], size: tuple[int, int], checkpoint: Checkpoint
) -> tuple[nn.Module, LoadReport]:
    """Make a network with a checkpoint's weights; ``settings`` get the number of its classes."""
    own = make(place, network, settings, size).state_dict()
    rows = next((own[name].shape[0] for name in _HEADS if name in own), 0)
    each = rows // (settings["num_outputs"] + 1)
    for part in checkpoint.parts:
        for name, tensor in part.tensors.items():
            if each and name.endswith(_HEADS) and tensor.ndim and tensor.shape[0] % each == 0:
                settings["num_outputs"] = max(tensor.shape[0] // each - 1, 1)
                break

    def build(_: int | None) -> nn.Module:
        return make(place, network, settings, size)

    return build_with_weights(build, checkpoint, classifier=lambda module: (0, set()))


def _published(
    place: Place, network: Network, settings: dict[str, Any], size: tuple[int, int]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a detector with torchvision's weights of COCO, and the names of its classes."""
    if not network.is_published:
        whole = ", ".join(f"torchvision:{name}" for name, other in NETWORKS.items() if other.is_published)
        raise UserError(
            f"torchvision has no weights of {place.name}, which is put together of its parts.",
            f"A teacher can be a run or a saved folder, have a checkpoint (--teacher-weights FILE), be untrained"
            f" (random:{place.name}) or one of {whole}.",
        )
    settings |= {"num_outputs": OWN_CLASSES, "frozen": bool(network.frozen)}
    weights = weights_of(network)
    module = make(place, network, settings, size)
    _fill(module, _downloaded(place, weights), network)
    return module, tuple(weights.meta["categories"][1:])


def weights_of(network: Network) -> Any:
    """Return torchvision's entry of a detector's weights, by whose ``url`` they are found."""
    from torchvision.models import get_model_weights

    return get_model_weights(network.name)["COCO_V1"]


def _start_from_published(
    place: Place,
    network: Network,
    settings: dict[str, Any],
    module: nn.Module,
    size: tuple[int, int],
    names: tuple[str, ...],
) -> str:
    """Give a student published weights; return the full name of what it starts from."""
    settings["frozen"] = bool(network.frozen)
    if network.is_published:
        whole = {**settings, "num_outputs": OWN_CLASSES}
        source, own_names = _published(place, network, whole, size)
        copy_tensors(source, module, leave=set() if own_names == names else heads_of(module))
        full_name = f"{place.name}.COCO_V1"
    else:
        from torchvision.models import get_model_weights

        weights = get_model_weights(network.backbone)["IMAGENET1K_V1"]
        found = _downloaded(place, weights)
        _fill_backbone(module, found)
        full_name = f"{place.name}, its backbone {network.backbone}.IMAGENET1K_V1"
    if settings["frozen"]:
        freeze(network, module)
    return full_name


def _downloaded(place: Place, weights: Any) -> dict[str, Tensor]:
    """Return torchvision's weights, out of torch's cache where they are there.

    Raises:
        UserError: they can't be had.
    """
    try:
        found: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The weights of {place.name} can't be downloaded from {weights.url}: {reason}",
            "Check the network, or put the file into $TORCH_HOME/hub/checkpoints; a student can be untrained"
            " (--no-student-pretrained).",
        ) from error
    return found


def _fill(module: nn.Module, found: Mapping[str, Tensor], network: Network) -> None:
    """Load published weights, whose normalisations may have no counters, and no least variance."""
    own = module.state_dict()
    given = {name: found.get(name, value) for name, value in own.items()}
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    if missing or (unexpected := [name for name in found if name not in own]):
        raise UserError(
            f"torchvision's weights of {network.name} don't fit: {(missing or unexpected)[0]}.",
            "Please report this with the version of torchvision.",
        )
    if network.has_exact_norms:
        for name in given:
            if name.endswith("running_var"):
                given[name] = given[name] - _TINY
    module.load_state_dict(given)


def _fill_backbone(module: Any, found: Mapping[str, Tensor]) -> None:
    """Load a classifier's weights into the backbone that a detector has of it, which has no classifier."""
    backbone = module.backbone
    body = backbone.body if hasattr(backbone, "body") else backbone.features
    own = body.state_dict()
    given = {name.removeprefix("features."): value for name, value in found.items()}
    taken = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    if len(taken) < len(own):
        absent = next(name for name in own if name not in taken)
        raise UserError(
            f"torchvision's weights of the backbone don't fit: {absent}.", "Take it untrained, or another backbone."
        )
    body.load_state_dict(taken)
