"""From the name of a set of texts to its splits: tables, lines, class folders, the hub, and a demo."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdcli.base import extensions
from kdcli.base.errors import UserError, beside, did_you_mean, hint_of_moved, reading
from kdcli.base.facts import UNLABELLED, DataFacts, LabelKind
from kdcli.base.tasks import TASKS, Target
from kdcli.base.text import expand_user
from kdcli.config.data import DataConfig, SplitsConfig
from kdcli.data.classes import alike, order_notes
from kdcli.data.columns import choose_splits, extension_of, load_extension, silence_datasets, unread
from kdcli.data.csv_files import read_csv
from kdcli.data.images.tables import as_patterns, files_by_split
from kdcli.data.labels import UnclearLabels, kind_of
from kdcli.data.listing import list_files, suffix_of
from kdcli.data.splits import MAX_PAIRS, TEST_SEED, cut_indices, draw_indices, hold_out, how_cut, keep_labels
from kdcli.data.stratify import draw_part
from kdcli.data.texts.batch import Text
from kdcli.data.texts.columns import label_column, read_texts, text_columns
from kdcli.data.texts.folders import read_class_folders
from kdcli.data.texts.labels import read_class, read_classes, read_number, text_source
from kdcli.data.texts.sources import TextData, TextSource, labelled_indices
from kdcli.data.texts.word_files import FORMATS as WORD_FORMATS
from kdcli.data.texts.word_files import FORMS as WORD_FORMS
from kdcli.data.texts.word_files import read_words, table_of_lines
from kdcli.data.texts.words import WordSource

if TYPE_CHECKING:
    from datasets import Dataset

DEMOS = ("python_docs",)
_FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
"""A file's extension -> the loader of ``datasets``."""
_FORMS = (
    "Texts are a csv, tsv, jsonl, parquet or txt file, a folder of such files (train, validation and test by their "
    "names), a folder of class folders of txt files, hf:org/name, or demo:python_docs."
)

_Reads = Literal["texts", "labels", "words"]
"""What is read: texts alone, texts with labels, or words with a label each."""


@dataclass(frozen=True)
class _Splits:
    """The splits that the data come with; ``train`` is everything where there are none."""

    class_names: tuple[str, ...]
    train: TextSource
    validation: TextSource | None
    test: TextSource | None
    kind: LabelKind
    notes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    """That the texts, or both texts of a pair, are from."""


def open_texts(config: DataConfig, *, task: str, seed: int, unclear_are_classes: bool = False) -> TextData:
    """Open the texts that ``config`` names, and split them.

    Args:
        config: name, columns, splits and labels.
        task: ``text-classification``, ``token-classification``, or one that reads no labels: their texts' own tokens
            are what language models learn, and ``sentence-embedding`` has nothing but the teacher.
        seed: the run's; cuts the validation split. Test texts never depend on it.
        unclear_are_classes: take labels as classes that could be numbers as well; otherwise they are refused.

    Raises:
        UserError: an unknown name, missing or unsuitable files or columns, labels that could be classes as well as
            numbers, or a split that can't be made.
    """
    reads = _READS_OF_TARGET.get(TASKS[task].target, "texts")
    if reads != "labels" and config.text_pair_column is not None:
        raise UserError(f"data.text_pair_column is set, and the task {task} reads single texts.", "Leave it out.")
    with reading(config.name):
        official = _open(config, reads, unclear_are_classes=unclear_are_classes)
        return _complete(official, config, task=task, seed=seed)


_READS_OF_TARGET: dict[Target, _Reads] = {"label": "labels", "words": "words"}


