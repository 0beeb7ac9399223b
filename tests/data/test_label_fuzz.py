"""Made-up csv and tsv files: every text has the label that a plain reader finds beside it, or the file is refused.

The suite draws a few, always the same ones; ``KDCLI_FUZZ_CASES=10000 python -m pytest tests/data/test_label_fuzz.py``
draws so many.
"""

import collections
import csv
import math
import os
import random

import pytest

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import TextPair, open_texts

CASES = int(os.environ.get("KDCLI_FUZZ_CASES", 40))
LABELS = ["NA", "None", "null", "nan", "01", "1", "2", "0", "-1", "1.0", "0.5", "2.5", "+1", "1_0", "inf", "1e3", ""]
LABELS += ["True", "no", "No ", " x", "a,b", 'say "hi"', "\u00e9", "e\u0301", "#N/A", "\uff12"]
TEXTS = ["null", "NA", "12", "word", '"q"', "two\nlines", "tab\there", "'"]


def write_table(file, draw):
    """Write a table; return its rows and the names of its text columns."""
    texts_from = draw.choice([("text",), ("premise", "hypothesis")])
    columns = [*texts_from, "label", *draw.choice([[], ["id"]])]
    draw.shuffle(columns)
    labels = draw.sample(LABELS, draw.randint(2, 5))
    rows = []
    for number in range(draw.randint(6, 9) * len(labels)):
        texts = {name: f"{draw.choice(TEXTS)} {number // 2}" for name in texts_from}
        rows.append({**texts, "label": labels[number % len(labels)], "id": str(number)})
    with file.open("w", newline="", encoding=draw.choice(["utf-8", "utf-8-sig"])) as lines:
        writer = csv.DictWriter(
            lines,
            columns,
            extrasaction="ignore",
            delimiter="\t" if file.suffix == ".tsv" else ",",
            lineterminator=draw.choice(["\n", "\r\n"]),
            quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        )
        writer.writeheader()
        writer.writerows(rows)
    return rows, texts_from


def is_right(data, source, index, written):
    if data.facts.label_kind == "class":
        label = source.labels[index]
        return written.strip() == "" if label < 0 else data.facts.class_names[label] == written
    value = float(source.values[index, 0])
    return written == "" if math.isnan(value) else value == pytest.approx(float(written))


def test_labels_are_those_of_a_plain_reader(tmp_path):
    counts = collections.Counter()
    for case in range(CASES):
        draw = random.Random(case)
        file = tmp_path / f"{case}.{draw.choice(['csv', 'tsv'])}"
        rows, texts_from = write_table(file, draw)
        kind = draw.choice([None, None, "class", "number"])
        try:
            data = open_texts(DataConfig(name=str(file), label_kind=kind), task="text-classification", seed=0)
        except UserError:
            counts["refused"] += 1
            continue
        counts[data.facts.label_kind] += 1
        written = collections.defaultdict(list)
        for row in rows:
            texts = [row[name] for name in texts_from]
            written[texts[0] if len(texts) == 1 else TextPair(*texts)].append(row["label"])
        for source in (data.train, data.validation, data.test):
            for index, text in enumerate(source.texts):
                assert any(is_right(data, source, index, label) for label in written[text]), (case, text)
    assert counts["class"] > CASES / 4, counts
    assert counts["refused"] > CASES / 20, counts
