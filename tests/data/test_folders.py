from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import ImageData, ImageSource, open_data

MakeFolder = Callable[..., Path]


def opened(root: Path, seed: int = 0, **options: object) -> ImageData:
    return open_data(DataConfig(name=str(root), **options), seed=seed)  # type: ignore[arg-type]


def names(source: ImageSource | None) -> set[str]:
    return set() if source is None else {source.describe(i) for i in range(len(source))}


def test_without_splits_both_are_cut(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 20, "dog": 30})
    data = opened(root)
    assert data.facts.class_names == ("cat", "dog")
    assert data.facts.num_labelled == data.facts.num_train
    parts = [names(data.train), names(data.validation), names(data.test)]
    assert set.union(*parts) == {str(path) for path in root.rglob("*.png")}
    assert sum(map(len, parts)) == 50
    for source in (data.train, data.validation, data.test):
        assert source is not None
        for i, label in enumerate(source.labels):
            assert Path(source.describe(i)).parent.name == data.facts.class_names[label]
        assert set(source.labels) == {0, 1}


def test_the_test_split_does_not_depend_on_the_seed_and_the_validation_split_does(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 20, "dog": 30})
    first, again, other = opened(root, 0), opened(root, 0), opened(root, 1)
    assert names(first.test) == names(other.test)
    assert names(first.validation) == names(again.validation) != names(other.validation)


@pytest.mark.parametrize("folder", ["val", "valid", "validation"])
def test_official_splits(make_folder: MakeFolder, folder: str) -> None:
    root = make_folder({"train/a": 3, "train/b": 2, f"{folder}/a": 2, f"{folder}/b": 1, "test/a": 1, "test/b": 2})
    data = opened(root)
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (5, 3, 3)
    assert names(data.validation) == {str(path) for path in (root / folder).rglob("*.png")}


def test_val_without_test(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train/a": 3, "train/b": 2, "val/a": 2, "val/b": 1}))
    assert data.test is None
    assert data.facts.num_test == 0
    assert any("no test split" in note for note in data.facts.notes)


def test_test_without_val(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 10, "train/b": 10, "test/a": 2, "test/b": 1})
    data = opened(root)
    assert (data.facts.num_train + data.facts.num_validation, data.facts.num_test) == (20, 3)
    assert names(data.test) == {str(path) for path in (root / "test").rglob("*.png")}
    told = f"Validation: {data.facts.num_validation} images cut"
    assert any(note.startswith(told) for note in data.facts.notes)