def _open(config: DataConfig, reads: _Reads, *, unclear_are_classes: bool = False) -> _Splits:
    name = config.name
    notes: list[str] = []
    from_tables = partial(
        _from_tables, config=config, reads=reads, notes=notes, unclear_are_classes=unclear_are_classes
    )
    if (entry := extension_of(name)) is not None:
        return from_tables(load_extension(entry, config), asked=config.splits)
    path = expand_user(name)
    if config.splits is not None and not name.startswith("hf:") and not path.is_dir():
        raise UserError(f"data.splits is set, but {name} is neither a folder nor an hf: data set.", "Leave it out.")
    if name.startswith("demo:"):
        return _demo(name.removeprefix("demo:"), reads)
    if name.startswith("hf:"):
        return from_tables(_load_hub(name, config.subset), asked=config.splits)
    if config.subset is not None:
        raise UserError(f"data.subset is set, but {name} is not a data set of the hub.", "Leave it out.")
    if path.is_file():
        return from_tables(_load_files(path, path.suffix, reads, notes, {"train": [str(path)]}), asked=None)
    if not path.is_dir():
        demos = [*(f"demo:{demo}" for demo in DEMOS), *(f"{other}:" for other in extensions.names("data"))]
        hint = f"{hint_of_moved(name)} {_forms(reads)}".strip()
        near = beside(name) or did_you_mean(name, demos)
        raise UserError(f"There is no set of texts {name!r}. {near}".rstrip(), hint)
    formats = WORD_FORMATS if reads == "words" else _FORMATS
    kinds = {suffix_of(file) for file in list_files(path, lambda file: suffix_of(file) in formats, deep=False).files}
    if not kinds:
        if reads == "words":
            raise UserError(f"{path} has no files of labelled words.", WORD_FORMS)
        return _class_folders(path, config)
    if len(kinds) > 1:
        raise UserError(f"{path} has files of several kinds: {', '.join(sorted(kinds))}.", "Keep one kind.")
    files, said = files_by_split(path, suffix := kinds.pop(), config.splits)
    notes += said
    return from_tables(_load_files(path, suffix, reads, notes, files), asked=None)


def _forms(reads: _Reads) -> str:
    return WORD_FORMS if reads == "words" else _FORMS


# --- tables -----------------------------------------------------------------------------------------------------------


def _load_files(
    path: Path, suffix: str, reads: _Reads, notes: list[str], files: Mapping[str, list[str]]
) -> Mapping[str, Dataset]:
    suffix = suffix.lower()
    kind = (WORD_FORMATS if reads == "words" else _FORMATS).get(suffix)
    if kind is None:
        what = "labelled words" if reads == "words" else "texts"
        raise UserError(f"{path} is no file of {what} that kdcli reads.", _forms(reads))
    if kind == "csv":
        delimiter = "\t" if suffix == ".tsv" else ","
        return read_csv(files, delimiter=delimiter, notes=notes)
    if reads == "words" and kind == "text":
        loaded = _load(str(path), kind, data_files=as_patterns(files), sample_by="document")
        return {split: table_of_lines(table, split) for split, table in loaded.items()}
    return _load(str(path), kind, data_files=as_patterns(files))


