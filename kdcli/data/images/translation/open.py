"""From a data set's name to splits of images that are to become other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdcli.base.errors import UserError, hint_of_moved, reading
from kdcli.base.facts import DataFacts
from kdcli.base.text import expand_user
from kdcli.config.data import DataConfig
from kdcli.data.images.deep import find_range, set_range
from kdcli.data.images.dense.files import Paths, source_of
from kdcli.data.images.dense.materials import SPLITS, find_materials
from kdcli.data.images.dense.open import open_dense
from kdcli.data.images.dense.sizes import check_sizes
from kdcli.data.images.dense.splits import complete_dense
from kdcli.data.images.open import open_data
from kdcli.data.images.sources import DenseSource, FileSource, ImageSource, OfficialSplits
from kdcli.data.images.splits import ImageData
from kdcli.data.images.translation.edges import COUNTS, SIZE, EdgeSource
from kdcli.data.images.translation.folders import FORMS, Folders, Two, find_two, images_of, notes_on, pairs_of
from kdcli.data.images.translation.sources import ColouredMasks, Partners, PictureTargets

DEMO = "demo:scenes-edges"
_OF_TABLES = ("image_column", "label_column", "subset")


def open_translation(config: DataConfig, task: str, *, seed: int) -> ImageData:
    """Open the images that ``config`` names, with what they are to become, and split them.

    The label kind is ``image`` of pairs, whose targets are float32 (3, H, W) from -1 to 1, and else ``unpaired``: the
    target beside a sample is any image of the other kind, another one each epoch. Of two kinds of images a split has as
    many samples as the larger one; of the smaller one some are then repeated, and in evaluation none is shown twice as
    a target.

    Args:
        config: name, splits, and how the two kinds belong together.
        task: the task's name.
        seed: the run's; cuts the validation split, and draws what stands beside one another.

    Raises:
        UserError: an unknown name or form, missing or unsuitable files, or a split that can't be made.
    """
    with reading(config.name):
        if config.mask_colors and config.kinds is not None:
            raise UserError(
                "data.mask_colors and data.kinds are both set.", "Masks are pairs, kinds are none: drop one."
            )
        if not config.mask_colors:
            _refuse(
                config, ("class_names", "ignore_label", "palette"), "which is of masks, and data.mask_colors is not"
            )
        if config.mask_colors:
            data = _of_masks(config, seed=seed)
        elif config.kinds is not None:
            data = _of_kinds(config, seed=seed)
        elif config.name == DEMO:
            data = _demo(config, task, seed=seed)
        else:
            data = _of_folders(config, task, seed=seed)
    way = "A to B" if config.direction == "a-to-b" else "B to A"
    facts = replace(data.facts, task=task, class_names=(), notes=(*data.facts.notes, f"Direction: from {way}."))
    return replace(data, facts=facts)


def _refuse(config: DataConfig, keys: Sequence[str], why: str) -> None:
    for key in keys:
        if getattr(config, key) != DataConfig.model_fields[key].get_default():
            raise UserError(f"data.{key} is set, {why}.", "Leave it out.")


def _demo(config: DataConfig, task: str, *, seed: int) -> ImageData:
    _refuse(config, ("splits", "deep_range", *_OF_TABLES), f"and {DEMO} is in no files of yours")
    if config.pairs == "unpaired":
        raise UserError(f"{DEMO} is of pairs, and data.pairs is unpaired.", "Leave it out.")
    if config.unlabelled is not None:
        raise UserError(f"data.unlabelled is set, and {DEMO} is in no files of yours.", "Leave it out.")
    materials = find_materials(config.root)
    train, validation, test = (
        EdgeSource(materials, split, COUNTS[split], is_reversed=config.direction == "b-to-a") for split in SPLITS
    )
    note = (
        f"Crops of {materials.photos}'s photographs (A) and their edges by Sobel's filter (B), {SIZE}x{SIZE} pixels;"
        " the splits share no photograph, or no part of one."
    )
    official = OfficialSplits((), train, validation, test, (note,))
    return complete_dense(official, config, task=task, kind="image", seed=seed, unlabelled=_never)


def _never(images: ImageSource) -> ImageSource:
    raise AssertionError("refused before")


def _of_masks(config: DataConfig, *, seed: int) -> ImageData:
    """Return images with masks as pairs: the masks in colours, and the images."""
    if config.pairs == "unpaired" or config.unlabelled is not None:
        raise UserError(
            "data.mask_colors is of masks with images, and data.pairs is unpaired or data.unlabelled is set.",
            "Leave these out.",
        )
    data = open_dense(config.model_copy(update={"mask_colors": False}), "pixels", seed=seed)
    if len(data.facts.class_names) > 255:
        raise UserError(f"{config.name} has more than 255 classes: two would have one colour.", "Take other data.")

    def coloured(source: ImageSource) -> ImageSource:
        return ColouredMasks(source, is_reversed=config.direction == "b-to-a")

    names = ", ".join(data.facts.class_names)
    note = f"A are the masks, in Pascal VOC's colours by the class's number: {names}; B are the images."
    facts = replace(data.facts, label_kind="image", notes=(*data.facts.notes, note))
    test = None if data.test is None else coloured(data.test)
    return replace(data, facts=facts, train=coloured(data.train), validation=coloured(data.validation), test=test)


def _of_kinds(config: DataConfig, *, seed: int) -> ImageData:
    """Return two classes of labelled images."""
    assert config.kinds is not None
    _refuse_unpaired(config, "data.kinds")
    own, other = config.kinds if config.direction == "a-to-b" else config.kinds[::-1]
    if own == other:
        raise UserError(f"data.kinds names {own} twice.", "Name two classes.")
    labelled = open_data(config.model_copy(update={"classes": (own, other), "train_images": None}), seed=seed)
    places = {name: number for number, name in enumerate(labelled.facts.class_names)}
    if own not in places or other not in places:
        raise UserError(f"data.kinds: the classes are {', '.join(places)}.", "Name them as they are called here.")

    def of(source: ImageSource | None, name: str) -> ImageSource:
        assert source is not None
        return source.take(number for number, label in enumerate(source.labels) if label == places[name])

    def both(split: str, source: ImageSource | None) -> tuple[ImageSource, ImageSource] | None:
        return None if source is None else (of(source, own), of(source, other))

    splits = {
        "train": both("train", labelled.train),
        "validation": both("validation", labelled.validation),
        "test": both("test", labelled.test),
    }
    if config.train_images is not None and splits["train"] is not None:
        first, second = (side.take(range(min(config.train_images, len(side)))) for side in splits["train"])
        splits["train"] = first, second
    note = f"Images of {own} are to become like those of {other}."
    notes = (*labelled.facts.notes, note)
    return _together(config, labelled.facts, splits, notes, seed=seed, deep_range=labelled.deep_range)


def _refuse_unpaired(config: DataConfig, what: str) -> None:
    if config.pairs == "paired":
        raise UserError(f"data.pairs is paired, and {what} is of images without pairs.", "Leave it out.")
    for key in ("labelled_images", "unlabelled"):
        if getattr(config, key) is not None:
            raise UserError(
                f"data.{key} is set, and images without pairs have no targets of their own to be without.",
                "Leave it out.",
            )


def _of_folders(config: DataConfig, task: str, *, seed: int) -> ImageData:
    path = expand_user(config.name)
    if not path.is_dir():
        hints = (hint_of_moved(config.name), FORMS)
        what = "is no folder" if path.exists() else "is not there"
        raise UserError(f"{config.name} {what}.", " ".join(filter(None, hints)))
    _refuse(config, _OF_TABLES, f"and {config.name} is no table")
    found = find_two(path, config.splits)
    if config.direction == "b-to-a":
        found = replace(found, splits={split: Two(two.b, two.a) for split, two in found.splits.items()})
    is_paired = found.is_paired if config.pairs == "auto" else config.pairs == "paired"
    return (_paired if is_paired else _unpaired)(config, found, path, task, seed)


def _paired(config: DataConfig, found: Folders, root: Path, task: str, seed: int) -> ImageData:
    unread, sources, targets = Counter[str](), {}, list[PictureTargets]()
    for split, two in found.splits.items():
        images, files = pairs_of(two, split, unread)
        source, paths = source_of(images, root), Paths(files)
        check_sizes(source, paths)
        targets.append(PictureTargets(paths))
        sources[split] = DenseSource(source, targets[-1])
    notes = [f"Form: {found.form}, paired by their names.", *found.notes, *notes_on(unread)]
    deep_range, more = find_range(sources["train"], config.deep_range)
    for each, two in zip(targets, found.splits.values(), strict=True):
        if each is targets[0]:
            theirs, told = find_range(FileSource(images_of(two.b, Counter())), None)
            more += [f"Targets: {note}" for note in told]
        each.deep_range = theirs
    official = OfficialSplits((), sources["train"], sources.get("validation"), sources.get("test"), (*notes, *more))

    def unlabelled(images: ImageSource) -> ImageSource:
        return DenseSource(images, PictureTargets(Paths([None] * len(images))))

    data = complete_dense(official, config, task=task, kind="image", seed=seed, unlabelled=unlabelled)
    set_range((data.train, data.validation, data.test), deep_range)
    return replace(data, deep_range=deep_range)


def _unpaired(config: DataConfig, found: Folders, root: Path, task: str, seed: int) -> ImageData:
    _refuse_unpaired(config, "the data are two folders without equal names, or data.pairs")
    unread, sides, notes = Counter[str](), list[ImageData](), [f"Form: {found.form}, unpaired.", *found.notes]
    for side in ("a", "b"):
        files = {split: images_of(getattr(two, side), unread) for split, two in found.splits.items()}
        sources = {split: FileSource(paths, (0,) * len(paths), root=root) for split, paths in files.items()}
        official = OfficialSplits((), sources["train"], sources.get("validation"), sources.get("test"))
        data = complete_dense(official, config, task=task, kind="unpaired", seed=seed, unlabelled=_never)
        deep_range, more = find_range(data.train, config.deep_range)
        set_range((data.train, data.validation, data.test), deep_range)
        sides.append(replace(data, deep_range=deep_range))
        notes += [f"{side.upper()}: {note}" for note in (*data.facts.notes, *more)]
    first, second = sides
    splits: dict[str, tuple[ImageSource, ImageSource] | None] = {
        "train": (first.train, second.train),
        "validation": (first.validation, second.validation),
        "test": None if first.test is None or second.test is None else (first.test, second.test),
    }
    notes += notes_on(unread)
    return _together(config, first.facts, splits, notes, seed=seed, deep_range=first.deep_range)


def _together(
    config: DataConfig,
    facts: DataFacts,
    splits: dict[str, tuple[ImageSource, ImageSource] | None],
    notes: Sequence[str],
    *,
    seed: int,
    deep_range: tuple[float, float] | None,
) -> ImageData:
    """Return the images of the first kind, each beside one of the second."""
    told: list[str] = []

    def beside(split: str) -> ImageSource | None:
        two = splits[split]
        if two is None:
            return None
        first, second = two
        number = max(len(first), len(second))
        told.append(f"{split} {len(first)} and {len(second)}")
        images = first if len(first) == number else first.take(place % len(first) for place in range(number))
        return DenseSource(images, Partners(second, number, seed))

    train, validation, test = map(beside, ("train", "validation", "test"))
    assert train is not None
    assert validation is not None
    counts = f"Images of the two kinds: {', '.join(told)}."
    facts = replace(
        facts,
        name=config.name,
        class_names=(),
        num_train=len(train),
        num_labelled=len(train),
        num_validation=len(validation),
        num_test=0 if test is None else len(test),
        notes=(*notes, counts),
        label_kind="unpaired",
    )
    return ImageData(facts=facts, train=train, validation=validation, test=test, deep_range=deep_range)
