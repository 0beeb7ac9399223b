"""``data.classes``: which classes are taken, and what becomes of the splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import ImageData, ImageSource, open_data
from kdcli.data.classes import choose_classes

TEN = tuple("abcdefghij")
ODD = ("1", "10", "2", "cat, big", "cat", "t-rex", "0-1", "part:1/2", "dog", "dog")


def chosen(*specs: str, names: tuple[str, ...] = TEN) -> list[int]:
    return list(choose_classes(specs, names, data="animals"))


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("0-4,7", [0, 1, 2, 3, 4, 7]),
        ("7,0-1", [0, 1, 7]),
        ("c, a,c", [0, 2]),
        ("j,0", [0, 9]),
        ("part:1/2", [0, 1, 2, 3, 4]),
        ("part:2/2", [5, 6, 7, 8, 9]),
        ("part:2/2+20%", [4, 5, 6, 7, 8]),
        ("part:2/2+100%", [0, 1, 2, 3, 4]),
        ("part:2/2+0%", [5, 6, 7, 8, 9]),
        ("part:1/3", [0, 1, 2, 3]),
        ("part:2/3", [4, 5, 6]),
        ("part:3/3", [7, 8, 9]),
        ("part:2/3+50%", [2, 3, 4]),  # half of 3 is rounded up
        ("part:10/10", [9]),
        ("part:1/5,j", [0, 1, 9]),
    ],
)
def test_label_numbers_names_and_parts(spec: str, labels: list[int]) -> None:
    assert chosen(spec) == labels


@pytest.mark.parametrize("num_classes", [2, 5, 7, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_a_partition_and_an_overlap_keeps_the_size(num_classes: int, parts: int) -> None:
    if parts > num_classes:
        return
    names = tuple(f"class {number}" for number in range(num_classes))
    split = [chosen(f"part:{number}/{parts}", names=names) for number in range(1, parts + 1)]
    assert [label for labels in split for label in labels] == list(range(num_classes))
    assert max(map(len, split)) - min(map(len, split)) <= 1
    for number in range(2, parts + 1):
        before, own = (set(labels) for labels in split[number - 2 : number])
        for percent in (0, 13, 50, 100):
            moved = set(chosen(f"part:{number}/{parts}+{percent}%", names=names))
            assert len(moved) == len(own)
            assert moved <= before | own
            assert abs(len(moved & before) - percent / 100 * len(own)) <= 0.5


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("1", [0]),  # a name before a number
        ("10,2", [1, 2]),
        ("0", [0]),
        ("0-1", [6]),
        ("0-2", [0, 1, 2]),
        ("t-rex", [5]),
        ("cat", [4]),
        ("cat, big", [3]),
        ("cat,cat, big,t-rex", [3, 4, 5]),
        ("part:1/2", [7]),
        ("part:2/2", [5, 6, 7, 8, 9]),
        ("dog", [8, 9]),  # two classes of one name
    ],
)
def test_every_class_can_be_named(spec: str, labels: list[int]) -> None:
    assert chosen(spec, names=ODD) == labels
    assert chosen(spec, spec, names=ODD) == labels


FOLDERS = tuple(sorted(str(number) for number in range(12)))
SIGNED = ("-1", "0", "1")
CODES = ("01", "02", "03", "10")
GAPS = ("3", "7", "9")


@pytest.mark.parametrize(
    ("names", "spec", "taken"),
    [
        (FOLDERS, "0-4", ["0", "1", "2", "3", "4"]),
        (FOLDERS, "2-10", ["10", "2", "3", "4", "5", "6", "7", "8", "9"]),
        (FOLDERS, "2,10", ["10", "2"]),
        (FOLDERS, "part:1/4", ["0", "1", "10"]),
        (SIGNED, "0-1", ["0", "1"]),
        (SIGNED, "-1-0", ["-1", "0"]),
        (SIGNED, "-1,1", ["-1", "1"]),
        (CODES, "1-3", ["01", "02", "03"]),
        (CODES, "10,2", ["02", "10"]),
        (GAPS, "3-7", ["3", "7"]),
        (ODD, "1-2", ["1", "2"]),  # both ends are names
        (ODD, "0-2", ["1", "10", "2"]),  # 0 is none: labels
    ],
)
def test_numbers_are_names_where_classes_have_such_names(names: tuple[str, ...], spec: str, taken: list[str]) -> None:
    assert [names[label] for label in chosen(spec, names=names)] == taken


@pytest.mark.parametrize(
    ("names", "spec", "message"),
    [
        (GAPS, "0", "has no '0'. It has 3 classes, named 3, 7, 9"),
        (GAPS, "0-2", "has no '0-2'"),
        (GAPS, "3-8", "has no '3-8'"),
        (FOLDERS, "0-12", "has no '0-12'. It has 12 classes, named 0 to 11"),
        (SIGNED, "2", "has no '2'. It has 3 classes, named -1 to 1"),
    ],
)
def test_numbers_that_are_no_names_are_no_labels_either(names: tuple[str, ...], spec: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        chosen(spec, names=names)
    assert message in error.value.message


def test_folders_that_are_numbers(make_folder: Callable[..., Path]) -> None:
    root = make_folder({str(number): 8 for number in range(12)})
    data = open_data(DataConfig(name=str(root), classes="0-4,11"), seed=0)
    assert data.facts.class_names == ("0", "1", "11", "2", "3", "4")
    assert {Path(data.train.describe(i)).parent.name for i in range(len(data.train))} == {"0", "1", "11", "2", "3", "4"}
    for index, label in enumerate(data.train.labels):
        assert data.facts.class_names[label] == Path(data.train.describe(index)).parent.name
    assert "Classes: 6 of 12 taken: 0 to 4, 11." in data.facts.notes
    in_order = "in the order of their names as text: 0, 1, 10, 11, 2 and 7 more. Numbers and ranges in data.classes"
    assert any(in_order in note for note in data.facts.notes)
    half = open_data(DataConfig(name=str(root), classes="part:1/2"), seed=0)
    assert "Classes: 6 of 12 taken: 0 to 3, 10, 11." in half.facts.notes
    assert not any("names as text" in note for note in open_data(DataConfig(name="demo:digits"), seed=0).facts.notes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("10", "animals has no '10'. It has 10 classes, numbered 0 to 9"),
        ("5-10", "has no '5-10'"),
        ("4-2", "has no '4-2'"),
        ("a,,b", "has no ''"),
        ("", "has no ''"),
        ("9" * 5000, "It has 10 classes"),
        ("A,x,y,z,u,v,w", "has no 'A', 'x', 'y', 'z', 'u' and 2 more"),
        ("part:3/2", "no part:3/2 of 10 classes"),
        ("part:0/2", "no part:0/2 of 10 classes"),
        ("part:1/11", "no part:1/11 of 10 classes"),
        ("part:2/2+101%", "no part:2/2"),
        ("part:1/2+20%", "no part before it"),
        ("part:1/2+0%,part:half", "has no 'part:half'"),
    ],
)
def test_classes_that_are_not_there(spec: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        chosen(spec)
    assert message in error.value.message
    assert error.value.hint


def test_unknown_names_have_suggestions() -> None:
    with pytest.raises(UserError, match="Did you mean cat"):
        chosen("cat,doog", "cot", names=("cat", "horse"))


def images_of(source: ImageSource | None, names: tuple[str, ...]) -> set[tuple[str, bytes]]:
    assert source is not None
    return {(names[label], source.load(index).inputs.tobytes()) for index, label in enumerate(source.labels)}


def splits_of(data: ImageData) -> list[set[tuple[str, bytes]]]:
    return [images_of(source, data.facts.class_names) for source in (data.train, data.validation, data.test)]


def test_classes_are_renumbered_and_images_stay_in_their_split() -> None:
    whole = open_data(DataConfig(name="demo:digits"), seed=0)
    some = open_data(DataConfig(name="demo:digits", classes="7,2,9"), seed=0)
    assert some.facts.class_names == ("2", "7", "9")
    assert some.test is not None
    assert set(some.train.labels) == set(some.validation.labels) == set(some.test.labels) == {0, 1, 2}
    assert (some.facts.num_train, some.facts.num_labelled) == (len(some.train), len(some.train))
    assert (some.facts.num_validation, some.facts.num_test) == (len(some.validation), len(some.test))
    for ours, all_images in zip(splits_of(some), splits_of(whole), strict=True):
        assert ours == {(name, image) for name, image in all_images if name in "279"}
    assert "Classes: 3 of 10 taken: 2, 7, 9." in some.facts.notes
    assert f"Validation: {len(some.validation)} images cut from the training split by seed 0, stratified by class." in (
        some.facts.notes
    )


def test_a_test_split_that_is_cut_is_the_same_for_every_choice(make_folder: Callable[..., Path]) -> None:
    root = make_folder({"ant": 20, "bee": 30, "cow": 25, "dog": 10, "elk": 1})
    first = open_data(DataConfig(name=str(root), classes="part:1/2"), seed=0)
    other = open_data(DataConfig(name=str(root), classes="part:2/2+50%,bee"), seed=1)
    assert (first.facts.class_names, other.facts.class_names) == (("ant", "bee", "cow"), ("bee", "cow", "dog"))
    test, other_test = splits_of(first)[2], splits_of(other)[2]
    shared = {image for image in test if image[0] in ("bee", "cow")}
    assert shared == {image for image in other_test if image[0] in ("bee", "cow")}
    assert len(shared) >= 8
    assert not test & (splits_of(other)[0] | splits_of(other)[1])
    with pytest.raises(UserError, match="elk has only 1 image"):
        open_data(DataConfig(name=str(root), classes="dog,elk"), seed=0)


def test_classes_come_before_train_images_and_labels_per_class() -> None:
    data = open_data(DataConfig(name="demo:digits", classes="0-3", train_images=100, labels_per_class=5), seed=0)
    labels = np.asarray(data.train.labels)
    assert len(labels) == 100
    assert np.bincount(labels[labels >= 0]).tolist() == [5] * 4
    with pytest.raises(UserError, match="train_images is 3, but there are 4 classes"):
        open_data(DataConfig(name="demo:digits", classes="0-3", train_images=3), seed=0)


def test_tables_keep_their_unlabelled_images(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    root = make_folder({"all": 24})
    files = sorted(str(path) for path in (root / "all").iterdir())
    labels = [number % 4 - 1 for number in range(24)]
    features = Features(
        {"image": ImageFeature(), "label": ClassLabel(names=["ant", "bee", "cow"]), "n": Value("int64")}
    )
    table = Dataset.from_dict({"image": files, "label": labels, "n": list(range(24))}, features=features)
    table.to_parquet(tmp_path / "animals.parquet")
    data = open_data(DataConfig(name=str(tmp_path / "animals.parquet"), classes=["bee", 2]), seed=0)
    assert data.facts.class_names == ("bee", "cow")
    assert list(data.train.labels).count(-1) == 6
    assert data.facts.num_train - data.facts.num_labelled == 6
    assert data.facts.num_labelled + data.facts.num_validation + data.facts.num_test == 12


def test_splits_of_their_own(make_folder: Callable[..., Path]) -> None:
    counts = {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("ant", "bee", "cow")}
    data = open_data(DataConfig(name=str(make_folder(counts)), classes="ant,cow"), seed=0)
    assert data.test is not None
    for source in (data.train, data.validation, data.test):
        assert list(source.labels) == [0] * 4 + [1] * 4
        assert {Path(source.describe(index)).parent.name for index in range(8)} == {"ant", "cow"}


def test_a_split_without_any_image_of_the_classes(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    files = sorted(str(path) for path in (make_folder({"all": 8}) / "all").iterdir())
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["ant", "bee", "cow", "dog"])})
    for split, labels in (("train", list(range(4)) * 2), ("test", [0, 1] * 4)):
        table = Dataset.from_dict({"image": files, "label": labels}, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}.parquet")
    with pytest.raises(UserError, match="no image of the test split has one of these classes"):
        open_data(DataConfig(name=str(tmp_path / "set"), classes="2,3"), seed=0)


def test_fewer_than_two_classes() -> None:
    with pytest.raises(UserError, match=r"takes 1 class of demo:digits \(5\); classification needs at least 2"):
        open_data(DataConfig(name="demo:digits", classes=5), seed=0)


def test_images_known_through_views_are_not_added_as_unlabelled(make_folder: Callable[..., Path]) -> None:
    root = make_folder({"ant": 12, "bee": 12, "cow": 12})
    config = DataConfig(name=str(root), classes="ant,bee", labels_per_class=2, unlabelled=root)
    data = open_data(config, seed=0)
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 36
    added = [data.train.describe(index) for index, label in enumerate(data.train.labels) if label < 0]
    assert {Path(path).parent.name for path in added[-12:]} == {"cow"}


def test_chosen_classes_without_any_image(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    files = sorted(str(path) for path in (make_folder({"all": 2}) / "all").iterdir())
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["ant", "bee", "cow", "dog"])})
    Dataset.from_dict({"image": files, "label": [0, 1]}, features=features).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(UserError, match="0 labelled images of 0 classes"):
        open_data(DataConfig(name=str(tmp_path / "two.parquet"), classes="cow,dog"), seed=0)
