from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.data import ImageData, ImageSource, open_unlabelled

MakeFolder = Callable[..., Path]


def opened(root: Path, *, evaluation: DataConfig | None = None, seed: int = 0, **options: object) -> ImageData:
    config = DataConfig(name=str(root), **options)  # type: ignore[arg-type]
    return open_unlabelled(config, evaluation, seed=seed)


def names(source: ImageSource | None) -> set[str]:
    return set() if source is None else {source.describe(i) for i in range(len(source))}


def test_images_in_any_depth_are_cut_without_labels(make_folder: MakeFolder) -> None:
    root = make_folder({".": 10, "holidays": 15, "holidays/sea": 25})
    data = opened(root)
    assert (data.facts.task, data.facts.label_kind, data.facts.class_names) == ("image-embedding", "none", ())
    parts = [names(data.train), names(data.validation), names(data.test)]
    assert set.union(*parts) == {str(path) for path in root.rglob("*.png")}
    assert sum(map(len, parts)) == 50
    assert data.labelled is None
    assert any("lie outside of class folders" in note for note in data.facts.notes)
    other = opened(root, seed=1)
    assert names(other.test) == names(data.test)
    assert names(other.validation) != names(data.validation)


def test_class_folders_keep_their_labels_for_the_end(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 20, "dog": 30})
    data = opened(root)
    assert data.labelled is not None
    assert data.labelled.facts.class_names == ("cat", "dog")
    for mine, theirs in (
        (data.train, data.labelled.train),
        (data.validation, data.labelled.validation),
        (data.test, data.labelled.test),
    ):
        assert mine is not None
        assert theirs is not None
        assert names(mine) == names(theirs)
        assert set(mine.labels) == {UNLABELLED}
        for i, label in enumerate(theirs.labels):
            assert Path(theirs.describe(i)).parent.name == ("cat", "dog")[label]
    assert opened(root, evaluation=DataConfig(name="none")).labelled is None


def test_splits_of_a_folder_need_no_classes(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 6, "val/x": 4, "test": 5})
    data = opened(root)
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (6, 4, 5)
    assert data.labelled is None


def test_files_beside_the_folders_of_the_splits_are_counted(make_folder: MakeFolder) -> None:
    root = make_folder({"train": 5, "val": 5})
    (root / "notes.txt").write_text("a note")
    assert "Not read: 1 file (.txt: 1)." in opened(root).facts.notes


def test_folders_beside_those_of_the_splits_are_left_out(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train": 6, "test": 5, "more": 7}))
    assert data.facts.num_train + data.facts.num_validation == 6
    assert (data.facts.num_test, data.labelled) == (5, None)
    assert "Left out: the folder more." in data.facts.notes


def test_a_folder_called_train_may_be_one_of_many(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train": 10, "bus": 10, "car": 10}))
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 30
    assert data.labelled is not None


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "has no images"),
        ({"a": 0}, "has no images"),
        ({"test": 5}, "but no train folder"),
        ({"train": 5, "val": 5, ".": 2}, "has train, val, and 2 images beside them"),
        ({"train": 5, "val": 0}, "val has no images"),
        ({".": 7}, "too few images: 2 training, 2 validation, 3 test"),
    ],
)
def test_what_can_not_be_split_is_refused(make_folder: MakeFolder, counts: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        opened(make_folder(counts))


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ({"all": 20}, "there is one folder of images"),
        ({"a": 20, "b": 0}, "no images of class b"),
        ({".": 20}, "no class folders"),
    ],
)
def test_folders_that_are_no_classes_are_said_to_be_none(make_folder: MakeFolder, counts: dict, note: str) -> None:
    data = opened(make_folder(counts))
    assert data.labelled is None
    assert any(note in line for line in data.facts.notes)


def test_a_file_of_two_names_is_in_one_split(make_folder: MakeFolder) -> None:
    root = make_folder({".": 20})
    for path in sorted(root.glob("*.png")):
        os.link(path, path.with_name(f"again-{path.name}"))
    data = opened(root)
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 20


