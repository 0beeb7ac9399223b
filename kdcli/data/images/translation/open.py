"""From a data set's name to splits of images that are to become other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kdcli.base.errors import UserError, beside, hint_of_moved, reading
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.base.text import expand_user
from kdcli.config.data import DataConfig
from kdcli.data.columns import extension_of
from kdcli.data.images.deep import find_range, set_range
from kdcli.data.images.dense.files import Paths, source_of
from kdcli.data.images.dense.materials import SPLITS, find_materials
from kdcli.data.images.dense.open import open_dense
from kdcli.data.images.dense.sizes import check_sizes
from kdcli.data.images.dense.splits import complete_dense
from kdcli.data.images.open import open_data
from kdcli.data.images.sources import DenseSource, FileSource, ImageSource, OfficialSplits
from kdcli.data.images.splits import ImageData
from kdcli.data.images.tables import holds_tables
from kdcli.data.images.translation.edges import COUNTS, SIZE, EdgeSource
from kdcli.data.images.translation.folders import FORMS, Folders, Two, find_two, images_of, notes_on, pairs_of
from kdcli.data.images.translation.sources import ColouredMasks, Partners, PictureTargets
from kdcli.data.images.translation.tables import Columns, Pairs, find_columns, kinds_in, pairs_in

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
            data = _of_files(config, task, seed=seed)
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
    notes = (*labelled.facts.notes, f"Images of {own} are to become like those of {other}.")
    if config.train_images is not None and splits["train"] is not None:
        first, second = (side.take(range(min(config.train_images, len(side)))) for side in splits["train"])
        splits["train"] = first, second
        told = f"Training images: the first {len(first)} of {own} and {len(second)} of {other}; the rest left out."
        notes = (*notes, told)
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


def _of_files(config: DataConfig, task: str, *, seed: int) -> ImageData:
    path, is_named = expand_user(config.name), extension_of(config.name) is not None or config.name.startswith("hf:")
    if not is_named and not path.exists():
        hints = (hint_of_moved(config.name), beside(config.name), FORMS)
        raise UserError(f"There is no data set or folder {config.name!r}.", " ".join(filter(None, hints)))
    is_folder = not is_named and path.is_dir() and not holds_tables(path)
    if is_folder and (folders := find_two(path, config.splits)) is not None:
        _refuse(config, _OF_TABLES, f"and {config.name} is no table")
        return _of_folders(config, folders, path, task, seed)
    columns = find_columns(config, path)
    if columns is None:
        what = "has no two folders A/ and B/ of images" if path.is_dir() else "is no table with two columns of images"
        raise UserError(f"{path} {what}.", FORMS)
    if not columns.reads_subset:
        _refuse(config, ("subset",), f"and {config.name} is not a data set of the hub")
    return _of_columns(config, columns, task, seed)


def _of_folders(config: DataConfig, found: Folders, root: Path, task: str, seed: int) -> ImageData:
    if config.direction == "b-to-a":
        found = replace(found, splits={split: Two(two.b, two.a) for split, two in found.splits.items()})
    is_paired = found.is_paired if config.pairs == "auto" else config.pairs == "paired"
    unread = Counter[str]()
    if is_paired:
        pairs = {}
        for split, two in found.splits.items():
            images, files = pairs_of(two, split, unread)
            pairs[split] = Pairs(source_of(images, root), Paths(files), [0] * len(files), FileSource(files))
        notes = [f"Form: {found.form}, paired by their names.", *found.notes, *notes_on(unread)]
        return _paired(config, pairs, notes, task, seed)
    _refuse_unpaired(config, "the data are two folders without equal names, or data.pairs")
    sides = []
    for side in ("a", "b"):
        lists = {split: images_of(getattr(two, side), unread) for split, two in found.splits.items()}
        sides.append({split: FileSource(paths, (0,) * len(paths), root=root) for split, paths in lists.items()})
    notes = [f"Form: {found.form}, unpaired.", *found.notes, *notes_on(unread)]
    return _unpaired(config, sides, notes, task, seed)


def _of_columns(config: DataConfig, found: Columns, task: str, seed: int) -> ImageData:
    is_swapped = config.direction == "b-to-a"
    if config.pairs == "unpaired":
        _refuse_unpaired(config, "data.pairs")
        sides = kinds_in(found)
        notes = ["Form: table, unpaired.", *found.notes]
        return _unpaired(config, sides[::-1] if is_swapped else sides, notes, task, seed)
    notes = ["Form: table, a pair in each row.", *found.notes]
    pairs = pairs_in(found, is_swapped=is_swapped, notes=notes)
    return _paired(config, pairs, notes, task, seed)


def _paired(config: DataConfig, pairs: Mapping[str, Pairs], notes: Sequence[str], task: str, seed: int) -> ImageData:
    for two in pairs.values():
        check_sizes(two.images, two.targets)
    deep_range, more = find_range(pairs["train"].images, config.deep_range)
    theirs, told = find_range(pairs["train"].shown, None)
    sources = {}
    for split, two in pairs.items():
        targets = PictureTargets(two.targets, two.labels)
        targets.deep_range = theirs
        sources[split] = DenseSource(two.images, targets)
    notes = (*notes, *more, *(f"Targets: {note}" for note in told))
    official = OfficialSplits((), sources["train"], sources.get("validation"), sources.get("test"), notes)

    def unlabelled(images: ImageSource) -> ImageSource:
        none = len(images)
        return DenseSource(images, PictureTargets(Paths([None] * none), [UNLABELLED] * none))

    data = complete_dense(official, config, task=task, kind="image", seed=seed, unlabelled=unlabelled)
    set_range((data.train, data.validation, data.test), deep_range)
    return replace(data, deep_range=deep_range)


def _unpaired(
    config: DataConfig, sides: Sequence[Mapping[str, ImageSource]], notes: Sequence[str], task: str, seed: int
) -> ImageData:
    """Return the images A and B, each side by split and cut by itself."""
    both, told = list[ImageData](), list(notes)
    for name, sources in zip("AB", sides, strict=True):
        official = OfficialSplits((), sources["train"], sources.get("validation"), sources.get("test"))
        data = complete_dense(official, config, task=task, kind="unpaired", seed=seed, unlabelled=_never)
        deep_range, more = find_range(data.train, config.deep_range)
        set_range((data.train, data.validation, data.test), deep_range)
        both.append(replace(data, deep_range=deep_range))
        told += [_of_side(name, note) for note in (*data.facts.notes, *more)]
    first, second = both
    splits: dict[str, tuple[ImageSource, ImageSource] | None] = {
        "train": (first.train, second.train),
        "validation": (first.validation, second.validation),
        "test": None if first.test is None or second.test is None else (first.test, second.test),
    }
    return _together(config, first.facts, splits, told, seed=seed, deep_range=first.deep_range)


def _of_side(name: str, note: str) -> str:
    """Return a note on one of the two kinds of images, with whatever it begins with at its beginning."""
    split, colon, rest = note.partition(": ")
    is_of_split = colon and split in ("Test", "Validation", "Training images")
    return f"{split}: of {name} {rest}" if is_of_split else f"{name}: {note}"


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

    def of_both(split: str) -> ImageSource | None:
        two = splits[split]
        if two is None:
            return None
        first, second = two
        number = max(len(first), len(second))
        told.append(f"{split} {len(first)} and {len(second)}")
        images = first if len(first) == number else first.take(place % len(first) for place in range(number))
        return DenseSource(images, Partners(second, number, seed))

    train, validation, test = map(of_both, ("train", "validation", "test"))
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
