"""What is taken as training, validation and test: in folders, in files by their names, and in tables, alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import ImageData, TextData, open_data, open_texts, open_unlabelled
from kdcli.data.split_names import split_files

MakeFolder = Callable[..., Path]
NAMES = {
    "train": ["train", "training", "Train", "TRAINING"],
    "validation": ["val", "valid", "validation", "dev", "eval", "Dev"],
    "test": ["test", "testing", "TEST"],
}


def counts(data: ImageData | TextData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), 0 if data.test is None else len(data.test)


def rows(first: int, count: int) -> list[tuple[str, str]]:
    return [(f"text {number}", "ab"[number % 2]) for number in range(first, first + count)]


def write_csv(file: Path, first: int, count: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows(first, count)))


def table(first: int, count: int) -> datasets.Dataset:
    texts, labels = zip(*rows(first, count), strict=True)
    return datasets.Dataset.from_dict({"text": texts, "label": labels})


def open_kind(
    kind: str, root: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch, **options: object
) -> object:
    """Make data of one kind, with so many samples a split, and open them."""
    firsts = {name: 100 * number for number, name in enumerate(sizes)}
    name = str(root)
    if kind == "hub":
        name = "hf:org/set"
        splits = datasets.DatasetDict({split: table(firsts[split], size) for split, size in sizes.items()})
        monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None: splits)
    for split, size in sizes.items():
        first = firsts[split]
        if kind == "csv files":
            write_csv(root / f"{split}.csv", first, size)
        elif kind == "csv folders":
            write_csv(root / split / "part.csv", first, size)
            write_csv(root / "any.csv", 0, 0)
            (root / "any.csv").unlink()
        elif kind == "parquet files":
            root.mkdir(exist_ok=True)
            table(first, size).to_parquet(root / f"{split}-00000-of-00001.parquet")
        elif kind == "txt folders":
            for text, label in rows(first, size):
                (root / split / label).mkdir(parents=True, exist_ok=True)
                (root / split / label / f"{text}.txt").write_text(text)
        elif kind == "words":
            root.mkdir(exist_ok=True)
            (root / f"{split}.conll").write_text(
                "".join(f"{text.split()[1]} {label}\n\n" for text, label in rows(first, size))
            )
    task = "token-classification" if kind == "words" else "text-classification"
    return open_texts(DataConfig(name=name, **options), task=task, seed=0)  # type: ignore[arg-type]


TEXT_KINDS = ["csv files", "parquet files", "txt folders", "words", "hub"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("number", range(6))
def test_one_list_of_names_for_folders_files_and_tables(
    number: int, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation, test = (names[number % len(names)] for names in NAMES.values())
    root = make_folder({f"{split}/{name}": n for split, n in ((train, 3), (validation, 2), (test, 1)) for name in "ab"})
    data = open_data(DataConfig(name=str(root)), seed=0)
    assert counts(data) == (6, 4, 2)
    assert counts(
        open_unlabelled(DataConfig(name=str(make_folder({train: 6, validation: 4, test: 3}, name="any"))), None, seed=0)
    ) == (6, 4, 3)
    for kind in TEXT_KINDS:
        folder = tmp_path / kind.replace(" ", "-")
        opened = open_kind(kind, folder, {train: 6, validation: 4, test: 2}, monkeypatch)
        assert counts(opened) == (6, 4, 2), kind  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"Train": 6, "holdout": 4}, {}, r"has the (folder|file|split) Train.*, and holdout.* not understood"),
        ({"val": 6, "test": 4}, {}, r"no training split; its (folder|file|split)s are"),
        ({"train": 6, "val": 4, "dev": 4}, {}, r"more than one validation"),
        ({"train": 6, "holdout": 4}, {"validation": "holdut"}, r"data\.splits\.validation is 'holdut'"),
    ],
)
def test_splits_that_are_not_understood_are_refused(
    kind: str, sizes: dict[str, int], options: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_kind(kind, tmp_path / "set", sizes, monkeypatch, **({"splits": options} if options else {}))
    assert "data.splits" in caught.value.hint or "Did you mean holdout" in caught.value.hint


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_other_names_of_splits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": 6, "holdout": 4, "extra": 8, "test": 2}
    data = open_kind(kind, tmp_path / "a", sizes, monkeypatch, splits={"validation": "holdout"})
    assert counts(data) == (6, 4, 2)  # type: ignore[arg-type]
    assert any(re.search(r"Left out: the \w+ extra", note) for note in data.facts.notes)  # type: ignore[attr-defined]
    data = open_kind(kind, tmp_path / "b", sizes, monkeypatch, splits={"train": "extra", "validation": "train"})
    assert counts(data) == (8, 6, 2)  # type: ignore[arg-type]
    data = open_kind(kind, tmp_path / "c", {"train": 20, "holdout": 4}, monkeypatch, splits={"train": "train"})
    assert sum(counts(data)) == 20  # type: ignore[arg-type]


def test_other_names_of_image_folders(make_folder: MakeFolder) -> None:
    root = make_folder({f"{split}/{name}": n for split, n in (("train2017", 4), ("val2017", 3)) for name in "ab"})
    with pytest.raises(UserError, match="no training split; its folders are train2017, val2017") as caught:
        open_data(DataConfig(name=str(root)), seed=0)
    assert "train, training" in caught.value.hint
    splits = {"train": "train2017", "validation": "val2017"}
    config = DataConfig(name=str(root), splits=splits)  # type: ignore[arg-type]
    assert counts(open_data(config, seed=0)) == (8, 6, 0)
    assert counts(open_unlabelled(config, None, seed=0)) == (8, 6, 0)
    for name in ("demo:digits", str(root / "train2017" / "a" / "000.png")):
        with pytest.raises(UserError, match=r"data\.splits is set, but"):
            open_data(DataConfig(name=name, splits=splits), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            {"Train/a": 3, "Train/b": 3, "holdout/a": 2, "holdout/b": 2},
            "has the folder Train, and holdout, which is not",
        ),
        ({"train/a": 3, "train/b": 3, "foo/a": 2}, "has the folder train, and foo"),
        ({"training_set/a": 3, "val/a": 3, "val/b": 1}, "no training split; its folders are val, training_set"),
        ({"train2017": 3, "val2017": 2}, "no training split; its folders are train2017, val2017"),
        ({"Train/a": 3, "Train/b": 3, "train/a": 2, "train/b": 1}, "more than one train folder: Train, train"),
        ({"train/steam": 3, "train/old": 3, "bus": 4}, "has the folder train, and bus"),
    ],
)
@pytest.mark.parametrize("is_labelled", [True, False])
def test_folders_that_look_like_splits_are_refused(
    make_folder: MakeFolder, folders: dict[str, int], message: str, is_labelled: bool
) -> None:
    config = DataConfig(name=str(make_folder(folders)))
    with pytest.raises(UserError, match=message):
        open_data(config, seed=0) if is_labelled else open_unlabelled(config, None, seed=0)


@pytest.mark.parametrize(
    "names",
    [("bus", "train"), ("test", "bus"), ("test_tube", "test_strip"), ("dev", "ops"), ("training", "test", "bus")],
)
def test_classes_may_be_called_like_splits(make_folder: MakeFolder, names: tuple[str, ...]) -> None:
    root = make_folder(dict.fromkeys(names, 6))
    assert open_data(DataConfig(name=str(root)), seed=0).facts.class_names == tuple(sorted(names))


def test_a_folder_without_samples_beside_the_splits_is_no_question(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 8, "train/b": 8, "docs": 0})
    (root / "docs" / "about.txt").write_text("about")
    assert sum(counts(open_data(DataConfig(name=str(root)), seed=0))) == 16


def test_classes_with_the_same_folders_inside_may_be_splits(make_folder: MakeFolder) -> None:
    root = make_folder({f"{split}/{name}": 5 for split in ("essai", "entrainement") for name in ("chat", "chien")})
    notes = open_data(DataConfig(name=str(root)), seed=0).facts.notes
    assert any("Each of them holds the folders chat, chien: if they are splits, data.splits" in note for note in notes)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.csv", "b.csv"], {"train": ["a.csv", "b.csv"]}),
        (["test.csv"], {"train": ["test.csv"]}),
        (["data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet", "data/train-00001-of-00002.parquet"],
         {"train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
          "test": ["data/test-00000-of-00001.parquet"]}),
        (["my-train.data.csv", "my_dev.csv"], {"train": ["my-train.data.csv"], "validation": ["my_dev.csv"]}),
        (["train/x.csv", "Testing/x.csv"], {"train": ["train/x.csv"], "test": ["Testing/x.csv"]}),
        (["contest.csv", "trained.csv"], {"train": ["contest.csv", "trained.csv"]}),
    ],
)  # fmt: skip
def test_files_by_name(files: list[str], expected: dict[str, list[str]]) -> None:
    assert split_files(files, None, where="set")[0] == expected


@pytest.mark.parametrize("name", ["set[1]", "a*b", "what?"])
def test_names_with_wildcards_are_no_patterns(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "set1" / "train.csv", 0, 20)
    write_csv(tmp_path / name / "train.csv", 100, 20)
    for path in (tmp_path / name, tmp_path / name / "train.csv"):
        data = open_texts(DataConfig(name=str(path)), task="text-classification", seed=0)
        assert sum(counts(data)) == 20
        assert "text 0" not in data.train.texts


def test_classes_whose_names_are_like_those_of_splits_are_told_what_to_do(make_folder: MakeFolder) -> None:
    with pytest.raises(UserError) as refused:
        open_data(DataConfig(name=str(make_folder({"train": 6, "test track": 6, "bus": 6}))), seed=0)
    assert "needs another name" in (refused.value.hint or "")
    data = open_data(DataConfig(name=str(make_folder({"rail": 6, "test track": 6, "bus": 6}, name="renamed"))), seed=0)
    assert data.facts.class_names == ("bus", "rail", "test track")