def test_held_out_images_are_not_trained_on(make_folder: MakeFolder) -> None:
    root = make_folder({".": 30})
    labelled = make_folder({"train/a": 4, "train/b": 4, "test/a": 3, "test/b": 3}, name="labelled")
    for path in (labelled / "test").rglob("*.png"):
        os.link(path, root / f"{path.parent.name}-{path.name}")
    data = opened(root, evaluation=DataConfig(name=str(labelled)), test_fraction=0.1, validation_fraction=0.5)
    for split in (data.train, data.validation):
        assert not any(Path(name).name.startswith(("a-", "b-")) for name in names(split))
    for split in ("training", "validation"):
        assert any(f"{split} images are held out by" in note for note in data.facts.notes)
    assert data.labelled is not None
    assert data.labelled.held_out == ("test", data.labelled.test)


def test_data_are_not_their_own_labelled_images_under_another_name(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    files = sorted(str(path) for path in make_folder({"a": 20}).rglob("*.png"))
    table = datasets.Dataset.from_dict({"image": files, "label": [number % 2 for number in range(20)]})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "set.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--eval-data is --data itself"):
        opened(tmp_path / "set.parquet", evaluation=DataConfig(name="./set.parquet"))


def test_a_validation_split_without_a_test_split_is_kept(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train/a": 5, "train/b": 5, "val/a": 3, "val/b": 3}))
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (10, 6, 0)
    assert data.labelled is not None
    assert len(data.labelled.held_out[1]) == 6


def test_few_of_the_training_images_and_more_of_others(make_folder: MakeFolder) -> None:
    more = make_folder({".": 5}, name="more")
    data = opened(make_folder({"a": 25, "b": 25}), train_images=9, unlabelled=more)
    assert data.facts.num_train == 14
    assert data.labelled is not None
    assert len(data.labelled.train) == 9


def test_large_splits_are_thinned_out(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 25, "b": 25})
    whole = opened(root).facts
    monkeypatch.setattr("kdcli.data.images.unlabelled.MAX_PAIRS", whole.num_validation)
    data = opened(root)
    assert (data.facts.num_validation, data.facts.num_test) == (whole.num_validation, whole.num_validation)
    assert any(f"Of {whole.num_test} test images {whole.num_validation}, spread" in note for note in data.facts.notes)
    assert data.labelled is not None
    assert data.labelled.facts.num_test == whole.num_test > whole.num_validation  # classifiers look at all of them


def test_labelled_images_are_sampled_by_class(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdcli.data.images.unlabelled import labelled_sample

    monkeypatch.setattr("kdcli.data.images.unlabelled.MAX_LABELLED", 10)
    data = opened(make_folder({"a": 40, "b": 10}))
    assert data.labelled is not None
    sample = labelled_sample(data.labelled.train)
    assert len(sample) == 10
    assert set(sample.labels) == {0, 1}


def test_a_demo_has_labels() -> None:
    data = open_unlabelled(DataConfig(name="demo:digits"), None, seed=0)
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (1293, 144, 360)
    assert data.labelled is not None
    assert len(data.labelled.facts.class_names) == 10


@pytest.mark.parametrize("columns", [("image",), ("image", "label")])
def test_a_table_may_have_no_labels(columns: tuple[str, ...], make_folder: MakeFolder, tmp_path: Path) -> None:
    import datasets

    files = sorted(str(path) for path in make_folder({"a": 20}).rglob("*.png"))
    values = {"image": files, "label": [number % 2 for number in range(20)]}
    table = datasets.Dataset.from_dict({column: values[column] for column in columns})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "set.parquet")
    data = opened(tmp_path / "set.parquet")
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 20
    assert (data.labelled is None) == ("label" not in columns)
    with pytest.raises(UserError, match=r"data\.label_column is 'nothing'"):
        opened(tmp_path / "set.parquet", label_column="nothing")
