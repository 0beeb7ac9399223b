"""Which architectures fit into a budget: parameters, multiply-accumulates and latency of timm's and transformers'."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import timm as timm_library
import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from kdcli.errors import UserError, did_you_mean
from kdcli.models import hf, kdcli_networks, processor, timm
from kdcli.models.base import seeded
from kdcli.models.locate import Place, load_architectures
from kdcli.models.measure import measure, time_passes
from kdcli.models.spec import find_extension
from kdcli.run_folder import write_atomically

Sort = Literal["params", "macs", "latency"]
Report = Callable[[str, int, int], None]
"""Called with what is counted, how many are done, and of how many."""

NUM_CLASSES = 1000
"""Everything is counted with a classifier over so many classes."""
_SAVE_EVERY = 50
_WRAPPERS = {"timm_wrapper"}


@dataclass(frozen=True)
class Budget:
    """What an architecture may cost; None is no limit.

    Attributes:
        max_parameters: with a classifier over ``NUM_CLASSES`` classes.
        min_parameters: likewise.
        max_macs: multiply-accumulates of one image.
    """

    max_parameters: float | None = None
    min_parameters: float | None = None
    max_macs: float | None = None

    def takes(self, parameters: int) -> bool:
        """Whether so many parameters are within the limits."""
        below = self.max_parameters is None or parameters <= self.max_parameters
        return below and (self.min_parameters is None or parameters >= self.min_parameters)


@dataclass(frozen=True)
class Found:
    """An architecture that fits.

    Attributes:
        name: for ``--student``.
        parameters: with a classifier over ``NUM_CLASSES`` classes.
        macs: multiply-accumulates of one image.
        image_size: (height, width) in pixels, at which macs and latency are measured.
        pretrained: whether timm has published weights.
        latency_ms: median of one image on the CPU.
    """

    name: str
    parameters: int
    macs: int
    image_size: tuple[int, int]
    pretrained: bool
    latency_ms: float


class Cache:
    """What was counted before, in a file of the user's cache folder, for the installed versions of both libraries.

    Attributes:
        path: the file.
        problem: why it could not be written; None where it could.
    """

    def __init__(self) -> None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        versions = f"timm-{timm_library.__version__}-transformers-{transformers.__version__}"
        self.path = root / "kdcli" / f"architectures-{versions}.json"
        self.problem: str | None = None
        self._counts = self._read()
        self._num_saved = len(self._counts)

    def _read(self) -> dict[str, int | None]:
        try:
            counts = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or not a whole one: everything is counted anew
            return {}
        is_sound = isinstance(counts, dict) and all(v is None or type(v) is int for v in counts.values())
        return counts if is_sound else {}

    def get(self, key: str, count: Callable[[], int | None]) -> int | None:
        """Return what ``key`` came to, counting it where that was not done before; None for what can't be built."""
        if key not in self._counts:
            self._counts[key] = count()
            if len(self._counts) - self._num_saved >= _SAVE_EVERY:
                self.save()
        return self._counts[key]

    def save(self) -> None:
        """Write what is new; a folder that can't be written to is noted, and costs nothing but time."""
        if len(self._counts) == self._num_saved:
            return
        self._num_saved = len(self._counts)
        text = json.dumps(self._counts, indent=0, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda file: file.write_text(text, encoding="utf-8"))
        except (OSError, UserError) as error:
            self.problem = f"The counts can't be kept for the next time: {str(error).splitlines()[0]}"


def search(
    budget: Budget,
    *,
    pattern: str | None,
    pretrained: bool,
    image_size: int | None,
    sort: Sort,
    limit: int,
    cache: Cache,
    report: Report,
) -> list[Found]:
    """Find architectures within ``budget``.

    Parameters are counted of everything that ``pattern`` names, multiply-accumulates of what then fits until ``limit``
    are found, both without memory or arithmetic on torch's meta device. Latency is measured of what is shown, and of
    everything that fits where it is to be sorted by.

    Args:
        budget: the limits.
        pattern: with ``*`` and ``?``, such as ``mobilenet*``; None for all but timm's own test networks.
        pretrained: only those with published weights.
        image_size: side in pixels; by default each architecture's own.
        sort: ``params`` and ``macs`` the largest first, as they are nearest to the limits; ``latency`` the fastest.
        limit: of the length of the list.
        cache: of earlier counts; saved at the end.
        report: told about the progress.

    Raises:
        UserError: nothing is called so.
    """
    places = _named(pattern, pretrained=pretrained)
    try:
        sizes: dict[str, int] = {}
        for number, place in enumerate(places):
            report("Counting parameters", number, len(places))
            count = cache.get(place.name, partial(_count_parameters, place))
            if count is not None and budget.takes(count):
                sizes[place.name] = count
        order = sorted((place for place in places if place.name in sizes), key=lambda place: -sizes[place.name])
        counted = _with_macs(order, budget, image_size, cache, report, limit=limit if sort == "params" else len(order))
        if sort == "params":
            counted = islice(counted, limit)
        fitting = list(counted)
    finally:
        cache.save()
    if sort == "macs":
        fitting = sorted(fitting, key=lambda entry: -entry[1])[:limit]
    published = _published()
    found = []
    for number, (place, macs) in enumerate(fitting):
        report("Measuring latency", number, len(fitting))
        size, milliseconds = _latency(place, image_size)
        found.append(Found(place.name, sizes[place.name], macs, size, place.architecture in published, milliseconds))
    if sort == "latency":
        found.sort(key=lambda entry: entry.latency_ms)
    return found[:limit]


