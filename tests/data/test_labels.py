"""Labels and texts are read as they are written; what could be meant in two ways is asked about."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.data import TextPair, open_texts


def open_(path, *, task="text-classification", **options):
    return open_texts(DataConfig(name=str(path), **options), task=task, seed=0)


def write_csv(file, labels, texts=None, columns=("text", "label")):
    """Write six texts of each label, in turns."""
    rows = [(f"text {n}", labels[n % len(labels)]) for n in range(6 * len(labels))]
    if texts is not None:
        rows = [(texts[n % len(texts)] + f" {n}" * (n >= len(texts)), label) for n, (_, label) in enumerate(rows)]
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, delimiter="\t" if file.suffix == ".tsv" else ",").writerows([columns, *rows])
    return file


def write_parquet(file, labels, kind=None, texts=None):
    count = 6 * len(labels)
    columns = {
        "text": texts or [f"text {n}" for n in range(count)],
        "label": [labels[n % len(labels)] for n in range(count)],
    }
    pyarrow.parquet.write_table(pyarrow.table({**columns, "label": pyarrow.array(columns["label"], kind)}), file)
    return file


def write_jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def labels_by_text(data):
    """Return the label's name of each text, None for none."""
    names = data.facts.class_names
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    return {
        text: None if label == UNLABELLED else names[label]
        for split in splits
        for text, label in zip(split.texts, split.labels, strict=True)
    }


def noted(data, part):
    return any(part in note for note in data.facts.notes)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["NA", "None", "null", "nan"], ("NA", "None", "nan", "null")),
        (["N/A", "#N/A", "", "yes"], ("#N/A", "N/A", "yes")),
        (["01", "02", "1"], ("01", "02", "1")),
        (["True", "FALSE"], ("FALSE", "True")),
        (["-1", "0", "1"], ("-1", "0", "1")),
        ([str(n) for n in range(12)], tuple(str(n) for n in range(12))),
        (["1", "2", "3", "4", "5"], ("1", "2", "3", "4", "5")),
        (["1.0a", "1,5", '"quoted"', " blank"], (" blank", '"quoted"', "1,5", "1.0a")),
        (["7", "13"], ("7", "13")),
    ],
)
def test_labels_of_csv_files_are_text_as_written(tmp_path, labels, names):
    data = open_(write_csv(tmp_path / "x.csv", labels))
    assert data.facts.class_names == names
    expected = {f"text {n}": labels[n % len(labels)] or None for n in range(6 * len(labels))}
    assert labels_by_text(data).items() <= expected.items()
    assert set(labels_by_text(data).values()) == {label or None for label in labels}


def test_csv_files_of_a_repository_are_text_as_written_too(tmp_path):
    folder = tmp_path / "repository"  # which datasets opens as one of the hub
    folder.mkdir()
    write_csv(folder / "train.csv", ["NA", "01", "1"], texts=["null", "123", "a"])
    data = open_(f"hf:{folder}")
    assert data.facts.class_names == ("01", "1", "NA")
    assert {"null": "NA", "123": "01", "a": "1"}.items() <= labels_by_text(data).items()


def test_labels_that_look_like_missing_ones_are_said_and_empty_ones_are_none(tmp_path):
    data = open_(write_csv(tmp_path / "x.csv", ["NA", "yes", "no", ""]))
    assert noted(data, "'NA' is a class, as written: no label is an empty cell.")
    assert noted(data, "6 of 24 texts of the train split have no label.")
    assert data.facts.num_train - data.facts.num_labelled == 6
    assert not noted(open_(write_csv(tmp_path / "y.csv", ["yes", "no"])), "is a class, as written")


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (
            ["0.5", "1.0", "2.5"],
            None,
            r"holds 3 different numbers in 18 rows \(0.5, 1, 2.5\): they could be classes or",
        ),
        ([0.0, 1.0], "float64", "2 different numbers in 12 rows"),
        (["0", "7", "13"], None, r"3 different whole numbers from 0 to 13 \(0, 7, 13\)"),
        ([0, 7, 13], "int64", "3 different whole numbers from 0 to 13"),
        (list(range(1900, 1930)), "int64", "30 different whole numbers from 1900 to 1929 .* and so on"),
        (["0.25", "0.5", "n/a"], None, "holds numbers such as 0.25 and, in 6 rows, something else such as 'n/a'"),
    ],
)
def test_labels_that_could_be_classes_or_numbers_are_asked_about(tmp_path, labels, kind, message):
    file = (
        write_csv(tmp_path / "x.csv", labels) if kind is None else write_parquet(tmp_path / "x.parquet", labels, kind)
    )
    with pytest.raises(UserError, match=message) as error:
        open_(file)
    assert "data.label_kind=class" in error.value.hint
    as_classes = open_(file, label_kind="class")
    written = [str(int(label)) if kind == "float64" else str(label) for label in labels]
    assert sorted(as_classes.facts.class_names) == sorted(written)
    assert {f"text {n}": written[n % len(labels)] for n in range(6 * len(labels))} == labels_by_text(as_classes)
    if "n/a" not in labels:
        numbers = open_(file, label_kind="number")
        found = dict(zip(numbers.train.texts, numbers.train.values[:, 0].tolist(), strict=True))
        assert found.items() <= {f"text {n}": float(labels[n % len(labels)]) for n in range(6 * len(labels))}.items()


