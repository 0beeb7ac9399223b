"""What has become of samples is told by name, and nothing is told where nothing has changed."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdcli.base.facts import DataFacts
from kdcli.config.data import DataConfig
from kdcli.data import fingerprint as module
from kdcli.data import open_data
from kdcli.data.fingerprint import Fingerprint, find_changes, find_trained_on, fingerprint
from kdcli.data.images.sources import ArraySource, FileSource
from kdcli.data.images.splits import ImageData
from kdcli.data.texts.sources import TextData, TextSource
from kdcli.data.texts.words import WordSource

NAMES = ("apple", "sky")


def facts(noun_is_text=False, names=NAMES):
    task = "text-classification" if noun_is_text else "image-classification"
    return DataFacts("x", task, names, 0, 0, 0, 0)


def images(train, test, names=NAMES):
    return fingerprint(ImageData(facts(names=names), train, train, test))


def texts(train, labels, **options):
    source = TextSource(train, labels, split="train", **options)
    return fingerprint(TextData(facts(noun_is_text=True), source, source, None))


def changes(before, now, split="train", **options):
    return [str(change) for change in find_changes(before, now, splits=[split], **options)]


@pytest.fixture
def files(tmp_path):
    """``files({"apple/1.png": b"content"}, folder)`` writes them, and returns their source."""

    def write(contents, folder="photos"):
        for name, content in contents.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
        labels = [NAMES.index(name.partition("/")[0]) for name in contents]
        return FileSource([str(tmp_path / folder / name) for name in contents], labels)

    return write


WHOLE = {f"{name}/{number}.png": f"{name} {number}".encode() for name in NAMES for number in range(4)}


def test_files_added_removed_and_changed_are_named(files):
    before = images(files(WHOLE), files(WHOLE))
    other = {**WHOLE, "apple/0.png": b"other"}
    del other["sky/3.png"]
    now = images(files({**other, "sky/9.png": b"new"}), files(WHOLE, "same"))
    assert changes(before, now) == ["train: 1 added (sky/9.png), 1 removed (sky/3.png), 1 changed (apple/0.png)"]
    assert changes(before, now, "test") == []


def test_a_byte_that_leaves_the_size_as_it_was_is_a_change(files):
    before = images(files(WHOLE), None)
    assert changes(before, images(files({**WHOLE, "apple/1.png": b"apple X"}), None)) == [
        "train: 1 changed (apple/1.png)"
    ]


def test_a_folder_elsewhere_is_the_same(files, tmp_path):
    before = images(files(WHOLE), None)
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    assert changes(before, images(files(WHOLE, "moved"), None)) == []


def test_what_has_come_from_another_split_is_counted(files):
    train = {name: content for name, content in WHOLE.items() if name != "sky/0.png"}
    before = images(files(train), files({"sky/0.png": WHOLE["sky/0.png"], "apple/x.png": b""}))
    now = images(files(train), files({"sky/1.png": WHOLE["sky/1.png"], "apple/x.png": b""}))
    # The validation split is the training split here.
    assert changes(before, now, "test") == [
        "test: 1 added, 1 of them from train, 1 of them from validation (sky/1.png), 1 removed (sky/0.png)"
    ]


def test_another_order_matters_where_it_is_asked_for(files):
    before, now = images(files(WHOLE), None), images(files(dict(reversed(WHOLE.items()))), None)
    assert changes(before, now) == []
    assert changes(before, now, order=True) == ["train: in another order"]


def test_labels_are_compared_by_name():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[1] = 9
    before = images(ArraySource(pixels, [0, 1], split="train"), None)
    renumbered = images(ArraySource(pixels, [1, 0], split="train"), None, names=("sky", "apple"))
    assert changes(before, renumbered) == []
    assert changes(before, images(ArraySource(pixels, [1, 1], split="train"), None)) == [
        "train: 1 with another label (train[0])"
    ]


def test_one_pixel_in_memory_is_noticed():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3)).astype(np.uint8)
    before = images(ArraySource(pixels, [0, 1, 1], split="train"), None)
    pixels = pixels.copy()
    pixels[1, 2, 2, 0] ^= 1
    assert changes(before, images(ArraySource(pixels, [0, 1, 1], split="train"), None)) == [
        "train: 1 added (train[1]), 1 removed (train[1])"
    ]


def table(tmp_path, name, colours):
    cells = []
    for colour in colours:
        Image.new("RGB", (4, 4), (colour, 0, 0)).save(tmp_path / "cell.png")
        cells.append({"bytes": (tmp_path / "cell.png").read_bytes(), "path": None})
    (tmp_path / name).mkdir()
    columns = {"image": pa.array(cells), "label": [NAMES[colour % 2] for colour in colours]}
    pq.write_table(pa.table(columns), tmp_path / name / "train.parquet")
    return fingerprint(open_data(DataConfig(name=str(tmp_path / name)), seed=0))


def together(found):
    return Fingerprint(found.noun, found.class_names, {"train": sum(found.splits.values(), ())})


def test_a_row_in_front_of_a_table_is_one_row(tmp_path):
    before, now = (together(table(tmp_path, name, range(first, 60))) for name, first in (("a", 1), ("b", 0)))
    (change,) = find_changes(before, now, splits=["train"])
    assert (len(change.added), len(change.removed), len(change.relabelled)) == (1, 0, 0)


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_FILES"])
def test_of_large_sets_a_part_is_read_and_all_sizes_are_known(files, monkeypatch, limit):
    contents = {f"{NAMES[number % 2]}/{number}.png": bytes([number] * 100) for number in range(200)}
    monkeypatch.setattr(module, limit, {"MOST_BYTES": 200 * 100 // 4, "MOST_FILES": 50}[limit])
    before = images(files(contents), None)
    read = [sample.name for sample in before.splits["train"] if sample.is_read]
    assert 25 < len(read) < 80, "about a quarter"
    assert not before.is_whole
    # One file more: what is read depends on the names, so that the rest compares as before.
    now = images(files({**contents, "apple/new.png": b"new"}), None)
    assert changes(before, now) == ["train: 1 added (apple/new.png)"]
    now = images(files({**contents, read[0]: bytes(100)}), None)
    assert changes(before, now) == [f"train: 1 changed ({read[0]})"]
    unread = next(name for name in contents if name not in read)
    assert changes(before, images(files({**contents, unread: b"longer than it was" * 9}), None)) == [
        f"train: 1 changed ({unread})"
    ]


def test_texts_are_known_by_their_content():
    before = texts(["good", "bad", "good"], [1, 0, 0])
    assert changes(before, texts(["bad", "good", "good"], [0, 0, 1])) == [], "the same, with the same labels"
    assert changes(before, texts(["new", "good", "bad", "good"], [1, 1, 0, 0])) == ["train: 1 added (train[0])"]
    assert changes(before, texts(["good", "bad", "good"], [1, 1, 0])) == ["train: 1 with another label (train[1])"]


def test_values_and_tags_are_labels():
    values = np.array([[0.5], [1.5]], np.float32)
    before = texts(["a", "b"], [0, 0], values=values)
    assert changes(before, texts(["a", "b"], [0, 0], values=np.array([[0.5], [1.75]], np.float32))) == [
        "train: 1 with another label (train[1])"
    ]

    def words(tag):
        source = WordSource([["a", "b"], ["c"]], [[0, tag], [1]], split="train")
        return fingerprint(TextData(facts(noun_is_text=True), source, source, None))

    assert changes(words(0), words(1)) == ["train: 1 with another label (train[0])"]
    assert changes(words(0), words(0)) == []


def test_it_is_read_as_it_was_written_whatever_the_names(files):
    before = images(files({**WHOLE, "apple/\udcff.png": b"x"}), None)
    read, header = Fingerprint.from_bytes(before.to_bytes({"mine": 1}))
    assert (read, header["mine"]) == (before, 1)
    assert before.to_bytes({}) == before.to_bytes({}), "nothing of the clock is in it"


def test_a_missing_file_is_no_file_of_the_same_content(files, tmp_path):
    source = files(WHOLE)
    before = images(source, None)
    (tmp_path / "photos" / "sky" / "0.png").unlink()
    assert changes(before, images(source, None)) == ["train: 1 changed (sky/0.png)"]


def test_what_a_run_was_trained_on_is_found_in_another_split(files):
    train = {name: content for name, content in WHOLE.items() if not name.endswith("0.png")}
    held_out = {name: content for name, content in WHOLE.items() if name.endswith("0.png")}
    record = images(files(train), files(held_out))
    now = images(files(train), files({**held_out, "sky/1.png": WHOLE["sky/1.png"], "sky/2.png": b"another"}))
    assert find_trained_on(record, now, split="test", by_content=False) == ["sky/1.png"]
    assert find_trained_on(record, record, split="test", by_content=True) == []
