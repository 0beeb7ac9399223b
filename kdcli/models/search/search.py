"""Which architectures fit into a budget: parameters, multiply-accumulates and latency of timm's and transformers'."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Literal

import torch

from kdcli import __version__
from kdcli.base.errors import UserError
from kdcli.base.files import cache_folder, write_atomically
from kdcli.base.text import human_count
from kdcli.models.base import seeded
from kdcli.models.measure import measure, time_passes
from kdcli.models.place import Place
from kdcli.models.search.catalogue import Catalogue

Sort = Literal["params", "macs", "latency"]
Report = Callable[[str, int, int], None]
"""Called with what is counted, how many are done, and of how many."""

LARGEST_BUILT = 10**9
"""Networks of more parameters are counted, but never built with memory."""
_SAVE_EVERY = 50


@dataclass(frozen=True)
class Budget:
    """What an architecture may cost; None is no limit.

    Attributes:
        max_parameters: classifier included, where the task has one.
        min_parameters: likewise.
        max_macs: multiply-accumulates of one sample.
    """

    max_parameters: float | None = None
    min_parameters: float | None = None
    max_macs: float | None = None

    def excess(self, parameters: int) -> float:
        """Return by what factor so many parameters miss the limits; 1 within them."""
        above = parameters / self.max_parameters if self.max_parameters else 1.0
        below = self.min_parameters / parameters if self.min_parameters and parameters else 1.0
        return max(above, below, 1.0)

    def takes(self, parameters: int) -> bool:
        """Whether so many parameters are within the limits."""
        below = self.max_parameters is None or parameters <= self.max_parameters
        return below and (self.min_parameters is None or parameters >= self.min_parameters)


@dataclass(frozen=True)
class Found:
    """An architecture that fits.

    Attributes:
        name: for ``--student``.
        parameters: classifier included, where the task has one.
        macs: multiply-accumulates of one sample.
        input_size: (height, width) in pixels or (tokens,), at which macs and latency are measured.
        pretrained: whether timm has published weights.
        latency_ms: median of one sample on the CPU; None for more than ``LARGEST_BUILT`` parameters.
    """

    name: str
    parameters: int
    macs: int
    input_size: tuple[int, ...]
    pretrained: bool
    latency_ms: float | None


class Cache:
    """What was counted before, in a file of the user's cache folder, for the installed versions of kdcli and libraries.

    Attributes:
        path: the file.
        problem: why it could not be written; None where it could.
    """

    def __init__(self) -> None:
        versions = f"kdcli-{__version__}-timm-{version('timm')}-transformers-{version('transformers')}"
        self.path = cache_folder() / f"architectures-{versions}.json"
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

    def known(self, key: str) -> int | None:
        """Return what ``key`` came to before; None where it wasn't counted or can't be built."""
        return self._counts.get(key)

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
    catalogue: Catalogue,
    budget: Budget,
    *,
    sort: Sort,
    limit: int,
    cache: Cache,
    report: Report,
) -> list[Found]:
    """Find architectures within ``budget``.

    Parameters are counted of everything that its pattern names, multiply-accumulates of what then fits until ``limit``
    are found, both without memory or arithmetic on torch's meta device. Latency is measured of what is shown, and of
    everything that fits where it is to be sorted by.

    Args:
        catalogue: what to search through, and for which task.
        budget: the limits.
        sort: ``params`` and ``macs`` the largest first, as they are nearest to the limits; ``latency`` the fastest.
        limit: of the length of the list.
        cache: of earlier counts; saved at the end.
        report: told about the progress.

    Raises:
        UserError: nothing is called so.
    """
    places = catalogue.find()
    try:
        sizes: dict[str, int] = {}
        for number, place in enumerate(places):
            report("Counting parameters", number, len(places))
            count = cache.get(_key(catalogue, place), partial(_count_parameters, catalogue, place))
            if count is not None and budget.takes(count):
                sizes[place.name] = count
        order = sorted((place for place in places if place.name in sizes), key=lambda place: -sizes[place.name])
        counted = _with_macs(catalogue, order, sizes, budget, cache, report, limit if sort == "params" else len(order))
        if sort == "params":
            counted = islice(counted, limit)
        fitting = list(counted)
    finally:
        cache.save()
    if sort == "macs":
        fitting = sorted(fitting, key=lambda entry: -entry[1])[:limit]
    found = []
    for number, (place, macs) in enumerate(fitting):
        report("Measuring latency", number, len(fitting))
        parameters, published = sizes[place.name], catalogue.is_published(place)
        size, milliseconds = _latency(catalogue, place, parameters)
        found.append(Found(place.name, parameters, macs, size, published, milliseconds))
    if sort == "latency":
        found.sort(key=lambda entry: math.inf if entry.latency_ms is None else entry.latency_ms)
    return found[:limit]


def _key(catalogue: Catalogue, place: Place, *, macs: bool = False) -> str:
    return f"{place.name} {catalogue.key}" + (f" macs {catalogue.size or 'own'}" if macs else "")


def nearest_miss(catalogue: Catalogue, budget: Budget, cache: Cache) -> str:
    """Return in a sentence which architecture is nearest to the limits, after a search that found none; "" for none.

    Args:
        catalogue: that was searched through.
        budget: the limits that nothing kept.
        cache: with the counts of that search.
    """
    misses: list[tuple[float, str]] = []
    for place in catalogue.find():
        parameters, macs = (cache.known(_key(catalogue, place, macs=of_macs)) for of_macs in (False, True))
        if parameters is None:
            continue
        excess, told = budget.excess(parameters), f"{place.name}, with {human_count(parameters)} parameters"
        if excess == 1 and budget.max_macs and macs:  # it fits by its parameters
            excess, told = macs / budget.max_macs, f"{told} and {human_count(macs)} multiply-accumulates"
        if excess > 1:
            misses.append((excess, told))
    return f"The nearest is {min(misses)[1]}." if misses else ""


def _with_macs(
    catalogue: Catalogue,
    places: Sequence[Place],
    sizes: dict[str, int],
    budget: Budget,
    cache: Cache,
    report: Report,
    limit: int,
) -> Iterator[tuple[Place, int]]:
    fitting = 0
    for number, place in enumerate(places):
        report("Counting multiply-accumulates", max(fitting, number * limit // len(places)), limit)
        key = _key(catalogue, place, macs=True)
        macs = cache.get(key, partial(_count_macs, catalogue, place, sizes[place.name]))
        if macs is not None and (budget.max_macs is None or macs <= budget.max_macs):
            fitting += 1
            yield place, macs


@contextmanager
def _without_memory() -> Iterator[None]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        yield


def _count_parameters(catalogue: Catalogue, place: Place) -> int | None:
    try:
        with _without_memory():
            return sum(parameter.numel() for parameter in catalogue.build(place, None).module.parameters())
    except Exception:  # a package is missing, or it is no network for the task: it can't be a student
        return None


def _count_macs(catalogue: Catalogue, place: Place, parameters: int) -> int | None:
    try:
        with _without_memory():
            return _macs(catalogue, place)
    except Exception as error:  # it can't take samples of this size, or wants more than one
        if "meta" not in str(error).lower() or parameters > LARGEST_BUILT:
            return None
    try:  # it looks at values, which tensors without memory don't have
        with seeded(0):
            return _macs(catalogue, place)
    except Exception:
        return None


def _macs(catalogue: Catalogue, place: Place) -> int:
    built = catalogue.build(place, catalogue.size)
    return measure(built.module, built.run).macs


def _latency(catalogue: Catalogue, place: Place, parameters: int) -> tuple[tuple[int, ...], float | None]:
    """Return the sample's size, and the median milliseconds that it takes."""
    if parameters > LARGEST_BUILT:
        with _without_memory():
            return catalogue.build(place, catalogue.size).input_size, None
    with seeded(0):
        built = catalogue.build(place, catalogue.size)
    times = time_passes(built.run, device=torch.device("cpu"), most=25, seconds=0.5, warm_up=2)
    return built.input_size, 1e3 * float(times.median())
