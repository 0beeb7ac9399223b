"""What the samples of a data set are, by content, and what has become of them since."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple

from torch import Tensor

from kdcli.base.facts import UNLABELLED
from kdcli.data.images.decode import File, UnreadableImage
from kdcli.data.images.dense.scenes import SceneSource
from kdcli.data.images.pictures import Partner, Picture
from kdcli.data.images.sources import ArraySource, Concatenation, DenseSource, FileSource, ImageSource, Subset
from kdcli.data.images.splits import ImageData
from kdcli.data.images.streams import is_streamed, parts_of
from kdcli.data.images.tables import TableSource
from kdcli.data.images.torchvision_sets import TorchvisionSource
from kdcli.data.images.translation.edges import EdgeSource
from kdcli.data.index import Index
from kdcli.data.source import Source
from kdcli.data.texts.sources import TextData, TextSource
from kdcli.data.texts.words import WordSource

MOST_BYTES = 2**30
MOST_FILES = 100_000
"""So much of images in files and tables is read; of larger sets it is a part, spread evenly over the whole."""
_SHOWN = 3
"""Samples that a message names."""

AnyData = ImageData | TextData


class Sample(NamedTuple):
    """One sample of a split.

    Attributes:
        name: of its file in the data folder; None where it is in no file of its own.
        place: ``split[row]`` where it has no name; otherwise None.
        content: bytes and digest of what it is made of, such as ``8123:5f2b``; ``8123:`` where it was not read.
        label: its class by name, its values, its words' labels, or the digest of its mask, depth or boxes, as of
            ``content``; empty for none.
    """

    name: str | None
    place: str | None
    content: str
    label: str

    @property
    def shown(self) -> str:
        """What it is called in messages."""
        return self.name or self.place or ""

    @property
    def is_read(self) -> bool:
        """Whether its content is known, and not only its size."""
        return not self.content.endswith(":")


@dataclass(frozen=True)
class Fingerprint:
    """The samples of all splits.

    Attributes:
        noun: what a sample is, ``image`` or ``text``.
        class_names: in label order.
        splits: by name: ``train``, ``validation``, ``test``, and of the labelled images that features are measured on
            ``labelled train`` and so on. Of streamed samples there is one for all those of a file.
        streamed: the number of samples of each split that is streamed.
    """

    noun: str
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    streamed: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def is_whole(self) -> bool:
        """Whether the content of every sample was read."""
        return all(sample.is_read for samples in self.splits.values() for sample in samples)

    @cached_property
    def summary(self) -> dict[str, dict[str, int | str]]:
        """The number of samples of every split and a digest of them, with their labels and in their order."""
        return {
            split: {
                f"{self.noun}s": self.streamed.get(split, len(samples)),
                "digest": _digest(repr(samples).encode("utf-8", "surrogatepass")),
            }
            for split, samples in self.splits.items()
        }

    def to_bytes(self, header: dict[str, Any]) -> bytes:
        """Return it as lines of JSON, compressed: ``header`` and what all have in common, then a line a sample."""
        first = {**header, "noun": self.noun, "class_names": self.class_names, "splits": self.summary}
        if self.streamed:
            first["streamed"] = dict(self.streamed)
        lines = [json.dumps(first)]
        lines += [json.dumps([split, *sample]) for split, samples in self.splits.items() for sample in samples]
        return gzip.compress("\n".join(lines).encode(), mtime=0)

    @classmethod
    def from_bytes(cls, content: bytes) -> tuple[Fingerprint, dict[str, Any]]:
        """Return what :meth:`to_bytes` was given.

        Raises:
            ValueError, OSError, EOFError, KeyError, TypeError: it is something else.
        """
        first, *lines = gzip.decompress(content).decode().split("\n")
        header = json.loads(first)
        splits: dict[str, list[Sample]] = {split: [] for split in header["splits"]}
        for line in lines:
            split, *sample = json.loads(line)
            splits[split].append(Sample(*sample))
        whole = {split: tuple(samples) for split, samples in splits.items()}
        return cls(header["noun"], tuple(header["class_names"]), whole, dict(header.get("streamed", {}))), header


def fingerprint(data: AnyData, *, splits: Iterable[str] | None = None) -> Fingerprint:
    """Return what the samples are.

    Texts and images in memory are read as a whole. Of streamed images the sizes of the files are taken, what their
    footers say, and which rows with which labels are in which split. Of images in files and tables the names and sizes
    are taken of all, and the content of all where that is at most ``MOST_BYTES`` in ``MOST_FILES`` samples; otherwise
    of a part, which depends on the names alone.

    Args:
        data: to be described.
        splits: these alone.
    """
    sources = {
        name: (source, owner)
        for name, source, owner in _sources(data)
        if source is not None and (splits is None or name in splits)
    }
    with Index() as index:
        plan = _Reading([source for source, _ in sources.values() if isinstance(source, ImageSource)], index)
        return Fingerprint(
            data.facts.noun,
            data.facts.class_names,
            {name: tuple(_samples(source, owner, plan)) for name, (source, owner) in sources.items()},
            {name: len(source) for name, (source, _) in sources.items() if source.blocks is not None},
        )


def digest_of(source: Source, data: AnyData) -> str:
    """Return a digest of samples, with their labels and in their order, wherever they lie; see :func:`fingerprint`.

    Args:
        source: the samples, of one split of ``data`` or a part of it.
        data: whose class names the labels go by.
    """
    with Index() as index:
        plan = _Reading([source] if isinstance(source, ImageSource) else [], index)
        return _digest(repr(tuple(_samples(source, data, plan))).encode("utf-8", "surrogatepass"))


def _sources(data: AnyData) -> Iterable[tuple[str, Source | None, AnyData]]:
    yield from (("train", data.train, data), ("validation", data.validation, data), ("test", data.test, data))
    if isinstance(data, ImageData) and data.labelled is not None:
        yield from ((f"labelled {name}", source, data.labelled) for name, source, _ in _sources(data.labelled))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _samples(source: Source, data: AnyData, plan: _Reading) -> Iterable[Sample]:
    names = data.facts.class_names
    if isinstance(source, WordSource):
        for index, (words, tags) in enumerate(zip(source.words, source.tags, strict=True)):
            label = " ".join("-" if tag == UNLABELLED else names[tag] for tag in tags)
            yield Sample(None, source.describe(index), _content(repr(words).encode("utf-8", "surrogatepass")), label)
        return
    labels = ["" if label == UNLABELLED else names[label] if names else str(label) for label in source.labels]
    if isinstance(source, TextSource):
        for index, text in enumerate(source.texts):
            label = labels[index] if source.values is None else repr(source.values[index].tolist())
            content = _content(repr(text).encode("utf-8", "surrogatepass"))
            yield Sample(None, source.describe(index), content, label)
        return
    assert isinstance(source, ImageSource)
    if is_streamed(source):
        targets = source.targets if isinstance(source, DenseSource) else None
        told = labels if targets is None else [targets.content(index) for index in range(len(source))]
        for name, version, taken in parts_of(source, told):
            size, _, content = version.partition(":")
            yield Sample(name, None, f"{size}:{_digest(f'{content} {taken}'.encode('utf-8', 'surrogatepass'))}", "")
        return
    for (leaf, index), label in zip(_leaves(source), labels, strict=True):
        yield plan.sample(leaf, index, label)


def _content(content: bytes) -> str:
    return f"{len(content)}:{_digest(content)}"


def _leaves(source: ImageSource) -> list[tuple[ImageSource, int]]:
    """Return where each image really is: the source that holds it, and its index there."""
    if isinstance(source, Subset):
        inner = _leaves(source.source)
        return [inner[index] for index in source.indices]
    if isinstance(source, Concatenation):
        return [*_leaves(source.first), *_leaves(source.second)]
    return [(source, index) for index in range(len(source))]


class _Reading:
    """Reads images, as many of them as may be.

    Args:
        sources: all that will be asked for.
        index: where digests of files are kept.
    """

    def __init__(self, sources: Sequence[ImageSource], index: Index) -> None:
        self._holders: dict[int, _Holder] = {}
        self._index = index
        sizes = self._sizes = dict[tuple[int, int], int]()
        for source in (source for source in sources if not is_streamed(source)):
            for leaf, number in _leaves(source):
                holder = self._holders.get(id(leaf)) or self._holders.setdefault(id(leaf), _holder(leaf))
                if not holder.in_memory:
                    sizes[id(leaf), number] = holder.size(number)
        total = sum(max(size, 0) for size in sizes.values())
        self._share = min(MOST_BYTES / total if total else 1.0, MOST_FILES / len(sizes) if sizes else 1.0)

    def sample(self, leaf: ImageSource, index: int, label: str) -> Sample:
        """Describe one image."""
        holder = self._holders[id(leaf)]
        name = holder.name(index)
        place = leaf.describe(index) if name is None else None
        targets = leaf.targets if isinstance(leaf, DenseSource) and label else None
        if holder.in_memory or self._share >= 1 or _share(name or place or "") < self._share:
            path = holder.path(index)
            if path is None:
                content = _digest_or_missing(holder.read(index))
            else:
                content = self._index.digest(path, lambda: _digest_or_missing(holder.read(index)))
            if targets is not None:
                label = _digest_or_missing(targets.content(index))
            return Sample(name, place, content, label)
        if targets is not None:
            label = f"{targets.size(index)}:"
        return Sample(name, place, f"{self._sizes[id(leaf), index]}:", label)


def _digest_or_missing(content: bytes | None) -> str:
    return "missing" if content is None else _content(content)


def _share(name: str) -> float:
    """Return a number in [0, 1) that depends on ``name`` alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "little") / 2**56


