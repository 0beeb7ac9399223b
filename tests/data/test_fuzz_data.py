"""Data folders and tables made up by Hypothesis: what kdcli reads is what a plain reader finds, or it is refused.

The suite draws a few hundred, always the same ones. The long run draws others every time, as many as the variable says:

    KDCLI_FUZZ_CASES=10000 python -m pytest tests/data/test_fuzz_data.py tests/models/test_fuzz_processors.py

The plain reader is ``os.walk``, PIL and ``csv``; it knows nothing of kdcli but the names of splits in the README.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.text import printable
from kdcli.config.data import DataConfig
from kdcli.data import open_data, open_texts, open_unlabelled
from kdcli.data.images.sources import file_paths

LONG = int(os.environ.get("KDCLI_FUZZ_CASES", 0))


def cases(share: float) -> settings:
    return settings(max_examples=round(share * (LONG or 150)))


SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "data"


@contextlib.contextmanager
def folder_at(root: Path) -> Iterator[Path]:
    root.mkdir()
    try:
        yield root
    finally:
        shutil.rmtree(os.fsencode(root))


outcomes: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True, scope="module")
def counts() -> Iterator[None]:
    yield
    if LONG:
        print(f"\n{outcomes.total()} cases: {dict(outcomes)}")


def check_refusal(what: str, error: UserError) -> None:
    """A refusal is a message and a hint that a terminal takes."""
    outcomes[f"{what} refused"] += 1
    assert error.message.strip()
    assert error.hint.strip()
    printable(str(error)).encode()


# --- folders of images ------------------------------------------------------------------------------------------------


def encoded(format: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(content, format)
    return content.getvalue()


IMAGES = {
    format: encoded(format)
    for format in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM")
    if format in Image.SAVE  # of older versions of Pillow not all
}
CONTENTS = {**IMAGES, "text": b"a note\n", "nothing": b"", "rubbish": bytes(range(256))}
CLASSES = ("a", "B", "b", "c ", "0", "1", "2", "10", "NA", "é", "e\u0301", "\u82f9", "train", "x\udce9", "a b", "[red]")
SUFFIXES = (
    ".png",
    ".jpg",
    ".JPG",
    ".jpeg",
    ".tif",
    ".gif",
    ".webp",
    ".jp2",
    "",
    ".image",
    ".txt",
    ".csv",
    ".heic",
    ".1",
)
FOLDERS = (
    *itertools.chain(*SPLITS.values()),
    *("Train", "TRAINING", "Val", "DEV", "Test", "tests", "train2017", "holdout", "fold1", "test-clean", ".hidden"),
)
plain = st.sampled_from(("PNG", "PNG", "JPEG", "GIF", "WEBP"))
stems = st.text("abc01 é\u82f9.-_%\udce9\n", min_size=1, max_size=4).filter(lambda name: name.strip(". "))
odd_files = st.tuples(stems, st.sampled_from(SUFFIXES), st.sampled_from(sorted(CONTENTS)))


@st.composite
def class_folders(draw: st.DrawFn, names: list[str]) -> dict[str, bytes]:
    """Return path -> content: images with usual names, and a few odd files."""
    files = {}
    for name in names:
        for number in range(draw(st.sampled_from([1, 4, 4, 6]))):
            format = draw(plain)
            files[f"{name}/{number}.{format.lower()}"] = IMAGES[format]
        for stem, suffix, content in draw(st.lists(odd_files, max_size=draw(st.sampled_from([0, 0, 1, 3])))):
            deeper = draw(st.sampled_from(["", "", "", "deep/", ".hidden/"]))
            files[f"{name}/{deeper}{stem}{suffix}"] = CONTENTS[content]
    return files


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    names = draw(
        st.lists(st.sampled_from(CLASSES), min_size=draw(st.sampled_from([1, 2, 2, 2, 2])), max_size=4, unique=True)
    )
    if draw(st.booleans()):
        files = draw(class_folders(names))
    else:
        files = {}
        usual = st.sampled_from(
            [["train", "val", "test"], ["Training", "DEV"], ["train", "testing"], ["TRAIN", "eval", "x"]]
        )
        any_of_them = st.lists(st.sampled_from(FOLDERS), min_size=1, max_size=4, unique=True)
        for split in draw(usual | usual | any_of_them):
            own = names if draw(st.integers(0, 29)) else names[1:]
            files |= {f"{split}/{path}": content for path, content in draw(class_folders(own)).items()}
    for stem, suffix, content in draw(st.lists(odd_files, max_size=1)):
        files[f"{stem}{suffix}"] = CONTENTS[content]
    return files


def write(root: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """Write what can be written; a name may be that of a folder already."""
    written = {}
    for path, content in files.items():
        with contextlib.suppress(OSError):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
            written[path] = content
    return written


def is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def is_decodable(content: bytes) -> bool:
    return content in IMAGES.values()


@cases(0.4)
@given(trees(), st.booleans(), st.integers(0, 3))
def test_folders_of_images(place: Path, files: dict[str, bytes], labelled: bool, seed: int) -> None:
    with folder_at(place) as root:
        files = write(root, files)
        config = DataConfig(name=str(root))
        try:
            data = open_data(config, seed=seed) if labelled else open_unlabelled(config, None, seed=seed)
        except UserError as error:
            check_refusal("folders", error)
            return
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        found: dict[str, tuple[str, int]] = {}
        for split, source in splits.items():
            if source is None:
                continue
            paths = file_paths(source)
            assert paths is not None
            for index, (path, label) in enumerate(zip(paths, source.labels, strict=True)):
                relative = os.path.relpath(path, root)
                assert relative not in found, "in two splits"
                assert relative in files, "no such file"
                assert source.describe(index).endswith(relative)
                found[relative] = split, label
        folders = {path.split("/")[0] for path in found}
        has_splits = all(len(path.split("/")) > 2 and path.split("/")[0].lower() in SPLIT_OF for path in found)
        has_splits = has_splits and "train" in {SPLIT_OF[folder.lower()] for folder in folders}
        notes = "\n".join(data.facts.notes)
        for path, (split, label) in found.items():
            assert not is_hidden(path)
            parts = path.split("/")
            if labelled:
                assert data.facts.class_names[label] == parts[1 if has_splits else 0]
            if has_splits:  # a split that is missing is cut from the training split, or from the whole
                own = SPLIT_OF[parts[0].lower()]
                assert split == own or (
                    own == "train" and split not in {SPLIT_OF[folder.lower()] for folder in folders}
                )
        check_unread(files, found, notes)
        outcomes["folders read"] += 1


def check_unread(files: dict[str, bytes], found: dict[str, Any], notes: str) -> None:
    """What is not read is said: its suffix, or its folder."""
    for path in files.keys() - found.keys():
        if is_hidden(path):
            continue
        folder, name = path.split("/")[0], path.split("/")[-1]
        suffix = Path(name).suffix.lower()
        in_words = suffix if suffix and suffix in notes else "without a suffix"
        assert (
            in_words in notes
            or "other kinds" in notes
            or "beside the folders" in notes
            or ("Left out: the folder" in notes and printable(folder) in printable(notes))
        ), (path, notes)
    undecodable = [path for path in found if not is_decodable(files[path])]
    usual = (".png", ".jpg", ".jpeg", ".tif", ".gif", ".webp", ".jp2")
    assert all(path.lower().endswith(usual) for path in undecodable), "what is no image is read by its suffix alone"


# --- tables of texts --------------------------------------------------------------------------------------------------


CELLS = (
    *(
        "NA",
        "None",
        "null",
        "nan",
        "NaN",
        "",
        " ",
        "01",
        "1",
        "1.0",
        "-1",
        "-1.0",
        "0",
        "2",
        "10",
        "True",
        "a",
        "A",
        "a ",
    ),
    *(
        "é",
        "e\u0301",
        "x,y",
        'say "x"',
        "two\nlines",
        "\u82f9",
        "1e3",
        "inf",
        "#N/A",
        "0x10",
        "1_000",
        "\u00a0",
        "\ufeffb",
    ),
)
words = st.text("abc ,\"'\né\u82f9;\t#", min_size=1, max_size=12)
texts_ = st.one_of(words, words, words, st.sampled_from(CELLS))


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[tuple[str, str]]]:
    """Return file -> rows of a text and a label; no text twice."""
    labels = draw(
        st.lists(st.sampled_from(CELLS), min_size=draw(st.sampled_from([1, 2, 2, 2, 2])), max_size=4, unique=True)
    )
    names = draw(
        st.sampled_from([["all"], ["train"], ["train", "test"], ["training", "dev", "test"], ["Train", "VALID"]])
        | st.lists(st.sampled_from(FOLDERS[:-1]), min_size=1, max_size=3, unique=True)
    )
    result, number = {}, itertools.count()
    for name in names:
        rows = [
            (
                draw(texts_) + draw(st.sampled_from(["", f" {next(number)}", f" {next(number)}"])),
                draw(st.sampled_from(labels)),
            )
            for _ in range(draw(st.sampled_from([6, 30, 60])))
        ]
        result[name] = rows
    return result


@cases(0.4)
@given(tables(), st.sampled_from([None, "class", "class"]), st.sampled_from([",", "\t"]), st.integers(0, 3))
def test_tables_of_texts(
    place: Path, rows: dict[str, list[tuple[str, str]]], kind: str | None, delimiter: str, seed: int
) -> None:
    with folder_at(place) as root:
        for name, content in rows.items():
            with (root / f"{name}{'.csv' if delimiter == ',' else '.tsv'}").open(
                "w", newline="", encoding="utf-8"
            ) as file:
                csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *content])
        expected: dict[str, set[str]] = collections.defaultdict(set)
        for file in root.iterdir():  # as the csv module reads it back
            with file.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines, delimiter=delimiter):
                    expected[row["text"]].add(row["label"])
        config = DataConfig(name=str(root), text_column="text", label_column="label", label_kind=kind)
        try:
            data = open_texts(config, task="text-classification", seed=seed)
        except UserError as error:
            check_refusal("tables", error)
            return
        assume(data.facts.label_kind == "class" if hasattr(data.facts, "label_kind") else True)
        if "quotes are taken as written" in "\n".join(data.facts.notes):
            return  # every line of a tsv file is a whole row: it could be either, and the plan says which
        for source in filter(None, (data.train, data.validation, data.test)):
            for text, label in zip(source.texts, source.labels, strict=True):
                assert isinstance(text, str)
                assert text in expected, "as written"
                if source.values is None:
                    name = None if label < 0 else data.facts.class_names[label]
                    assert name in expected[text] or (
                        name is None and any(label.strip() in ("", "-1") for label in expected[text])
                    ), (name, text)
        notes = "\n".join(data.facts.notes)
        seen = {text for source in filter(None, (data.train, data.validation, data.test)) for text in source.texts}
        lost = {text for text in expected.keys() - seen if text.strip()}
        assert not lost or "Left out" in notes or "left out" in notes, lost
        outcomes["tables read"] += 1