def test_train_alone_is_the_whole(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train/a": 10, "train/b": 10}))
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 20
    assert min(data.facts.num_validation, data.facts.num_test) >= 2


def test_classes_called_train_and_bus(make_folder: MakeFolder) -> None:
    assert opened(make_folder({"bus": 5, "train": 5})).facts.class_names == ("bus", "train")


def test_extensions_in_any_case_and_hidden_files(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4}, suffix=".PNG")
    make_folder({"b": 4}, suffix=".jpeg")
    (root / "a" / "._000.png").write_bytes(b"resource fork")
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".ipynb_checkpoints").mkdir()
    data = opened(root)
    assert data.facts.class_names == ("a", "b")
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 8


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no class folders"),
        ({"a": 0, "b": 0}, "no images"),
        ({"a": 5, "b": 0, "c": 5}, "no images of class b"),
        ({"a": 5}, "1 class"),
        ({"a": 5, "b": 1}, "b has only 1 image"),
        ({"a": 2, "b": 2}, "Too few images"),
        ({"train/a": 5, "train/b": 5, "val/a": 5}, "lacks b"),
        ({"train/a": 5, "train/b": 5, "test/a": 5, "test/b": 5, "test/c": 5}, "has c, which train has not"),
        ({"train/a": 5, "train/b": 5, "val/a": 5, "val/b": 0}, "no images of class b"),
        ({"train/a": 5, "train/b": 5, "val/a": 5, "valid/a": 1}, "more than one validation folder"),
        ({"val/a": 5, "test/a": 5}, "no training split; its folders are val, test"),
        ({"train": 5, "val": 5}, "no class folders in train"),
        ({".": 3}, "3 images but no class folders"),
    ],
)
def test_unsuitable_folders(make_folder: MakeFolder, counts: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(make_folder(counts))
    assert caught.value.hint


@pytest.mark.parametrize(("other", "task"), [("masks", "semantic-segmentation"), ("Depth", "depth-estimation")])
@pytest.mark.parametrize("split", ["", "train/"])
def test_masks_and_depth_are_no_class(make_folder: MakeFolder, other: str, task: str, split: str) -> None:
    folder = make_folder({f"{split}images": 6, f"{split}{other}": 6})
    with pytest.raises(UserError, match=f"images/ and {other}/ are no classes") as error:
        opened(folder)
    assert f"--task {task}" in error.value.hint


def test_classes_that_are_called_like_images_and_masks(make_folder: MakeFolder) -> None:
    folder = make_folder({"photos": 6, "masks": 6})
    for path in (folder / "masks").iterdir():
        path.rename(path.with_stem(f"carnival {path.stem}"))
    assert opened(folder).facts.class_names == ("masks", "photos")
    assert opened(make_folder({"x": 6, "y": 6}, "other")).facts.class_names == ("x", "y")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere") as caught:
        opened(tmp_path / "nowhere")
    assert "demo:digits" in caught.value.hint


def test_one_file_in_two_splits(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    (root / "test" / "a" / "link.png").symlink_to(root / "train" / "a" / "003.png")
    with pytest.raises(UserError, match=r"1 image file is in both the train and the test split.*link\.png"):
        opened(root)
    (root / "test" / "a" / "link.png").unlink()
    (root / "test" / "a" / "hard.png").hardlink_to(root / "train" / "b" / "001.png")
    with pytest.raises(UserError, match="both the train and the test"):
        opened(root)


def test_a_split_that_links_to_another(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    (root / "test").symlink_to(root / "val")
    with pytest.raises(UserError, match="4 image files are in both the validation and the test"):
        opened(root)


def test_labels_per_class(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 20, "dog": 30})
    full, few = opened(root), opened(root, labels_per_class=3)
    assert few.facts.num_labelled == 6
    assert few.facts.num_train == full.facts.num_train
    assert sorted(few.train.labels) == [-1] * (full.facts.num_train - 6) + [0] * 3 + [1] * 3
    assert names(few.validation) == names(full.validation)
    assert [label for label in few.train.labels if label >= 0] == [
        own for own, kept in zip(full.train.labels, few.train.labels, strict=True) if kept >= 0
    ]
    assert list(opened(root, labels_per_class=3).train.labels) == list(few.train.labels)
    count = list(full.train.labels).count(0)
    with pytest.raises(UserError, match=rf"labels_per_class is {count + 1}.*cat \({count}\)") as caught:
        opened(root, labels_per_class=count + 1)
    assert str(count) in caught.value.hint


def test_unlabelled_folder(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 20, "dog": 30})
    extra = make_folder({"x/y": 3, ".": 2}, name="extra")
    before = opened(root).facts
    data = opened(root, unlabelled=extra, labels_per_class=2)
    assert (data.facts.num_train, data.facts.num_labelled) == (before.num_train + 5, 4)
    assert list(data.train.labels[-5:]) == [-1] * 5
    last = range(before.num_train, before.num_train + 5)
    assert {data.train.describe(i) for i in last} == {str(path) for path in extra.rglob("*.png")}
    assert data.train.load(last[-1]).inputs.mode == "RGB"


def test_unlabelled_images_of_other_splits_are_left_out(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 3})
    make_folder({"images/spare": 4})
    shutil.move(tmp_path / "images" / "images" / "spare", root / "spare")
    (root / "images").rmdir()
    data = opened(root, unlabelled=root)
    assert data.facts.num_train + data.facts.num_validation == 20 + 4
    assert not names(data.train) & (names(data.test) | names(data.validation))
    assert any("26 others there are left out" in note for note in data.facts.notes)
    with pytest.raises(UserError, match="already in the data"):
        opened(root, unlabelled=root / "test")


def test_unlabelled_folder_missing_or_empty(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 20, "dog": 30})
    with pytest.raises(UserError, match="there is no folder"):
        opened(root, unlabelled=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no image"):
        opened(root, unlabelled=tmp_path / "empty")