@dataclass(frozen=True)
class _Holder:
    """How to look at the images of one source.

    Attributes:
        size: bytes of an image; -1 for a missing one.
        read: the bytes that an image is made of; None for a missing one.
        name: its file in the data folder, or None.
        path: of the file that all of its content is in, or None.
        in_memory: whether reading costs nothing.
    """

    size: Callable[[int], int]
    read: Callable[[int], bytes | None]
    name: Callable[[int], str | None] = lambda index: None
    path: Callable[[int], str | None] = lambda index: None
    in_memory: bool = False


def _holder(source: ImageSource) -> _Holder:
    if isinstance(source, DenseSource):
        images, targets = _holder(source.images), source.targets
        in_memory = images.in_memory and targets.in_memory
        return replace(images, size=lambda index: images.size(index) + targets.size(index), in_memory=in_memory)
    if isinstance(source, FileSource):
        paths = source.paths
        root = source.root or os.path.commonpath([path.rpartition(os.sep)[0] for path in paths])
        prefix = root.rstrip(os.sep) + os.sep
        return _Holder(
            lambda index: _file_size(paths[index]),
            lambda index: _file_content(paths[index]),
            lambda index: paths[index].removeprefix(prefix),
            lambda index: paths[index],
        )
    if isinstance(source, TableSource):
        sizes = source.sizes()
        return _Holder(lambda index: sizes[index], lambda index: _cell_content(source.encoded(index)))
    if isinstance(source, ArraySource):
        return _Holder(lambda index: 0, source.pixels, in_memory=True)
    if isinstance(source, SceneSource | EdgeSource):
        return _Holder(lambda index: 0, source.recipe, in_memory=True)
    if isinstance(source, TorchvisionSource):
        arrays = source.arrays()
        if arrays is not None:
            return _Holder(lambda index: 0, lambda index: arrays[index].tobytes(), in_memory=True)
    return _Holder(lambda index: _NOMINAL, lambda index: _pixels(source, index))


