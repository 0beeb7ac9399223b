"""From a data set's name to its splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kdcli.base import extensions
from kdcli.base.errors import UserError, beside, did_you_mean, hint_of_moved, reading
from kdcli.base.facts import UNLABELLED
from kdcli.base.tasks import task_of
from kdcli.base.text import counted, expand_user
from kdcli.config.data import DataConfig
from kdcli.data.classes import listing
from kdcli.data.columns import extension_of
from kdcli.data.images.decode import Range
from kdcli.data.images.deep import find_range, set_range
from kdcli.data.images.demo import DEMOS, open_demo
from kdcli.data.images.dense.splits import complete_dense
from kdcli.data.images.folders import open_any_folder, open_folder
from kdcli.data.images.path_tables import find_lists, open_lists
from kdcli.data.images.several import without_labels
from kdcli.data.images.shards import holds_shards, open_shards
from kdcli.data.images.sources import OfficialSplits
from kdcli.data.images.splits import ImageData, complete
from kdcli.data.images.stream_open import open_streams
from kdcli.data.images.tables import holds_tables, open_extension, open_hub, open_local_tables, open_path_tables
from kdcli.data.images.torchvision_sets import SETS, open_torchvision
from kdcli.data.images.unlabelled import complete_unlabelled
from kdcli.data.other_tasks import names_targets, task_that_reads

_FORMS = (
    "Data are named as demo:digits, torchvision:CIFAR100, hf:org/name, a folder of class folders, parquet and arrow "
    "files, tar files of images, or a csv, tsv or jsonl file of paths and labels."
)


def open_data(config: DataConfig, *, seed: int, takes_several: bool = False) -> ImageData:
    """Open the data set that ``config`` names, and split it.

    Args:
        config: name, splits and labels.
        seed: the run's; cuts the validation split and draws ``labels_per_class``. Test images never depend on it.
        takes_several: whether images may have any number of labels each; otherwise they have a class each.

    Raises:
        UserError: an unknown name, missing or unsuitable files, a failed download, or a split that can't be made.
    """
    with reading(config.name):
        official = _open(config, needs_labels=True)
        deep_range, notes = find_range(official.train, config.deep_range)
        if official.label_kind == "classes":
            data = _complete_several(official, config, takes_several=takes_several, seed=seed)
        else:
            data = complete(official, config, seed=seed)
        return _with_range(data, deep_range, notes)


def _complete_several(official: OfficialSplits, config: DataConfig, *, takes_several: bool, seed: int) -> ImageData:
    if not takes_several:
        raise UserError(
            f"{config.name} has any number of labels an image, and one class each is wanted here.",
            "Name other data; data.label_column names another column.",
        )
    for key in ("classes", "labels_per_class"):
        if getattr(config, key) is not None:
            raise UserError(
                f"data.{key} is set, and an image of {config.name} has any number of labels.",
                "Leave it out; data.train_images takes fewer images.",
            )
    names = official.class_names
    if len(names) < 2:
        raise UserError(
            f"{config.name} has {counted(len(names), 'label')}; at least 2 are wanted.",
            "data.label_column names another column.",
        )
    return complete_dense(
        official,
        config,
        task=task_of("image", "sequence").name,
        kind="classes",
        seed=seed,
        unlabelled=lambda images: without_labels(images, len(names)),
    )


def open_unlabelled(config: DataConfig, evaluation: DataConfig | None, *, seed: int) -> ImageData:
    """Open the images that ``config`` names for a task that reads no labels, and split them.

    Args:
        config: name and splits; a folder may hold its images in any depth.
        evaluation: the labelled data that the student's features are measured on; None for those of ``config`` itself,
            where they have labels, and ``none`` for no data.
        seed: the run's; cuts the validation split.

    Raises:
        UserError: as :func:`open_data`, or ``evaluation`` is ``config``'s own data.
    """
    labelled: ImageData | None = None
    if evaluation is not None and evaluation.name != "none" and _place(evaluation) == _place(config):
        raise UserError(
            f"--eval-data is --data itself: {config.name}.",
            "Leave --eval-data out: the labels of --data are used, where they have any.",
        )
    with reading(config.name):
        official = _open(config, needs_labels=False)
        deep_range, notes = find_range(official.train, config.deep_range)
    if evaluation is not None and evaluation.name != "none":
        if evaluation.deep_range is None:  # the student reads both alike
            evaluation = evaluation.model_copy(update={"deep_range": deep_range})
        labelled = open_data(evaluation, seed=seed)
    with reading(config.name):
        data = complete_unlabelled(official, config, labelled, uses_own_labels=evaluation is None, seed=seed)
        return _with_range(data, deep_range, notes)


def open_for_more(config: DataConfig, *, seed: int) -> ImageData:
    """Open the images that ``config`` names for a task that makes more like them, with classes where they have any.

    Without classes every label is 0, and ``class_names`` is empty; validation and test are then at most so many as
    :func:`~kdcli.data.images.unlabelled.complete_unlabelled` leaves.

    Args:
        config: name, splits and labels.
        seed: the run's; cuts the validation split and draws ``train_images``.

    Raises:
        UserError: as :func:`open_data`.
    """
    with reading(config.name):
        official = _open(config, needs_labels=False)
        deep_range, notes = find_range(official.train, config.deep_range)
        if len(official.class_names) > 1 and any(label != UNLABELLED for label in official.train.labels):
            return _with_range(complete(official, config, seed=seed), deep_range, notes)
        for key in ("classes", "labels_per_class"):
            if getattr(config, key) is not None:
                raise UserError(f"data.{key} is set, and {config.name} has no classes.", "Leave it out.")
        data = complete_unlabelled(official, config, None, uses_own_labels=False, seed=seed)
        train, validation, test = (
            None if source is None else source.take(range(len(source)), [0] * len(source))
            for source in (data.train, data.validation, data.test)
        )
        assert train is not None
        assert validation is not None
        facts = replace(data.facts, num_labelled=data.facts.num_train)
        return _with_range(ImageData(facts, train, validation, test), deep_range, notes)


def _with_range(data: ImageData, deep_range: Range | None, notes: list[str]) -> ImageData:
    set_range((data.train, data.validation, data.test), deep_range)
    facts = replace(data.facts, notes=(*data.facts.notes, *notes))
    return replace(data, facts=facts, deep_range=deep_range)


def _place(config: DataConfig) -> str:
    """Return the name, of a local file or folder its path as it is without links."""
    path = expand_user(config.name)
    return str(path.resolve()) if path.exists() else config.name


def _open(config: DataConfig, *, needs_labels: bool) -> OfficialSplits:
    scheme, colon, rest = config.name.partition(":")
    if config.label_kind == "number":
        raise UserError("data.label_kind is number, and images have classes or several labels.", "Leave it out.")
    if config.streaming:
        return open_streams(config, needs_labels=needs_labels)
    if (entry := extension_of(config.name)) is not None:
        return open_extension(entry, config, needs_labels=needs_labels)
    if scheme == "hf" and rest:
        return open_hub(rest, config, needs_labels=needs_labels)
    path = expand_user(config.name)
    is_tables = path.exists() and holds_tables(path)
    lists = _lists(path, config, needs_labels=needs_labels) if path.exists() and not is_tables else []
    if lists and config.subset is None:
        return open_path_tables(open_lists(path, lists, config), config, needs_labels=needs_labels)
    if path.exists() and not is_tables and holds_shards(path) and config.subset is None:
        return open_shards(path, config, needs_labels=needs_labels)
    options = ("image_column", "label_column", "label_kind", "subset")
    if not is_tables and (given := [f"data.{key}" for key in options if getattr(config, key) is not None]):
        raise UserError(
            f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set, but {config.name} is not a table.",
            "Leave it out: it is for hf: data sets, parquet, arrow, csv, tsv and jsonl files.",
        )
    has_splits = path.is_dir() or is_tables
    if config.splits is not None and (not has_splits or (colon and scheme in ("demo", "torchvision"))):
        raise UserError(
            f"data.splits is set, but {config.name} is neither a folder nor an hf: data set.", "Leave it out."
        )
    if colon and scheme == "demo":
        return open_demo(rest, root=config.root)
    if colon and scheme == "torchvision":
        return open_torchvision(rest, root=config.root)
    if is_tables:
        return open_local_tables(path, config, needs_labels=needs_labels)
    if path.is_dir():
        found = open_folder(path, config.splits) if needs_labels else open_any_folder(path, config.splits)
        return _with_lists_told(found, path, config) if needs_labels else found
    if path.exists():
        raise UserError(
            f"{path} is neither a folder nor a file of images that kdcli reads.",
            f"{task_that_reads(path)} {_FORMS}".strip(),
        )
    hints = (hint_of_moved(config.name), beside(config.name) or _suggestion(config.name), _FORMS)
    raise UserError(f"There is no data set or folder {config.name!r}.", " ".join(filter(None, hints)))


def _lists(path: Path, config: DataConfig, *, needs_labels: bool) -> list[str]:
    """Return the names of the lists of paths that are read; nothing where the images are in folders or elsewhere.

    In a folder they are read where columns are named, or where its folders are no classes.
    """
    names = find_lists(path, config)
    if not names or (path.is_dir() and not needs_labels and config.image_column is None):
        return []
    if path.is_file():
        return [] if needs_labels and config.label_column is None and names_targets(path) else names
    if config.image_column is not None or config.label_column is not None:
        return names
    try:
        return names if len(open_folder(path, config.splits).class_names) < 2 else []
    except UserError:
        return names


def _with_lists_told(found: OfficialSplits, path: Path, config: DataConfig) -> OfficialSplits:
    """Return class folders with a note on lists of images beside them, which are not read."""
    names = find_lists(path, config)
    if not names:
        return found
    note = f"{listing(names)} names images too and is not read: give its own name for that, in place of the folder's."
    return replace(found, notes=(*found.notes, note))


def _suggestion(name: str) -> str:
    """Return what a name without a valid prefix, or with a misspelt one, may have meant."""
    others = [f"{extension}:" for extension in extensions.names("data")]
    valid = [f"demo:{demo}" for demo in DEMOS] + [f"torchvision:{set_name}" for set_name in SETS] + others
    bare = name.rpartition(":")[2].lower()
    if exact := [full for full in valid if full.partition(":")[2].lower() == bare]:
        return f"Did you mean {exact[0]}?"
    return did_you_mean(name, valid)