def test_whole_numbers_in_a_row_are_classes_and_the_plan_says_so(tmp_path):
    data = open_(write_csv(tmp_path / "x.csv", ["1", "2", "3"]))
    assert noted(data, "the whole numbers 1 to 3 are taken as 3 classes; data.label_kind=number takes them as numbers")
    assert open_(tmp_path / "x.csv", label_kind="number").facts.label_kind == "number"
    many = open_(write_csv(tmp_path / "y.csv", [f"{n / 8}" for n in range(25)]))
    assert many.facts.label_kind == "number"


def test_numbers_are_numbers_throughout(tmp_path):
    file = write_csv(tmp_path / "x.csv", ["0.5", "inf", "2"])
    with pytest.raises(UserError, match=r"train\[1\] has 'inf' in the label column label, which is no number"):
        open_(file, label_kind="number")


def test_numbers_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="No training text has a number"):
        open_(write_csv(tmp_path / "x.csv", [""]), label_kind="number")


def test_minus_one_is_no_label_by_the_hubs_convention_alone(tmp_path):
    named = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = {"text": [f"text {n}" for n in range(18)], "label": [-1, 0, 1] * 6}
    Dataset.from_dict(rows, features=named).to_parquet(tmp_path / "named.parquet")
    data = open_(tmp_path / "named.parquet")
    assert data.facts.class_names == ("bad", "good")
    assert labels_by_text(data) == {f"text {n}": [None, "bad", "good"][n % 3] for n in range(18)}

    numbers = open_(write_parquet(tmp_path / "sentiment.parquet", [-1, 0, 1]))
    assert numbers.facts.class_names == ("-1", "0", "1")
    assert labels_by_text(numbers) == {f"text {n}": str(n % 3 - 1) for n in range(18)}

    for suffix in ("csv", "parquet"):
        write = write_csv if suffix == "csv" else write_parquet
        folder = tmp_path / suffix
        folder.mkdir()
        write(folder / f"train.{suffix}", [0, 1])
        write(folder / f"test.{suffix}", [-1])
        hidden = open_(folder)
        assert set(labels_by_text(hidden).values()) == {"0", "1"}
        assert hidden.facts.class_names == ("0", "1")
        assert noted(hidden, "6 texts of the test split have no label")
        write(folder / f"test.{suffix}", [-1, 0])
        with pytest.raises(UserError, match=r"test\[0\] has the label '?-1'?, which is not among") as error:
            open_(folder)
        assert "-1 is none where all rows of a split have it" in error.value.hint


def test_texts_are_text_as_written(tmp_path):
    texts = ["null", "NA", "None", "123", "1.50", "2020-01-01", "nan", "True"]
    data = open_(write_csv(tmp_path / "x.csv", ["yes", "no"], texts=texts))
    assert set(texts) <= set(labels_by_text(data))
    assert not noted(data, "have no text")
    only_numbers = open_(write_csv(tmp_path / "n.csv", ["yes", "no"], texts=[f"{n}" for n in range(12)]))
    assert set(labels_by_text(only_numbers)) == {f"{n}" for n in range(12)}


def test_columns_that_are_not_read_are_named(tmp_path):
    rows = [{"id": n, "title": f"title {n}", "text": f"text {n}", "label": "yn"[n % 2]} for n in range(12)]
    data = open_(write_jsonl(tmp_path / "x.jsonl", rows))
    assert noted(data, "Columns: texts from text, labels from label. Not read: id, title.")
    free = open_(tmp_path / "x.jsonl", task="sentence-embedding")
    assert noted(free, "Columns: texts from text. Not read: id, title, label.")
    with (tmp_path / "ids.csv").open("w", encoding="utf-8") as lines:
        lines.write("id,words,label\n" + "".join(f"{n},words {n},{'yn'[n % 2]}\n" for n in range(12)))
    assert noted(open_(tmp_path / "ids.csv"), "texts from words, labels from label. Not read: id.")
    with pytest.raises(UserError, match=r"The column id holds .*int64.*, not texts"):
        open_(tmp_path / "x.jsonl", text_column="id")


