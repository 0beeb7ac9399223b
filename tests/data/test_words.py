"""Words with labels: what is read, and that every model has the same words."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import ByT5Tokenizer

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.data import open_texts
from kdcli.data.fingerprint import fingerprint
from kdcli.data.texts.words import Reader, WordSource, cut_words, encode_words, first_tokens

TEXTS = [[f"word{number}", "in", "Rome"] for number in range(20)]
TAGS = [["O", "O", "B-LOC"] for _ in TEXTS]


def open_(name, **options):
    return open_texts(DataConfig(name=str(name), **options), task="token-classification", seed=0)


def rows(words="tokens", tags="ner_tags", texts=TEXTS, labels=TAGS, **more):
    columns = {words: texts, tags: labels, **more}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def write_rows(file, found):
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


def conll(texts=TEXTS, tags=TAGS, between=" X "):
    return "\n".join(
        "".join(f"{word}{between}{tag}\n" for word, tag in zip(*both, strict=True))
        for both in zip(texts, tags, strict=True)
    )


def all_pairs(data):
    names = data.facts.class_names
    return sorted(
        (words, tuple(names[tag] for tag in tags))
        for source in (data.train, data.validation, data.test)
        for words, tags in zip(source.words, source.tags, strict=True)
    )


EXPECTED = sorted((tuple(words), tuple(tags)) for words, tags in zip(TEXTS, TAGS, strict=True))


@pytest.mark.parametrize("name", ["x.conll", "x.iob", "x.bio", "x.txt", "x.tsv"])
def test_a_word_a_line(name, tmp_path):
    text = "\ufeff-DOCSTART- -X- O\n\n" + conll(between="\tX\t" if name == "x.tsv" else " X ").replace("\n", "\r\n")
    (tmp_path / name).write_bytes(text.encode())
    data = open_(tmp_path / name)
    assert all_pairs(data) == EXPECTED
    assert (data.facts.class_names, data.facts.label_kind, data.facts.noun) == (("B-LOC", "O"), "words", "text")
    assert data.facts.num_labelled == data.facts.num_train


def test_a_tab_keeps_spaces_inside_words(tmp_path):
    (tmp_path / "x.conll").write_text(conll([["New York", "is"]] * 2 + TEXTS, [["B-LOC", "O"]] * 2 + TAGS, "\t"))
    assert any("New York" in words for words, _ in all_pairs(open_(tmp_path / "x.conll")))


def test_a_column_between_the_first_and_the_last(tmp_path):
    """As in UD's files: a number, the word, its lemma, its part of speech, and so on."""
    lines = [
        f"{number}\t{word}\t_\t{tag}\t_\n" for number, (word, tag) in enumerate((("Rome", "NOUN"), ("is", "VERB")), 1)
    ]
    (tmp_path / "x.conll").write_text("\n".join("".join(lines).replace("Rome", f"Rome{i}") for i in range(9)))
    data = open_(tmp_path / "x.conll", text_column="column2", label_column="column4")
    assert data.facts.class_names == ("NOUN", "VERB")
    assert {words[1] for words in data.train.words} == {"is"}


def test_every_split_has_the_columns_and_the_labels_of_training(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.conll").write_text(conll())
    (folder / "dev.conll").write_text("a X O\n\nb X O\nc X B-LOK\n")
    with pytest.raises(UserError, match=r"validation\[1\] has the label 'B-LOK', .* Did you mean B-LOC") as error:
        open_(folder)
    assert error.value.hint == "The training labels are B-LOC, O."
    (folder / "dev.conll").write_text("a O\n\nb O\n")
    with pytest.raises(UserError, match="The split validation has no column column2"):
        open_(folder, text_column="column2", label_column="tag")


def test_splits_are_told_by_the_files_names_and_a_file_ends_a_text(tmp_path):
    for name, first in (("train-a", 0), ("train-b", 8), ("dev", 14), ("test", 17)):
        part = slice(first, {0: 8, 8: 14, 14: 17, 17: 20}[first])
        (tmp_path / f"{name}.conll").write_text(conll(TEXTS[part], TAGS[part]))
    data = open_(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 3, 3)
    assert all_pairs(data) == EXPECTED


@pytest.mark.parametrize(("words", "tags"), [("tokens", "ner_tags"), ("words", "labels"), ("text", "tags")])
def test_tables_of_lists(words, tags, tmp_path):
    assert all_pairs(open_(write_rows(tmp_path / "x.jsonl", rows(words, tags)))) == EXPECTED


def test_class_labels_numbers_and_columns_by_name(tmp_path):
    names = ["O", "B-LOC", "I-LOC"]
    tags = [[names.index(tag) for tag in text] for text in TAGS]
    columns = {"tokens": TEXTS, "ner_tags": tags, "pos_tags": [[7, 3, 3]] * len(TEXTS)}
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names)), "pos_tags": List(Value("int64"))}
    )
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    data = open_(tmp_path / "x.parquet")
    assert data.facts.class_names == ("O", "B-LOC", "I-LOC")
    assert all_pairs(data) == EXPECTED
    assert any("No training text has the label I-LOC" in note for note in data.facts.notes)
    data = open_(tmp_path / "x.parquet", label_column="pos_tags")
    assert data.facts.class_names == ("3", "7")
    assert data.train.tags[0] == (1, 0, 0)