_NOMINAL = 2**16
"""Bytes that an image is taken to have whose size is not known before it is decoded."""


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a Path per image of a large set is a waste
    except OSError:
        return -1


def _file_content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return None


def _cell_content(encoded: File | None) -> bytes | None:
    return encoded if isinstance(encoded, bytes) or encoded is None else _file_content(os.fspath(encoded))


def _pixels(source: ImageSource, index: int) -> bytes | None:
    try:
        image, target = source.load(index)
    except UnreadableImage:
        return None
    return f"{image.size}".encode() + image.tobytes() + _target_content(target)


def _target_content(target: Any) -> bytes:
    """Return what a target is made of; nothing of a class, which is a sample's label already."""
    if isinstance(target, Integral):
        return b""
    if isinstance(target, Mapping):
        return b"".join(f"{name}".encode() + _target_content(value) for name, value in target.items())
    if isinstance(target, Partner):
        shown = target.shown()
        return b"" if shown is None else _target_content(Picture(shown))
    if isinstance(target, Picture):
        return f"{target.image.size}{target.is_known}".encode() + target.image.tobytes()
    if isinstance(target, Tensor):
        return f"{target.dtype}{tuple(target.shape)}".encode() + target.numpy().tobytes()
    return repr(target).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Change:
    """What has become of a split.

    Attributes:
        split: its name.
        noun: what a sample is.
        added, removed, changed, relabelled: what the samples are called.
        moved: for each other split how many of the added ones were in it before.
        reordered: the same samples are in another order.
    """

    split: str
    noun: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    moved: Mapping[str, int] | None = None
    reordered: bool = False

    def __str__(self) -> str:
        from_ = "".join(f", {count} of them from {split}" for split, count in (self.moved or {}).items())
        parts = [
            _told(self.added, "added", from_),
            _told(self.removed, "removed"),
            _told(self.changed, "changed"),
            _told(self.relabelled, "with another label"),
            "in another order" if self.reordered else "",
        ]
        return f"{self.split}: {', '.join(part for part in parts if part)}"