def _with_macs(
    places: Sequence[Place], budget: Budget, image_size: int | None, cache: Cache, report: Report, *, limit: int
) -> Iterator[tuple[Place, int]]:
    fitting = 0
    for number, place in enumerate(places):
        report("Counting multiply-accumulates", max(fitting, number * limit // len(places)), limit)
        macs = cache.get(f"{place.name} macs {image_size or 'own'}", partial(_count_macs, place, image_size))
        if macs is not None and (budget.max_macs is None or macs <= budget.max_macs):
            fitting += 1
            yield place, macs


def _named(pattern: str | None, *, pretrained: bool) -> list[Place]:
    """Return the architectures of both libraries that ``pattern`` names, under the names that ``--student`` takes."""
    names = {}
    prefix, colon, _ = (pattern or "").partition(":")
    entry = find_extension(prefix) if colon else None
    if entry is not None:
        load_architectures(entry)
    for architecture in timm_library.list_models():
        own = architecture in kdcli_networks.NAMES and architecture.startswith("cifar_")
        own = own or (entry is not None and architecture.startswith(f"{entry.name}_"))
        name = architecture.replace("_", ":", 1) if own else architecture
        names[name] = Place("timm", name, architecture=architecture)
    kinds = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.keys() - _WRAPPERS
    names |= {f"hf:{kind}": Place("transformers", f"hf:{kind}", architecture=kind) for kind in kinds}
    chosen = [name for name in names if (not name.startswith("test_") if pattern is None else fnmatch(name, pattern))]
    if not chosen:
        raise UserError(
            f"No architecture is called {pattern}. {did_you_mean(str(pattern), names)}".rstrip(),
            "A pattern has * for any letters: --name 'mobilenet*'.",
        )
    published = _published()
    return [names[name] for name in sorted(chosen) if not pretrained or name in published]


def _published() -> set[str]:
    return {name.partition(".")[0] for name in timm_library.list_models(pretrained=True)}


def _build(place: Place, image_size: int | None) -> tuple[nn.Module, tuple[int, int]]:
    """Return an untrained network in eval mode, and its input's (height, width)."""
    if place.library == "timm":
        module, _ = timm.load(place, pretrained=False, num_classes=NUM_CLASSES, image_size=image_size)
        own = module.pretrained_cfg["input_size"][1:]  # type: ignore[index]
    else:
        names = [str(label) for label in range(NUM_CLASSES)]
        module = hf.build_student(place, names, pretrained=False, image_size=image_size)
        own = processor.own_image_size(module.config) or (224, 224)
    size = (int(own[0]), int(own[1])) if image_size is None else (image_size, image_size)
    return module.eval(), size


@contextmanager
def _without_memory() -> Iterator[None]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        yield


def _count_parameters(place: Place) -> int | None:
    try:
        with _without_memory():
            return sum(parameter.numel() for parameter in _build(place, None)[0].parameters())
    except Exception:  # a package is missing, or it is no network of images: it can't be a student
        return None


def _count_macs(place: Place, image_size: int | None) -> int | None:
    try:
        with _without_memory():
            module, size = _build(place, image_size)
            return measure(module, lambda: module(torch.empty(1, 3, *size))).macs
    except Exception:  # it can't take images of this size, or wants more than an image
        return None


def _latency(place: Place, image_size: int | None) -> tuple[tuple[int, int], float]:
    with seeded(0):
        module, size = _build(place, image_size)
        images = torch.randn(1, 3, *size)
    times = time_passes(lambda: module(images), device=torch.device("cpu"), most=25, seconds=0.5, warm_up=2)
    return size, 1e3 * float(times.median())
