"""Sets of texts by name: files, columns, labels, splits, and batches."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.data import open_texts


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def open_(name, *, task="text-classification", seed=0, **options):
    return open_texts(DataConfig(name=str(name), **options), task=task, seed=seed)


def rows(count, labels=("b", "a")):
    return [{"text": f"text number {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write(folder, name, content):
    file = folder / name
    if file.suffix == ".csv":
        lines = ["text,label", *(f"{row['text']},{row['label']}" for row in content)]
        file.write_text("\n".join(lines) + "\n")
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
    return file


def all_texts(data):
    return [split.texts for split in (data.train, data.validation, data.test)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_is_cut_into_three(tmp_path, suffix):
    data = open_(write(tmp_path, f"set.{suffix}", rows(40)))
    assert data.facts.class_names == ("a", "b")
    train, validation, test = map(set, all_texts(data))
    assert len(train | validation | test) == 40
    for split in (data.train, data.validation, data.test):
        assert [int(text.split()[-1]) % 2 for text in split.texts] == [1 - label for label in split.labels]
    again = open_(tmp_path / f"set.{suffix}", seed=1)
    assert again.test.texts == data.test.texts
    assert again.validation.texts != data.validation.texts


def test_a_folder_of_tables_has_its_splits(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, "train.csv", rows(12))
    write(folder, "test.csv", [{"text": "text number 3", "label": "a"}, {"text": "another", "label": "b"}])
    data = open_(folder, labels_per_class=3)
    assert data.test.texts == ("text number 3", "another")
    assert "text number 3" not in data.train.texts + data.validation.texts
    assert any(
        "1 train texts are in validation and test too" in note or "left out" in note for note in data.facts.notes
    )
    assert (data.facts.num_labelled, data.train.labels.count(UNLABELLED)) == (6, len(data.train) - 6)


def test_class_folders_of_files(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for name in ("ham", "spam"):
            (tmp_path / "mail" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "mail" / split / name / f"{number}.txt").write_text(f"{split} {name} {number}\nmore")
    data = open_(tmp_path / "mail")
    assert data.facts.class_names == ("ham", "spam")
    assert data.test.texts[0] == "test ham 0\nmore"
    assert data.test.labels == (0, 0, 1, 1)


def test_lines_without_labels(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i}" for i in range(30)) + "\n\n  \n")
    data = open_(tmp_path / "lines.txt", task="sentence-embedding", train_texts=10)
    assert data.facts.label_kind == "none"
    assert (data.facts.class_names, data.facts.num_labelled, data.facts.num_train) == ((), 0, 10)
    assert set(data.train.labels) == {UNLABELLED}
    assert len(set(data.validation.texts) | set(data.test.texts)) == data.facts.num_validation + data.facts.num_test


def test_several_labels_and_numbers(tmp_path):
    several = [{"text": f"t{i}", "labels": [["x"], ["x", "y"], []][i % 3]} for i in range(30)]
    data = open_(write(tmp_path, "several.jsonl", several))
    assert (data.facts.label_kind, data.facts.class_names) == ("classes", ("x", "y"))
    for text, row in zip(data.train.texts, data.train.values, strict=True):
        assert row.tolist() == [[1, 0], [1, 1], [0, 0]][int(text[1:]) % 3]
    commas = [{"text": f"t{i}", "label": ["x", "x; y", "y"][i % 3].replace(";", ",")} for i in range(30)]
    named = open_(write(tmp_path, "commas.jsonl", commas), label_kind="classes")
    assert named.facts.class_names == ("x", "y")

    numbers = [{"text": f"t{i}", "score": i / 2} for i in range(30)]
    data = open_(write(tmp_path, "numbers.jsonl", numbers))
    assert data.facts.label_kind == "number"
    values = [int(text[1:]) / 2 for text in data.train.texts]
    assert data.train.values[:, 0].tolist() == values
    assert data.facts.label_scale == pytest.approx((np.mean(values), np.std(values)))


def test_further_texts_without_labels(tmp_path):
    table = write(tmp_path, "set.csv", rows(20))
    (tmp_path / "more.txt").write_text("text number 3\nsomething new\nsomething new\n")
    data = open_(table, unlabelled=tmp_path / "more.txt")
    assert data.train.texts[-1] == "something new"
    assert data.train.texts.count("text number 3") <= 1
    assert data.train.labels[-1] == UNLABELLED


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([{"a": "x", "b": "y", "label": 1}], {}, "more than one text column: a, b"),
        ([{"text": "x", "label": 1}], {"text_column": "txt"}, "the columns are text, label"),
        ([{"text": "x", "label": "q"}] * 4, {}, "has 1 class; classification needs at least 2"),
        ([{"text": "x", "label": "p"}, {"text": "y", "label": "q"}], {}, "Too few texts to cut a test split"),
        (
            [{"text": "x", "label": "p"}],
            {"label_kind": "number"},
            "has 'p' in the label column label, which is no number",
        ),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        open_(write(tmp_path, "set.jsonl", content), **options)


def test_names_that_are_none(tmp_path):
    with pytest.raises(UserError, match="There is no set of texts"):
        open_(tmp_path / "nothing.csv")
    (tmp_path / "x.pdf").write_text("x")
    with pytest.raises(UserError, match="no file of texts"):
        open_(tmp_path / "x.pdf")
    with pytest.raises(UserError, match="has no labels"):
        open_("demo:python_docs")
    with pytest.raises(UserError, match="Did you mean python_docs"):
        open_("demo:python_doc", task="sentence-embedding")


def test_the_demo_is_prose_without_repetition():
    data = open_("demo:python_docs", task="sentence-embedding")
    train, validation, test = map(set, all_texts(data))
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert len(train) > 500
    assert all(len(text.split()) >= 8 for text in train)