def test_words_and_texts_without_labels(tmp_path):
    labels = [None] * 5 + [["O", None, "B-LOC"]] * 15
    data = open_(write_rows(tmp_path / "x.jsonl", rows(labels=labels)))
    assert data.facts.num_labelled < data.facts.num_train
    assert {label for source in (data.validation, data.test) for label in source.labels} == {0}
    assert set(data.train.tags) == {(UNLABELLED,) * 3, (1, UNLABELLED, 0)}
    batch = data.train.batch([0, 1])
    assert batch.targets.tolist() == [*data.train.tags[0], *data.train.tags[1]]
    assert (len(batch), batch.samples.tolist()) == (2, [0, 1])
    few = open_(tmp_path / "x.jsonl", train_texts=4)
    assert len(few.train) == 4


def test_blank_words_and_texts_are_left_out(tmp_path):
    data = open_(write_rows(tmp_path / "x.jsonl", rows(texts=[["word", " ", "Rome"], [], *TEXTS[2:]], labels=[["O", "O", "B-LOC"], [], *TAGS[2:]])))  # fmt: skip
    assert (("word", "Rome"), ("O", "B-LOC")) in all_pairs(data)
    assert {"1 words of train are blank and left out.", "1 rows of train have no words and are left out."} <= set(
        data.facts.notes
    )