def _told(names: Sequence[str], what: str, more: str = "") -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what}{more} ({shown})"


def find_changes(before: Fingerprint, now: Fingerprint, *, splits: Iterable[str], order: bool = False) -> list[Change]:
    """Return what has changed in these splits.

    Files are found again by name, samples without one by their content, or by their place where not all was read.

    Args:
        before: what the samples were.
        now: what they are; it has all the splits.
        splits: to look at.
        order: whether the order of the samples matters.
    """
    were, are = before.summary, now.summary
    changes = []
    by_content = before.is_whole and now.is_whole
    for split in splits:
        if were.get(split) == are.get(split):
            continue
        old = _by_key(before.splits.get(split, ()), by_content)
        new = _by_key(now.splits.get(split, ()), by_content)
        added = [key for key in new if key not in old]
        both = [key for key in new if key in old]
        elsewhere = {
            other: set(_by_key(samples, by_content)) for other, samples in before.splits.items() if other != split
        }
        moved = {other: count for other, keys in elsewhere.items() if (count := sum(key in keys for key in added))}
        change = Change(
            split,
            now.noun,
            added=tuple(new[key].shown for key in added),
            removed=tuple(old[key].shown for key in old if key not in new),
            changed=tuple(new[key].shown for key in both if not _same_content(old[key], new[key])),
            relabelled=tuple(new[key].shown for key in both if not _same_label(old[key], new[key])),
            moved=moved,
            reordered=order and list(old) != list(new) and old.keys() == new.keys(),
        )
        if change.added or change.removed or change.changed or change.relabelled or change.reordered:
            changes.append(change)
    return changes


def _by_key(samples: Iterable[Sample], by_content: bool) -> dict[str, Sample]:
    """Return the samples by what they are found again by, numbered by their labels where several have the same."""
    alike: dict[str, list[Sample]] = {}
    for sample in samples:
        key = sample.name or (sample.content if by_content else sample.place) or ""
        alike.setdefault(key, []).append(sample)
    return {
        f"{key} {number}" if number else key: sample
        for key, same in alike.items()
        for number, sample in enumerate(sorted(same, key=lambda sample: sample.label))
    }


def _same_content(old: Sample, new: Sample) -> bool:
    if old.is_read and new.is_read:
        return old.content == new.content
    return old.content.partition(":")[0] == new.content.partition(":")[0]


def _same_label(old: Sample, new: Sample) -> bool:
    if old.is_read and new.is_read:
        return old.label == new.label
    return old.label.partition(":")[0] == new.label.partition(":")[0]


def find_trained_on(record: Fingerprint, now: Fingerprint, *, split: str, by_content: bool) -> list[str]:
    """Return which samples of ``now`` a run was trained on that were not in its own split of the same name.

    Args:
        record: of the run.
        now: what is to be measured on.
        split: its split.
        by_content: also find samples that are in no file of their own; in other data an equal one may be another.
    """
    by_content = by_content and record.is_whole and now.is_whole
    own, trained, present = (
        {key: sample for key, sample in _by_key(samples, by_content).items() if sample.name or by_content}
        for samples in (record.splits.get(split, ()), record.splits.get("train", ()), now.splits[split])
    )
    return [
        sample.shown
        for key, sample in present.items()
        if key not in own and key in trained and _same_content(trained[key], sample)
    ]
