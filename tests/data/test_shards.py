"""Tar files of images: splits, labels, order, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, Preprocessing
from kdcli.config.data import DataConfig
from kdcli.data import EvalLoader, Loading, TrainLoader, open_data, open_unlabelled
from kdcli.data.fingerprint import fingerprint


def image(seed: int, suffix: str = "png") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if suffix == "jpg" else "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes], *, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def samples(start: int, count: int, label: str = "cls") -> dict[str, bytes]:
    """Samples whose class is by their number: 0, 1, 10 in turn, or cat and dog in json."""
    files = {}
    for number in range(start, start + count):
        files[f"{number:05d}.png"] = image(number)
        if label == "cls":
            files[f"{number:05d}.cls"] = str((0, 1, 10)[number % 3]).encode()
        elif label:
            files[f"{number:05d}.json"] = json.dumps({label: ("cat", "dog")[number % 2], "width": 10}).encode()
    return files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    for name, (start, count) in {
        "train-000": (0, 20),
        "train-001": (20, 16),
        "val-000": (36, 6),
        "test": (42, 9),
    }.items():
        write_tar(root / f"{name}.tar", samples(start, count))
    return root


def opened(path: Path, **options: object):
    return open_data(DataConfig(name=str(path), **options), seed=0)  # type: ignore[arg-type]


def test_shards_are_splits_by_their_names_and_classes_numbers(shards: Path) -> None:
    data = opened(shards)
    assert data.facts.class_names == ("0", "1", "10")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 6, 9)
    assert list(data.train.labels) == [number % 3 for number in range(36)]
    assert list(data.test.labels) == [number % 3 for number in range(42, 51)]
    for index in (0, 19, 20, 35):
        expected = np.asarray(Image.open(io.BytesIO(image(index))))
        np.testing.assert_array_equal(np.asarray(data.train.load(index).inputs), expected)
    assert data.train.describe(20) == "train-001.tar/00020.png"
    assert "4 tar files, read in place." in data.facts.notes


def test_batches_are_the_same_with_processes_and_from_the_middle(shards: Path) -> None:
    train = opened(shards).train
    assert list(pickle.loads(pickle.dumps(train)).labels) == list(train.labels)
    for workers in (0, 2):
        whole = list(TrainLoader(train, Loading(5, 3, workers=workers), canvas=(8, 8)).epoch(1))
        rest = list(TrainLoader(train, Loading(5, 3, workers=0), canvas=(8, 8)).epoch(1, start=4))
        assert all(torch.equal(a.images, b.images) for a, b in zip(whole[4:], rest, strict=True))
    unit = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3)
    batches = list(EvalLoader(train, Loading(7, workers=0), preprocessing=unit))
    assert torch.cat([batch.samples for batch in batches]).tolist() == list(range(36))


@pytest.mark.parametrize("option", [None, "animal"])
def test_labels_in_json_files(tmp_path: Path, option: str | None) -> None:
    path = write_tar(tmp_path / "all.tar", samples(0, 40, label=option or "label"))
    data = opened(path, **({} if option is None else {"label_column": option}))
    assert data.facts.class_names == ("cat", "dog")
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 40


def test_images_without_labels(tmp_path: Path) -> None:
    files = samples(0, 30) | samples(30, 12, label="")
    data = opened(write_tar(tmp_path / "data" / "train.tar", files))
    assert sorted(data.train.labels).count(UNLABELLED) > 0
    bare = write_tar(tmp_path / "bare.tar", samples(0, 60, label=""))
    with pytest.raises(UserError, match="label"):
        opened(bare)
    found = open_unlabelled(DataConfig(name=str(bare)), None, seed=0)
    assert found.facts.num_train + found.facts.num_validation + found.facts.num_test == 60


def test_a_file_of_other_content_is_noticed(shards: Path) -> None:
    first = fingerprint(opened(shards))
    assert fingerprint(opened(shards)).summary == first.summary
    write_tar(shards / "train-001.tar", samples(20, 15) | {"00035.png": image(99), "00035.cls": b"10"})
    now = fingerprint(opened(shards))
    assert now.summary["train"] != first.summary["train"]
    assert now.summary["test"] == first.summary["test"]


def test_a_damaged_image_is_left_out_and_named(tmp_path: Path) -> None:
    files = samples(0, 20) | {"00003.png": image(3)[:40]}
    data = opened(write_tar(tmp_path / "train.tar", files))
    (batch,) = TrainLoader(data.train, Loading(64, workers=0), canvas=(8, 8)).epoch(0)
    held = [data.train.describe(index) for index in range(len(data.train))]
    assert batch.skipped == [name for name in held if name == "train.tar/00003.png"]


@pytest.mark.parametrize(
    ("files", "mode", "message"),
    [
        (samples(0, 5), "w:gz", "no whole tar file"),
        ({"a.png": image(0), "a.jpg": image(0, "jpg")}, "w", "two images of one sample"),
        ({"a.png": image(0), "b.png": image(1), "a.cls": b"1"}, "w", "don't lie one after the other"),
        ({"a.png": image(0), "a.json": b"{"}, "w", r"a\.json can't be read"),
        ({"a.png": image(0), "a.json": b"[1]"}, "w", "not keys with values"),
        ({"a.png": image(0), "a.json": b'{"label": 1.5}'}, "w", "of the types float"),
        ({"a.txt": b"a"}, "w", "hold no images"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, files: dict[str, bytes], mode: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(write_tar(tmp_path / "x.tar", files, mode=mode))


def test_a_file_that_breaks_off_is_refused(shards: Path) -> None:
    content = (shards / "train-000.tar").read_bytes()
    (shards / "train-000.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"train-000\.tar is no whole tar file"):
        opened(shards)


def test_class_folders_beside_a_tar_file_stay_class_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.png").write_bytes(image(number))
    write_tar(tmp_path / "backup.tar", samples(0, 5))
    assert opened(tmp_path).facts.class_names == ("a", "b")