def test_a_label_counts_in_the_fingerprint(tmp_path):
    before = fingerprint(open_(write_rows(tmp_path / "x.jsonl", rows())))
    after = fingerprint(open_(write_rows(tmp_path / "y.jsonl", rows(labels=[["B-LOC", "O", "B-LOC"], *TAGS[1:]]))))
    assert before != after


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("x.conll", "Rome\n", {}, "Line 1 of a file of the split train has no label: 'Rome'"),
        ("x.conll", "a X O\nb O\n", {}, "Line 2 of a file of the split train has 2 columns, and the first has 3: 'b O'"),
        ("x.conll", "a X O\n", {"label_column": "column3"}, "the columns are word, column2, tag"),
        ("x.conll", "a X O\n", {"label_column": "word"}, "The column word is that of the words"),
        ("x.conll", "\n\n", {}, "have no words"),
        ("x.csv", "tokens,tags\n", {}, "no file of labelled words"),
        ("x.jsonl", json.dumps({"tokens": ["a"], "tags": ["O", "O"]}), {}, r"train\[0\] has 1 words and 2 labels"),
        ("x.jsonl", json.dumps({"text": "a b", "label": 1}), {}, "Found no text column"),
        ("x.jsonl", json.dumps({"tokens": ["a"], "f": [0.5]}), {}, "Found no label column"),
        ("x.jsonl", json.dumps({"tokens": ["a"], "p": ["x"], "q": ["y"]}), {"text_column": "tokens"}, "more than one label column: p, q"),
        ("x.jsonl", json.dumps({"tokens": ["a"], "tags": ["x"], "n": 1}), {"text_column": "n"}, "not lists of words"),
        ("x.jsonl", json.dumps({"tokens": ["a"], "tags": ["x"], "n": 1}), {"label_column": "n"}, "not lists of labels"),
        ("x.jsonl", json.dumps({"tokens": ["a"], "tags": ["x"]}), {"label_column": "tag"}, "Did you mean tags"),
        ("x.conll", "a O\n\nb O\n\nc O\n", {}, "has 1 class"),
        ("x.conll", "a O\n\nb P\n\nc O\n\nd P", {"labels_per_class": 1}, "one class each"),
    ],
)  # fmt: skip
def test_what_can_not_be_read(name, text, options, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        open_(tmp_path / name, **options)
    assert error.value.hint


def test_other_places_have_no_labelled_words(tmp_path):
    for name, message in (
        (tmp_path, "has no files of labelled words"),
        ("demo:python_docs", "has no labels"),
        ("gone", "There is no set"),
    ):
        with pytest.raises(UserError, match=message):
            open_(name)


# --- tokens -----------------------------------------------------------------------------------------------------------


SENTENCES = [["the", "plot", "was", "superb"], ["a", "lovelyzzz", "film"], ["quite", "weak", "story", "end", "x"]]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bytes", "bytes with a space before"])
def test_words_have_the_tokens_of_running_text(kind, make_tokenizer, make_byte_tokenizer):
    tokenizer = make_byte_tokenizer("before" in kind) if kind.startswith("bytes") else make_tokenizer(kind=kind)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    running = tokenizer([" ".join(words) for words in SENTENCES], padding=True, return_tensors="pt")
    encoded = encode_words(tokenizer, SENTENCES, padding=True, return_tensors="pt")
    assert torch.equal(encoded["input_ids"], running["input_ids"])
    rows = first_tokens(encoded, SENTENCES)
    assert len(rows) == sum(map(len, SENTENCES))
    length = encoded["input_ids"].shape[1]
    for number, words in enumerate(SENTENCES):
        first = sum(map(len, SENTENCES[:number]))
        for place, word in enumerate(words):
            text, position = divmod(int(rows[first + place]), length)
            assert text == number
            start, end = running.token_to_chars(number, position)
            begin = len("".join(f"{word} " for word in words[:place]))
            assert start in (begin, max(begin - 1, 0)), word
            assert end > start, word  # the space alone, where no longer token begins with it


def test_pieces_fit_both_models_and_lose_no_word(make_tokenizer, make_byte_tokenizer):
    coarse, fine = make_tokenizer(), make_byte_tokenizer()
    words = [word for sentence in SENTENCES for word in sentence] * 3
    source = WordSource([words, ["film"], ["x" * 90]], [[0] * len(words), [1], [UNLABELLED]], split="train")
    readers = [Reader(coarse, 12), Reader(fine, 16)]
    pieces = cut_words(source, readers, class_names=("O", "B-X"))
    assert [word for piece in pieces.words for word in piece] == [*words, "film", "x" * 90]
    assert [tag for piece in pieces.tags for tag in piece] == [*[0] * len(words), 1, UNLABELLED]
    assert not any("film" in piece and "x" * 90 in piece for piece in pieces.words)
    for tokenizer, length in readers:
        whole = [tokenizer(" ".join(piece), verbose=False)["input_ids"] for piece in pieces.words]
        assert all(len(ids) <= length for ids in whole[:-1])
        encoded = encode_words(
            tokenizer, pieces.words, truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        assert encoded["input_ids"].shape[1] <= length
        assert len(first_tokens(encoded, pieces.words)) == pieces.num_words
    assert len(fine("x" * 90)["input_ids"]) > 16
    # No piece could have had the next word too, for one of the two.
    for piece, after in zip(pieces.words[:-3], pieces.words[1:], strict=False):
        longer = " ".join([*piece, after[0]])
        assert any(len(tokenizer(longer, verbose=False)["input_ids"]) > length for tokenizer, length in readers)


def test_no_entity_is_cut_in_two(make_tokenizer):
    tokenizer, names = make_tokenizer(), ("O", "B-X", "I-X")
    words, tags = ["film"] * 10, [0, 0, 0, 1, 2, 2, 0, 1, 2, 2]
    cut = cut_words(WordSource([words], [tags], split="train"), [Reader(tokenizer, 7)], class_names=names)
    assert cut.tags == ((0, 0, 0), (1, 2, 2, 0), (1, 2, 2))
    endless = cut_words(WordSource([words], [[2] * 10], split="train"), [Reader(tokenizer, 7)], class_names=names)
    assert [len(tags) for tags in endless.tags] == [5, 5]


def test_a_word_that_a_tokenizer_drops_is_left_out_for_all(make_tokenizer, make_byte_tokenizer):
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    source = WordSource([["\u200d", "film", "\u200d", "plot"], ["\u200d"]], [[1, 0, 1, 0], [1]], split="train")
    readers = [Reader(make_byte_tokenizer(), 16), Reader(tokenizer, 16)]
    pieces = cut_words(source, readers, class_names=("O", "X"))
    assert (pieces.words, pieces.tags) == ((("film", "plot"),), ((0, 0),))
    with pytest.raises(UserError, match="make nothing"):
        cut_words(source.take([1]), readers, class_names=("O", "X"))
    with pytest.raises(UserError, match="ByT5Tokenizer doesn't tell which token is of which word"):
        cut_words(source, [Reader(ByT5Tokenizer(), 16)], class_names=("O", "X"))
    with pytest.raises(UserError, match="no room"):
        cut_words(source, [Reader(tokenizer, 2)], class_names=("O", "X"))


def test_a_first_line_may_name_the_columns(tmp_path):
    (tmp_path / "x.tsv").write_text("Word\tTag\n" + conll(between="\t"))
    data = open_(tmp_path / "x.tsv")
    assert all_pairs(data) == EXPECTED


def test_files_that_are_not_utf_8_are_said_to_be_so(tmp_path):
    (tmp_path / "x.conll").write_bytes(conll().encode() + "\ncaf\xe9 X O\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"x\.conll couldn't be read") as error:
        open_(tmp_path / "x.conll")
    assert "UTF-8" in error.value.hint
