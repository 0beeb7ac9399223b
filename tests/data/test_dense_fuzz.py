"""Data with masks, depth and boxes that Hypothesis has damaged: they are read, or refused with a message and a hint.

The suite draws a few, always the same ones. The long run draws others every time, as many as the variable says:

    KDCLI_FUZZ_CASES=10000 python -m pytest tests/data/test_dense_fuzz.py
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, Preprocessing
from kdcli.base.text import printable
from kdcli.config.data import DataConfig
from kdcli.data import Loading, open_dense
from kdcli.data.fingerprint import fingerprint
from tests.data import dense_forms as forms

LONG = int(os.environ.get("KDCLI_FUZZ_CASES", 0))
MODEL = Preprocessing((8, 12), (0.5,) * 3, (0.5,) * 3)
MADE = {
    "pixels": (
        lambda root: forms.masks(root, count=4, splits=("train", "val")), forms.voc_masks,
        lambda root: forms.csv_of(root, "mask").parent, forms.cityscapes,
    ),
    "depth": (lambda root: forms.depth(root, count=5), lambda root: forms.depth(root, suffix=".npy", scale=1), forms.nyu,
              forms.nyu_csv),
    "boxes": (forms.coco, forms.yolo, forms.voc, lambda root: forms.jsonl_boxes(root).parent,
              lambda root: forms.csv_boxes(root).parent),
}  # fmt: skip
CASES = [(target, number) for target, made in MADE.items() for number in range(len(made))]
TEXTS = (".json", ".jsonl", ".csv", ".txt", ".xml", ".yaml")
ODD = (
    "",
    "-1",
    "nan",
    "1e999",
    "\x00",
    "é",
    "../..",
    "[" * 2000,
    "null",
    "true",
    "{}",
    "[]",
    '""',
    "0 0 0",
    "99999999999999",
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.integers(-5, 50), max_size=5),
)  # fmt: skip


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Every form once, as written."""
    root = tmp_path_factory.mktemp("forms")
    for target, number in CASES:
        MADE[target][number](root / f"{target}{number}")
    return root


def damage(data, root):
    """Change a file: its bytes, its length, its name, its numbers, or take it away."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix in TEXTS]
    path = data.draw(st.sampled_from(texts if texts and data.draw(st.booleans()) else files))
    content = path.read_bytes()
    text = content.decode("utf-8", "replace")
    kind = data.draw(st.sampled_from(["cut", "bytes", "gone", "renamed", "swapped", "odd", "json"]))
    if kind == "gone":
        path.unlink()
    elif kind == "renamed":
        path.rename(path.with_name(data.draw(st.sampled_from(["x", "a b", "train", "ü"])) + path.suffix))
    elif kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    elif kind == "swapped":
        path.write_bytes(data.draw(st.sampled_from(files)).read_bytes())
    elif kind == "json" and path.suffix in (".json", ".jsonl"):
        try:
            rows = [json.loads(line) for line in text.splitlines()]
        except ValueError:  # damaged before
            return
        path.write_text("\n".join(json.dumps(changed(data, row)) for row in rows))
    elif kind == "odd" and path in texts:
        words = text.replace(",", " , ").replace(">", "> ").replace("<", " <").split(" ")
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(ODD))
        path.write_text("".join(words) if path.suffix != ".txt" else " ".join(words))
    elif content:
        place = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(content[:place] + data.draw(st.binary(min_size=1, max_size=3)) + content[place + 1 :])


def changed(data, value):
    """Return a value of JSON with one in it changed."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        return value | {key: changed(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.integers(0, 5)):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], changed(data, value[place]), *value[place + 1 :]]
    return data.draw(SCALARS)


@settings(max_examples=LONG or 120)
@given(data=st.data())
def test_damaged_data_are_read_or_refused(trees, data):
    target, number = data.draw(st.sampled_from(CASES))
    root = trees.parent / "damaged"
    shutil.copytree(trees / f"{target}{number}", root)
    try:
        for _ in range(data.draw(st.integers(1, 3))):
            damage(data, root)
        options = {"depth_scale": 1000.0} if target == "depth" and number == 0 else {}
        read(str(root), target, options)
    finally:
        shutil.rmtree(os.fsencode(root))


def read(name, target, options):
    try:
        opened = open_dense(DataConfig(name=name, **options), target, seed=0)
        fingerprint(opened)
        for source in filter(None, (opened.train, opened.validation, opened.test)):
            for batch in source.eval_batches(Loading(4, workers=0), MODEL):
                check(batch, target, len(opened.facts.class_names))
    except UserError as error:
        check_refusal(error)


def check_refusal(error):
    """A refusal is a message and a hint that a terminal takes."""
    assert error.message.strip()
    assert error.hint.strip()
    printable(str(error)).encode()


def check(batch, target, size):
    if target == "pixels":
        assert batch.targets.dtype == torch.int64
        assert batch.targets.min() >= UNLABELLED
        assert batch.targets.max() < size
    elif target == "depth":
        assert batch.targets.dtype == torch.float32
        assert batch.targets.isfinite().all()
        assert batch.targets.min() >= 0
    else:
        for own in batch.targets:
            assert own["boxes"].isfinite().all()
            assert len(own["boxes"]) == len(own["labels"])
            assert (own["boxes"][:, 2:] > own["boxes"][:, :2]).all()
            assert not len(own["labels"]) or 0 <= own["labels"].min() <= own["labels"].max() < size
