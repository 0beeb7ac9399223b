from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import ImageData, UnreadableImage, open_data

FEATURES = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})


def image(value: int) -> Image.Image:
    return Image.fromarray(np.full((6, 5, 3), value, dtype=np.uint8))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    image(value).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int, first: int = 0, labels: list[int] | None = None) -> datasets.Dataset:
    labels = [i % 2 for i in range(count)] if labels is None else labels
    rows = {"img": [image(first + i) for i in range(count)], "label": labels}
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def opened(path: Path, **options: object) -> ImageData:
    return open_data(DataConfig(name=str(path), **options), seed=0)  # type: ignore[arg-type]


def first_pixels(source) -> list[int]:  # type: ignore[no-untyped-def]
    return [source.load(i).inputs.getpixel((0, 0))[0] for i in range(len(source))]


def test_one_parquet_file(tmp_path: Path) -> None:
    table(40).to_parquet(tmp_path / "all.parquet")
    data = opened(tmp_path / "all.parquet")
    assert data.facts.class_names == ("cat", "dog")
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (29, 3, 8)
    parts = [first_pixels(source) for source in (data.train, data.validation, data.test)]
    assert sorted(sum(parts, [])) == list(range(40))  # noqa: RUF017
    assert [value % 2 for value in parts[0]] == list(data.train.labels)
    assert data.validation.describe(0).startswith("train[")


def test_folder_of_parquet_files_by_split(tmp_path: Path) -> None:
    root = tmp_path / "set" / "data"
    root.mkdir(parents=True)
    table(8).to_parquet(root / "train-00000-of-00001.parquet")
    table(4, 50).to_parquet(root / "validation-00000-of-00001.parquet")
    table(6, 100, labels=[-1, 0, 1, -1, 1, 0]).to_parquet(root / "test-00000-of-00001.parquet")
    data = opened(tmp_path / "set")
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (8, 4, 4)
    assert first_pixels(data.test) == [101, 102, 104, 105]
    assert data.test is not None
    assert list(data.test.labels) == [0, 1, 1, 0]
    assert any("2 images of the test split have no label" in note for note in data.facts.notes)


def test_saved_to_disk_with_a_hidden_test(tmp_path: Path) -> None:
    splits = {"train": table(30), "test": table(4, 50, labels=[-1] * 4), "extra": table(2, 60)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    data = opened(tmp_path / "saved")
    assert any("4 images of the test split have no label" in note for note in data.facts.notes)
    assert any("Left out: the split extra" in note for note in data.facts.notes)
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (22, 2, 6)


def test_arrow_file_and_single_saved_table(tmp_path: Path) -> None:
    table(20).save_to_disk(tmp_path / "saved")
    assert opened(tmp_path / "saved").facts.num_train == 14
    file = next((tmp_path / "saved").glob("*.arrow"))
    assert opened(file).facts.num_train == 14


@pytest.mark.parametrize("as_struct", [False, True])
def test_string_labels_and_bytes_from_other_writers(tmp_path: Path, as_struct: bool) -> None:
    cells = [{"bytes": png(i), "path": None} if as_struct else png(i) for i in range(20)]
    labels = [("zebra", "ant")[i % 2] for i in range(18)] + [None, None]
    pq.write_table(pa.table({"id": list(range(20)), "photo": cells, "class": labels}), tmp_path / "t.parquet")
    data = opened(tmp_path / "t.parquet")
    assert data.facts.class_names == ("ant", "zebra")
    assert (data.facts.num_train, data.facts.num_labelled) == (14, 12)
    pixels = first_pixels(data.train)
    assert pixels[-2:] == [18, 19]
    assert list(data.train.labels) == [1 - value % 2 for value in pixels[:-2]] + [-1, -1]


def test_integer_labels_that_do_not_start_at_zero(tmp_path: Path) -> None:
    rows = {"image": [png(i) for i in range(20)], "target": [(7, 30)[i % 2] for i in range(20)]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    data = opened(tmp_path / "t.parquet")
    assert data.facts.class_names == ("7", "30")
    assert list(data.train.labels) == [value % 2 for value in first_pixels(data.train)]


def test_columns_are_overridden_or_listed(tmp_path: Path) -> None:
    rows = {"a": [png(i) for i in range(20)], "b": [png(0)] * 20, "kind": ["x", "y"] * 10, "score": [0.5] * 20}
    pq.write_table(pa.table(rows), path := tmp_path / "t.parquet")
    data = opened(path, image_column="a", label_column="kind")
    assert data.facts.class_names == ("x", "y")
    assert len(set(first_pixels(data.train))) == len(data.train)
    with pytest.raises(UserError, match=r"more than one image column: a, b.*kind \(string\)"):
        opened(path)
    with pytest.raises(UserError, match=r"no label column.*kind \(string\)") as caught:
        opened(path, image_column="a")
    assert "data.label_column" in caught.value.hint
    with pytest.raises(UserError, match="'kinds', but the columns are a, b, kind, score") as caught:
        opened(path, image_column="a", label_column="kinds")
    assert "kind" in caught.value.hint
    with pytest.raises(UserError, match=r"score holds (double|float64), not classes"):
        opened(path, image_column="a", label_column="score")
    with pytest.raises(UserError, match=r"score holds .* not images"):
        opened(path, image_column="score", label_column="kind")


def test_several_class_labels_prefer_the_usual_name(tmp_path: Path) -> None:
    fine, coarse = datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["x", "y", "z"])
    features = datasets.Features({"img": datasets.Image(), "coarse_label": coarse, "fine_label": fine})
    rows = {"img": [image(i) for i in range(20)], "coarse_label": [0] * 20, "fine_label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    assert opened(tmp_path / "t.parquet").facts.class_names == ("a", "b")


def test_unknown_label_of_a_later_split(tmp_path: Path) -> None:
    for split, classes in (("train", "xy"), ("test", "xq")):
        rows = {"image": [png(i) for i in range(20)], "label": list(classes) * 10}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match=r"test\[1\] has the label 'q'"):
        opened(tmp_path)


def test_unreadable_cells_are_named(tmp_path: Path) -> None:
    cells = [png(0)] * 18 + [b"broken", None]
    pq.write_table(pa.table({"image": cells, "label": ["x", "y"] * 10}), tmp_path / "t.parquet")
    data = opened(tmp_path / "t.parquet")
    failures = []
    for source in (data.train, data.validation, data.test):
        assert source is not None
        for i in range(len(source)):
            try:
                source.load(i)
            except UnreadableImage as error:
                failures.append(error.name)
    assert sorted(failures) == ["train[18]", "train[19]"]


def test_broken_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="couldn't be read"):
        opened(tmp_path / "t.parquet")


def test_hub_out_of_reach_and_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def unreachable(path: str, name: str | None = None) -> None:
        asked.append((path, name))
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="hf:org/set couldn't be loaded") as caught:
        open_data(DataConfig(name="hf:org/set", subset="small"), seed=0)
    assert "Without access to the hub" in caught.value.hint
    assert asked == [("org/set", "small")]


def test_hub_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = datasets.DatasetDict({"train": table(20), "dev": table(4, 30), "test": table(6, 40)})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None: splits)
    data = open_data(DataConfig(name="hf:org/set"), seed=0)
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (20, 4, 6)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None: {"dev": table(4), "test": table(4)})
    with pytest.raises(UserError, match="no training split; its splits are dev, test"):
        open_data(DataConfig(name="hf:org/set"), seed=0)