def text_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that texts are read from."""
    return frozenset(_FORMATS)


def load_tables(path: Path, notes: list[str]) -> Mapping[str, Dataset]:
    """Return the table of one file of texts, as the split ``train``; ``notes`` gets what there is to say.

    Raises:
        UserError: it can't be read.
    """
    return _load_files(path, path.suffix, "texts", notes, {"train": [str(path)]})


def _load_hub(name: str, subset: str | None) -> Any:
    """Load ``hf:NAME``; of csv files all cells as they are written, unless their columns have types of their own."""
    from datasets import Features, Value

    place = name.removeprefix("hf:")
    loaded = _load(name, place, name=subset)
    tables = list(loaded.values())
    features = tables[0].features if tables else {}
    if not tables or tables[0].info.builder_name != "csv" or not all(isinstance(f, Value) for f in features.values()):
        return loaded
    written = Features({column: Value("string") for column in features})
    return _load(name, place, name=subset, features=written, keep_default_na=False, na_values=[""])


def _load(shown: str, kind: str, **options: Any) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    silence_datasets()
    try:
        return load_dataset(kind, **options)
    except Exception as error:  # of the name, the network, or any of the libraries that read the files
        if isinstance(error, DatasetNotFoundError):
            hint = "Check the name; a gated or private data set needs 'hf auth login' first."
        elif isinstance(error, ConnectionError):
            hint = "Without access to the hub, download its files elsewhere and name their folder."
        elif isinstance(error.__cause__, UnicodeDecodeError):
            hint = "Save the file as UTF-8."
        else:
            hint = "Check that the files are whole and not empty; a csv file begins with the names of its columns."
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{shown} couldn't be read: {reason}", hint) from error


def _from_tables(
    loaded: Mapping[str, Dataset],
    *,
    asked: SplitsConfig | None,
    config: DataConfig,
    reads: _Reads,
    notes: list[str],
    unclear_are_classes: bool,
) -> _Splits:
    tables, said = choose_splits(loaded, config.name, asked)
    notes += said
    if reads == "words":
        names, found = read_words(tables, config, notes)
        return _labelled(names, dict(found), "words", notes)
    train = tables["train"]
    columns = text_columns(train, config, takes_pairs=reads == "labels")
    texts = read_texts(tables, columns)
    what = "texts from" if len(columns) == 1 else "pairs of texts from"
    if reads == "texts":
        notes.append(f"Columns: {what} {' and '.join(columns)}.{unread(train.features, *columns)}")
        sources = {
            split: text_source(texts[split], [UNLABELLED] * len(table), None, split, notes)
            for split, table in tables.items()
        }
        splits = (sources["train"], sources.get("validation"), sources.get("test"))
        return _Splits((), *splits, "none", tuple(notes), columns)
    labels_from = label_column(train, config, columns)
    notes.append(
        f"Columns: {what} {' and '.join(columns)}, labels from {labels_from}."
        f"{unread(train.features, *columns, labels_from)}"
    )
    try:
        kind = config.label_kind or kind_of(train, labels_from, notes)
    except UnclearLabels:
        if not unclear_are_classes:
            raise
        kind = "class"
    names, sources = _READERS[kind](tables, texts, labels_from, notes)
    return replace(_labelled(names, sources, kind, notes), columns=columns)


def _labelled(names: tuple[str, ...], sources: dict[str, TextSource], kind: LabelKind, notes: list[str]) -> _Splits:
    """Return the splits; of validation and test the labelled texts alone."""
    if (train := sources["train"]) and len(known := labelled_indices(train)) < len(train):
        notes.append(f"{len(train) - len(known)} of {len(train)} texts of the train split have no label.")
    for split in ("validation", "test"):
        if split in sources:
            kept = labelled_indices(sources[split])
            if len(kept) < len(sources[split]):
                notes.append(f"{len(sources[split]) - len(kept)} texts of the {split} split have no label: left out.")
                sources[split] = sources[split].take(kept)
            if not kept:
                del sources[split]
    return _Splits(names, sources["train"], sources.get("validation"), sources.get("test"), kind, tuple(notes))


_READERS = {"class": read_class, "classes": read_classes, "number": read_number}


# --- folders and the demo ---------------------------------------------------------------------------------------------


def _class_folders(root: Path, config: DataConfig) -> _Splits:
    """Open ``DIR/CLASS/*.txt``, or ``DIR/train/CLASS/*.txt`` with ``val`` and ``test`` beside it; a file is a text."""
    options = ("text_column", "text_pair_column", "label_column", "label_kind")
    if given := [f"data.{key}" for key in options if getattr(config, key) is not None]:
        raise UserError(f"{' and '.join(given)} is set, but {root} is no table.", "Leave it out.")
    names, read, notes = read_class_folders(root, config.splits)
    sources = {split: text_source(texts, labels, None, split, notes) for split, (texts, labels) in read.items()}
    return _Splits(names, sources["train"], sources.get("validation"), sources.get("test"), "class", tuple(notes))


def _demo(name: str, reads: _Reads) -> _Splits:
    """Open the paragraphs of the documentation that comes with Python."""
    if name not in DEMOS:
        raise UserError(
            f"There is no set of texts demo:{name}. {did_you_mean(name, DEMOS)}".rstrip(),
            f"There is: {', '.join(f'demo:{demo}' for demo in DEMOS)}.",
        )
    if reads != "texts":
        raise UserError(
            f"demo:{name} has no labels to classify by.", "It is for --task sentence-embedding, masked-lm or causal-lm."
        )
    from pydoc_data.topics import topics

    paragraphs = [" ".join(part.split()) for key in sorted(topics) for part in re.split(r"\n\s*\n", topics[key])]
    texts = [text for text in dict.fromkeys(paragraphs) if _is_prose(text)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    note = f"{len(texts)} paragraphs of the documentation inside Python {version}; other versions have others."
    train = TextSource(texts, [UNLABELLED] * len(texts), split="train")
    return _Splits((), train, None, None, "none", (note,))


def _is_prose(text: str) -> bool:
    return len(text.split()) >= 8 and sum(c.isalpha() or c == " " for c in text) > 0.8 * len(text)


# --- splits -----------------------------------------------------------------------------------------------------------


def _complete(official: _Splits, config: DataConfig, *, task: str, seed: int) -> TextData:
    """Cut what is missing, leave out what is in two splits, and withhold as ``config`` says."""
    names, train, validation, test = official.class_names, official.train, official.validation, official.test
    notes = [*official.notes, *alike(names), *order_notes(names)]
    if official.kind in ("class", "classes", "words") and len(names) < 2:
        raise UserError(
            f"{config.name} has {len(names)} class{'' if len(names) == 1 else 'es'}; classification needs at least 2.",
            "data.label_column names another column.",
        )
    is_stratified = official.kind == "class"
    by_hash = not config.name.startswith("demo:")  # of which nothing is added or taken away
    how = ", by the hash of each text" if by_hash else ""
    how = f", {how_cut(by_hash=by_hash, of='text')}" if is_stratified else how
    if validation is None and test is None:
        train, test = _cut(
            train, config.test_fraction, names, is_stratified, seed=TEST_SEED, purpose="test", by_hash=by_hash
        )
        notes.append(f"Test: {len(test)} texts cut from the whole by a fixed seed{how}.")
    elif test is None:
        notes.append("Test: none, as the data have a validation split but no test split.")
    if validation is None:
        train, validation = _cut(
            train, config.validation_fraction, names, is_stratified, seed=seed, purpose="validation", by_hash=by_hash
        )
        notes.append(f"Validation: {len(validation)} texts cut from the training split by seed {seed}{how}.")
    if TASKS[task].is_label_free:
        validation = _thin_out(validation, notes)
        test = None if test is None else _thin_out(test, notes)
    train = _without(train, [*validation.texts, *(test.texts if test else ())], "validation and test", notes)
    if test is not None:
        validation = _without(validation, test.texts, "test", notes)
    if min(len(train), len(validation)) == 0:
        raise UserError(
            f"{config.name} has too few texts: {len(train)} to train on and {len(validation)} to validate on.",
            "Add texts.",
        )
    known = {tag for tags in train.tags for tag in tags} if isinstance(train, WordSource) else set(train.labels)
    has_classes = is_stratified or official.kind == "words"
    if has_classes and (absent := [name for label, name in enumerate(names) if label not in known]):
        notes.append(f"No training text has the label {', '.join(absent)}.")
    if config.train_texts is not None and config.train_texts < len(train):
        train = train.take(draw_indices(train.labels, config.train_texts, seed=seed, noun="text"))
        notes.append(
            f"Training texts: {len(train)} drawn by seed {seed}{', stratified by class' if is_stratified else ''}; the"
            " rest left out."
        )
    if config.labels_per_class is not None:
        if not is_stratified:
            raise UserError("data.labels_per_class needs texts with one class each.", "Leave it out.")
        train = train.take(range(len(train)), keep_labels(train.labels, config.labels_per_class, names, seed=seed))
        notes.append(f"Labels: {config.labels_per_class} a class kept by seed {seed}, the rest withheld.")
    if config.unlabelled is not None:
        train = _append_unlabelled(train, config.unlabelled, (validation, test), official.columns, notes)
    kind = "tokens" if TASKS[task].is_language_model else official.kind
    facts = DataFacts(
        name=config.name,
        task=task,
        class_names=names,
        num_train=len(train),
        num_labelled=len(train) if kind == "tokens" else len(labelled_indices(train)),
        num_validation=len(validation),
        num_test=0 if test is None else len(test),
        notes=tuple(notes),
        label_kind=kind,
        label_scale=_scale(train) if official.kind == "number" else None,
    )
    return TextData(facts, train, validation, test, official.columns)


def _cut(
    source: TextSource,
    fraction: float,
    class_names: Sequence[str],
    is_stratified: bool,
    *,
    seed: int,
    purpose: str,
    by_hash: bool,
) -> tuple[TextSource, TextSource]:
    """Return (the rest, a ``fraction`` of the texts, by their hash or by their place); of texts with classes a part of
    the labelled ones.
    """
    names = [text if isinstance(text, str) else "\0".join(text) for text in source.texts] if by_hash else None
    if is_stratified:
        rest, part = cut_indices(
            source.labels,
            fraction,
            class_names,
            range(len(class_names)),
            seed=seed,
            purpose=purpose,
            noun="text",
            names=names,
        )
        return source.take(rest), source.take(part)
    labelled = np.asarray(labelled_indices(source) or range(len(source)), dtype=np.int64)
    size = max(round(fraction * len(labelled)), 1)
    if size >= len(labelled):
        raise UserError(
            f"Too few texts to cut a {purpose} split: {len(labelled)}.",
            f"Add texts, or give the data a {purpose} split of their own.",
        )
    if names is None:
        part = labelled[draw_part(len(labelled), size, seed=seed)]
    else:
        part = labelled[hold_out([names[index] for index in labelled], fraction, seed=seed, purpose=purpose)]
    return source.take(np.setdiff1d(np.arange(len(source)), part)), source.take(np.sort(part))


def _thin_out(source: TextSource, notes: list[str]) -> TextSource:
    count = len(source)
    if count <= MAX_PAIRS:
        return source
    notes.append(f"Of {count} {source.split} texts {MAX_PAIRS}, spread evenly, are compared in pairs.")
    return source.take(number * count // MAX_PAIRS for number in range(MAX_PAIRS))


def _without(source: TextSource, others: Iterable[Text], where: str, notes: list[str]) -> TextSource:
    """Return ``source`` without the texts that are among ``others`` too."""
    known = set(others)
    kept = [index for index, text in enumerate(source.texts) if text not in known]
    if len(kept) == len(source):
        return source
    notes.append(f"{len(source) - len(kept)} {source.split} texts are in {where} too, and left out.")
    return source.take(kept)


def _append_unlabelled(
    train: TextSource, name: Path, others: Sequence[TextSource | None], columns: Sequence[str], notes: list[str]
) -> TextSource:
    """Return ``train`` with a file's or folder's texts that no split holds yet, unlabelled; pairs from ``columns``."""
    pair = {"text_column": columns[0], "text_pair_column": columns[1]} if train.has_pairs else {}
    official = _open(DataConfig(name=str(name), **pair), "texts")
    further = official.train
    known = {text for source in (train, *others) if source is not None for text in source.texts}
    new = [text for text in dict.fromkeys(further.texts) if text not in known]
    if not new:
        raise UserError(f"data.unlabelled: every text of {name} is already in the data.", "Leave it out.")
    notes.append(" ".join([f"Unlabelled: {len(new)} texts of {name} added to the training split.", *official.notes]))
    values = train.values
    if values is not None:
        values = np.concatenate([values, np.full((len(new), values.shape[1]), np.nan, dtype=np.float32)])
    labels = (*train.labels, *[UNLABELLED] * len(new))
    return TextSource((*train.texts, *new), labels, values=values, split=train.split)


def _scale(train: TextSource) -> tuple[float, float]:
    """Return mean and standard deviation of the training texts' numbers.

    Raises:
        UserError: there are none, or they are all the same.
    """
    assert train.values is not None
    if np.isnan(train.values).all():
        raise UserError("No training text has a number.", "data.label_column names another column.")
    mean, deviation = float(np.nanmean(train.values)), float(np.nanstd(train.values))
    if not deviation > 0:
        raise UserError("All training texts have the same number: there is nothing to learn.", "Check the labels.")
    return mean, deviation
