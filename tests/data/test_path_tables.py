"""Images named by their paths in csv, tsv, jsonl and parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.data import ImageData, open_data
from kdcli.data.images.open import open_unlabelled
from kdcli.data.images.sources import file_paths

Rows = list[dict[str, Any]]


def draw(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, dtype=np.uint8)).save(path)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """40 images in two folders that are no classes, in turn of the classes bee and ant."""
    found = []
    for number in range(40):
        name = f"pictures/{number % 4}/{number:02}.png"
        draw(tmp_path / name, number)
        found.append({"image": name, "label": ("bee", "ant")[number % 2], "size": 1.5})
    return found


def write(path: Path, rows: Rows) -> Path:
    """Write a table in the form that its suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        cells = [["" if row[key] is None else str(row[key]) for key in rows[0]] for row in rows]
        path.write_text("\n".join(mark.join(row) for row in [list(rows[0]), *cells]))
    return path


def opened(path: Path, **options: object) -> ImageData:
    return open_data(DataConfig(name=str(path), **options), seed=0)  # type: ignore[arg-type]


def values(source: Any) -> list[int]:
    return [source.load(index).inputs.getpixel((0, 0))[0] for index in range(len(source))]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_all_forms_give_the_same_images_labels_and_cuts(rows: Rows, tmp_path: Path, suffix: str) -> None:
    data = opened(write(tmp_path / f"list{suffix}", rows))
    reference = opened(write(tmp_path / "reference.csv", rows))
    assert data.facts.class_names == ("ant", "bee")
    assert any("Columns: images from image, labels from label. Not read: size." in note for note in data.facts.notes)
    for split in ("train", "validation", "test"):
        source, other = getattr(data, split), getattr(reference, split)
        assert file_paths(source) == file_paths(other)
        assert list(source.labels) == [(1, 0)[value % 2] for value in values(source)]
    assert sum(len(getattr(data, split)) for split in ("train", "validation", "test")) == 40


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_names_the_splits(rows: Rows, tmp_path: Path, suffix: str) -> None:
    named = [row | {"split": ("train", "train", "Dev", "test")[number // 10]} for number, row in enumerate(rows)]
    data = opened(write(tmp_path / f"list{suffix}", named))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    assert values(data.test) == list(range(30, 40))
    other = [row | {"split": ("fold1", "fold2")[number % 3 == 0]} for number, row in enumerate(rows)]
    path = write(tmp_path / f"folds{suffix}", other)
    with pytest.raises(UserError, match="no training split; its values are fold2, fold1"):
        opened(path)
    data = opened(path, splits={"train": "fold1", "validation": "fold2"})
    assert (len(data.train), len(data.validation), data.test) == (26, 14, None)


def test_a_file_for_each_split_beside_the_images(rows: Rows, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows[:30])
    unlabelled = [row | {"label": None} for row in rows[30:32]]
    write(tmp_path / "val.csv", [*rows[32:], *unlabelled])
    data = opened(tmp_path)
    assert (len(data.train), len(data.validation), data.test) == (30, 8, None)
    assert any("2 images of the validation split have no label" in note for note in data.facts.notes)
    write(tmp_path / "val.csv", [rows[30] | {"label": "wasp"}])
    with pytest.raises(UserError, match="label 'wasp', which is not among"):
        opened(tmp_path)


def test_an_empty_cell_is_an_unlabelled_image(rows: Rows, tmp_path: Path) -> None:
    part = [row | {"label": None if number < 20 else number % 2, "split": "train"} for number, row in enumerate(rows)]
    data = opened(write(tmp_path / "list.csv", [*part[:36], *(row | {"split": "val"} for row in part[36:])]))
    assert data.facts.class_names == ("0", "1")
    assert list(data.train.labels) == [UNLABELLED] * 20 + [number % 2 for number in range(20, 36)]
    assert (data.facts.num_train, data.facts.num_labelled) == (36, 16)


def test_images_without_labels_are_for_a_task_that_reads_none(rows: Rows, tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", [{"photo": row["image"]} for row in rows])
    data = open_unlabelled(DataConfig(name=str(path)), None, seed=0)
    assert data.labelled is None
    assert sorted(values(data.train) + values(data.validation) + values(data.test)) == list(range(40))
    with pytest.raises(UserError, match="no label column"):
        opened(path)


def test_class_folders_win_and_say_so(rows: Rows, tmp_path: Path) -> None:
    for number in range(20):
        draw(tmp_path / "photos" / ("x", "y")[number % 2] / f"{number}.png", number)
    write(tmp_path / "photos" / "list.csv", [{"image": f"x/{number}.png", "label": "z"} for number in range(0, 20, 2)])
    data = opened(tmp_path / "photos")
    assert data.facts.class_names == ("x", "y")
    assert any("list.csv names images too and is not read" in note for note in data.facts.notes)


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (lambda row: row | {"image": row["image"].replace("07.png", "70.png")}, {}, "Of 40 images .* 1 can't be found"),
        (lambda row: row | {"image": row["image"].replace("3/07", "3/03")}, {}, "names the image pictures/3/03.png"),
        (lambda row: row | {"image": None if "07" in row["image"] else row["image"]}, {}, "Row 8 .* has no path"),
        (lambda row: {"image": row["image"], "label": row["size"]}, {}, "holds numbers such as 1.5, not classes"),
        (lambda row: {"image": row["image"], "one": "a", "two": "b"}, {}, "no label column. The columns are image"),
        (lambda row: row, {"label_column": "klass"}, "'klass', but the columns are image, label, size"),
        (lambda row: row, {"image_column": "imag"}, "'imag', but the columns are"),
        (lambda row: row, {"splits": {"train": "a"}}, "one table without a column split"),
        (lambda row: row | {"label": "bee"}, {}, "has 1 class"),
        (lambda row: {"image": row["image"], "mask": row["image"]}, {}, "nor a file of images"),
    ],
)
def test_what_is_wrong_with_a_list_is_told(
    rows: Rows, tmp_path: Path, change: Any, options: dict[str, Any], told: str
) -> None:
    path = write(tmp_path / "list.csv", [change(row) for row in rows])
    with pytest.raises(UserError, match=told):
        opened(path, **options)


LABELS = ("has_wings", "is_black", "stings")
SETS = [{"has_wings"}, {"is_black", "stings"}, set(), {"has_wings", "is_black", "stings"}]


def of_several(rows: Rows, form: str) -> Rows:
    """The rows with the labels of SETS in turn, in a form; where it can't say that an image has none, unlabelled."""
    found = []
    for number, row in enumerate(rows):
        own = SETS[number % 4]
        if form == "columns":
            found.append({"image": row["image"], **{name: int(name in own) for name in LABELS}})
        else:
            labels: Any = sorted(own) if form == "lists" else form.join(sorted(own)) or None
            found.append({"image": row["image"], "label": labels})
    return found


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("columns", ".csv"), ("columns", ".parquet"), ("lists", ".jsonl"), ("lists", ".parquet"), ("|", ".csv")],
)
def test_images_with_any_number_of_labels(rows: Rows, tmp_path: Path, form: str, suffix: str) -> None:
    path = write(tmp_path / f"list{suffix}", of_several(rows, form))
    options = {} if form == "lists" else {"label_kind": "classes"}
    data = open_data(DataConfig(name=str(path), **options), seed=0, takes_several=True)  # type: ignore[arg-type]
    assert (data.facts.label_kind, data.facts.class_names) == ("classes", LABELS)
    assert data.settle(DataConfig(name="x")).label_kind == "classes"
    count = 0
    for source in (data.train, data.validation, data.test):
        assert source is not None
        for index in range(len(source)):
            image, target = source.load(index)
            own = SETS[image.getpixel((0, 0))[0] % 4]
            if form == "|" and not own:
                assert np.isnan(target.numpy()).all()
                assert source.labels[index] == UNLABELLED
            else:
                assert target.tolist() == [float(name in own) for name in LABELS]
                assert source.labels[index] == 0
            count += 1
    assert count == 40
    assert data.facts.num_labelled == len(data.train) - sum(label == UNLABELLED for label in data.train.labels)
    with pytest.raises(UserError, match="one class each is wanted"):
        open_data(DataConfig(name=str(path), **options), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "options", "told"),
    [
        ("|", {}, "one class, or several labels?"),
        ("lists", {"labels_per_class": 2}, "data.labels_per_class is set"),
        ("lists", {"label_kind": "number"}, "images have classes or several labels"),
        ("lists", {"label_kind": "class"}, "Found no label column"),
    ],
)
def test_what_is_wrong_with_several_labels_is_told(
    rows: Rows, tmp_path: Path, form: str, options: Any, told: str
) -> None:
    path = write(tmp_path / ("list.csv" if form == "|" else "list.jsonl"), of_several(rows, form))
    with pytest.raises(UserError, match=told):
        open_data(DataConfig(name=str(path), **options), seed=0, takes_several=True)