@pytest.mark.parametrize("names", [("Cat", "cat"), ("a  b", "a b"), ("caf\u00e9", "cafe\u0301"), ("\uff21", "A")])
def test_classes_that_look_alike_are_warned_of(tmp_path, names, make_folder):
    data = open_(write_csv(tmp_path / "x.csv", [*names, "other"]))
    assert set(data.facts.class_names) == {*names, "other"}
    assert noted(data, "differ in nothing but blanks, case or Unicode form")
    from kdcli.data import open_data

    images = open_data(DataConfig(name=str(make_folder(dict.fromkeys(names, 4)))), seed=0)
    assert noted(images, "differ in nothing but blanks, case or Unicode form")
    assert not noted(open_data(DataConfig(name="demo:digits"), seed=0), "Unicode form")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,b,c\n", "line 2 has 3 cells, and the first line has 2"),
        ("text,label\na\n", "line 2 has 1 cells"),
        ('text,label\n"a,b\nc,d\n', "line 3: unexpected end of data"),
        ('text,label\n"a" b,c\n', "line 2: ',' expected after"),
        ("text,label,label\na,b,c\n", "more than one column label"),
        ("text;label\na;b\n", "its cells seem to be apart by ';'"),
        ("text,label\n", "no rows below the names"),
        ("", "it is empty"),
        ("text,label\n\xff,b\n".encode("latin-1"), "it is no UTF-8"),
    ],
)
def test_csv_files_that_are_not_whole(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        open_(tmp_path / "x.csv")


def test_tsv_files_with_and_without_quotes(tmp_path):
    rows = [('"an open quote', "yes"), ('a pair of "quotes"', "no"), ('"all quoted"', "yes"), ("plain", "no")] * 3
    rows = [(f"{text} {number}", label) for number, (text, label) in enumerate(rows)]
    (tmp_path / "raw.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    raw = open_(tmp_path / "raw.tsv")
    assert labels_by_text(raw) == dict(rows)
    assert noted(raw, "raw.tsv: quotes are taken as written, as they don't pair.")

    odd = [('say "hi"\tthere', "yes"), ("two\nlines", "no")] * 6
    odd = [(f"{text} {number}", label) for number, (text, label) in enumerate(odd)]
    with (tmp_path / "quoted.tsv").open("w", newline="") as lines:
        csv.writer(lines, delimiter="\t").writerows([("text", "label"), *odd])
    assert labels_by_text(open_(tmp_path / "quoted.tsv")) == dict(odd)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([[1, 0, 0], [0, 1, 0]], {}, r"train\[0\] has a label twice: \[1, 0, 0\]"),
        ([["x", None], ["y"]], {}, r"train\[0\] has a blank among its labels"),
        ([[0.5], [1.5]], {}, "not lists of labels"),
        ([[["x"]], [["y"]]], {}, "not lists of labels"),
        (["['x', 'y']", "['y']"], {"label_kind": "classes"}, "a list that is written as a string"),
        ([{"a": 1}, {"a": 2}], {}, "not classes"),
        ([[1], [2]], {"label_kind": "number"}, "lists or dictionaries, no single labels"),
        ([{"a": 1}, {"a": 2}], {"label_kind": "number"}, "lists or dictionaries, no single labels"),
    ],
)
def test_lists_of_labels_that_are_others(tmp_path, labels, options, message):
    rows = [{"text": f"text {n}", "label": labels[n % 2]} for n in range(12)]
    with pytest.raises(UserError, match=message):
        open_(write_jsonl(tmp_path / "x.jsonl", rows), **options)


def test_truth_values_and_lists_of_numbers(tmp_path):
    rows = [{"text": f"text {n}", "label": n % 2 == 0} for n in range(12)]
    data = open_(write_jsonl(tmp_path / "x.jsonl", rows))
    assert labels_by_text(data) == {f"text {n}": str(n % 2 == 0) for n in range(12)}
    rows = [{"text": f"text {n}", "label": [[10, 2], [0]][n % 2]} for n in range(12)]
    several = open_(write_jsonl(tmp_path / "y.jsonl", rows))
    assert several.facts.class_names == ("0", "2", "10")
    values = dict(zip(several.train.texts, several.train.values.tolist(), strict=True))
    assert values.items() <= {f"text {n}": [[0, 1, 1], [1, 0, 0]][n % 2] for n in range(12)}.items()


def test_labels_of_words_are_as_written(tmp_path):
    lines = "".join(f"word{n} NA\nother -1\nthird null\n\n" for n in range(12))
    (tmp_path / "x.conll").write_text(lines)
    data = open_(tmp_path / "x.conll", task="token-classification")
    assert data.facts.class_names == ("-1", "NA", "null")
    assert set(data.train.tags) == {(1, 0, 2)}
    assert noted(data, "'-1', 'NA', 'null' are classes, as written")
    rows = [{"tokens": ["a", "b", "c"], "tags": [-1, 0, -100]} for _ in range(12)]
    for number, row in enumerate(rows):
        row["tokens"][0] = f"a{number}"
    data = open_(write_jsonl(tmp_path / "x.jsonl", rows), task="token-classification")
    assert (data.facts.class_names, set(data.train.tags)) == (("-1", "0"), {(0, 1, UNLABELLED)})
    named = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "X"]))})
    table = {"tokens": [row["tokens"] for row in rows], "tags": [[-1, 0, 1]] * 12}
    Dataset.from_dict(table, features=named).to_parquet(tmp_path / "x.parquet")
    data = open_(tmp_path / "x.parquet", task="token-classification")
    assert (data.facts.class_names, set(data.train.tags)) == (("O", "X"), {(UNLABELLED, 0, 1)})


def pair_rows(first, second, count=12, **more):
    return [{first: f"first {n}", second: f"second {n}", "label": "yn"[n % 2], **more} for n in range(count)]


@pytest.mark.parametrize(
    "columns",
    [
        ("premise", "hypothesis"),
        ("sentence1", "sentence2"),
        ("question", "sentence"),
        ("question1", "question2"),
        ("text", "text_pair"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_pairs_of_texts_are_read_by_their_names(tmp_path, columns, order):
    rows = [{name: row[name] for name in [*columns[::order], "label"]} for row in pair_rows(*columns)]
    data = open_(write_jsonl(tmp_path / "x.jsonl", rows))
    assert labels_by_text(data) == {(f"first {n}", f"second {n}"): "yn"[n % 2] for n in range(12)}
    assert isinstance(data.train.texts[0], TextPair)
    assert noted(data, f"Columns: pairs of texts from {columns[0]} and {columns[1]}, labels from label.")
    single = open_(tmp_path / "x.jsonl", text_column=columns[1])
    assert single.train.texts[0].startswith("second")
    assert noted(single, f"Not read: {columns[0]}.")


def test_pairs_of_other_names_and_what_can_not_be_a_pair(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", pair_rows("a", "b"))
    with pytest.raises(UserError, match="more than one text column: a, b"):
        open_(file)
    data = open_(file, text_column="a", text_pair_column="b")
    assert set(labels_by_text(data)) == {(f"first {n}", f"second {n}") for n in range(12)}
    assert set(labels_by_text(open_(file, text_pair_column="b"))) == set(labels_by_text(data))
    for options, message in [
        ({"text_column": "a", "text_pair_column": "a"}, "are both a"),
        ({"text_pair_column": "c"}, "data.text_pair_column is 'c', but the columns are a, b, label"),
        ({"text_column": "a", "text_pair_column": "b", "task": "sentence-embedding"}, "reads single texts"),
        ({"text_column": "a", "text_pair_column": "b", "task": "masked-lm"}, "reads single texts"),
    ]:
        with pytest.raises(UserError, match=message):
            open_(file, **options)
    file = write_jsonl(tmp_path / "y.jsonl", pair_rows("question", "sentence", text="more"))
    with pytest.raises(UserError, match="look like a pair of texts, but there is text too"):
        open_(file)


def test_pairs_without_one_text_and_pairs_of_two_splits(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = pair_rows("premise", "hypothesis", 60)
    rows[0]["hypothesis"], rows[1]["premise"] = None, " "
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", [*rows[10:14], {"premise": "first 5", "hypothesis": "other", "label": "y"}])
    data = open_(folder)
    assert noted(data, "2 rows of train have no text and are left out.")
    both = {(f"first {n}", f"second {n}") for n in range(10, 14)}
    assert both < set(data.test.texts)
    assert not both & {*data.train.texts, *data.validation.texts}
    assert ("first 5", "second 5") in labels_by_text(data)
    more = write_jsonl(tmp_path / "more.jsonl", pair_rows("premise", "hypothesis", 62))
    further = open_(folder, unlabelled=more)
    assert set(further.train.texts) - set(data.train.texts) == {(f"first {n}", f"second {n}") for n in (0, 1, 60, 61)}
