from __future__ import annotations

import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import UnreadableImage, open_data
from kdcli.data.images.torchvision_sets import SETS


def test_digits() -> None:
    first, other = (open_data(DataConfig(name="demo:digits"), seed=seed) for seed in (0, 1))
    assert first.facts.class_names == tuple("0123456789")
    assert (first.facts.num_train, first.facts.num_validation, first.facts.num_test) == (1293, 144, 360)
    assert first.test is not None
    assert other.test is not None
    image = first.train.load(0).inputs
    assert (image.size, image.mode) == ((32, 32), "RGB")
    assert np.asarray(image).max() > 200
    assert all(first.test.load(i).inputs == other.test.load(i).inputs for i in range(0, 360, 20))
    assert any(first.validation.load(i).inputs != other.validation.load(i).inputs for i in range(5))
    assert first.test.describe(3) == "test[3]"


def test_digits_split_is_a_partition() -> None:
    data = open_data(DataConfig(name="demo:digits"), seed=0)
    sources = (data.train, data.validation, data.test)
    ours = sorted(
        source.load(i).inputs.tobytes() for source in sources if source is not None for i in range(len(source))
    )
    assert len(ours) == len(load_digits().images)
    assert len(set(ours)) == len({image.tobytes() for image in load_digits().images})


def test_labels_per_class_of_an_array() -> None:
    data = open_data(DataConfig(name="demo:digits", labels_per_class=4), seed=0)
    assert np.bincount([label for label in data.train.labels if label >= 0]).tolist() == [4] * 10


def test_train_images_are_drawn_by_seed_in_proportion() -> None:
    def indices(seed: int, **options: int) -> tuple[list[int], list[int]]:
        data = open_data(DataConfig(name="demo:digits", **options), seed=seed)
        assert data.facts.num_train == len(data.train)
        return [hash(data.train.load(i).inputs.tobytes()) for i in range(len(data.train))], list(data.train.labels)

    whole, labels = indices(0)
    some, some_labels = indices(0, train_images=200)
    assert len(some) == 200
    assert set(some) < set(whole)
    in_proportion = np.bincount(labels) / len(labels) * 200
    assert np.abs(np.bincount(some_labels) - in_proportion).max() <= 1
    assert indices(0, train_images=200) == (some, some_labels)
    assert indices(1, train_images=200)[0] != some
    assert indices(0, train_images=5000) == (whole, labels)
    assert len(set(indices(0, train_images=10)[1])) == 10
    with pytest.raises(UserError, match="train_images is 9, but there are 10 classes"):
        indices(0, train_images=9)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("demo:digit", "demo:digits"),
        ("digits", "demo:digits"),
        ("cifar100", "torchvision:CIFAR100"),
        ("torchvison:CIFAR100", "torchvision:CIFAR100"),
        ("torchvision:CIFAR-100", "CIFAR100"),
        ("torchvision:flowers", "Flowers102"),
    ],
)
def test_wrong_names_have_suggestions(name: str, suggested: str) -> None:
    with pytest.raises(UserError) as caught:
        open_data(DataConfig(name=name), seed=0)
    assert suggested in caught.value.hint


def test_column_options_need_a_table() -> None:
    with pytest.raises(UserError, match=r"data.label_column is set, but demo:digits is not a table"):
        open_data(DataConfig(name="demo:digits", label_column="y"), seed=0)


def test_every_listed_set_exists_in_torchvision() -> None:
    assert all(issubclass(getattr(datasets, name), datasets.VisionDataset) for name in SETS)
    assert all("train" in splits for splits in SETS.values())


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: magic number 0x08 (unsigned byte) and rank, sizes as big-endian, then the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_torchvision_from_local_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (40, 28, 28)), "t10k": rng.integers(0, 256, (10, 28, 28))}
    for part, pixels in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(pixels)) % 10)
    data = open_data(DataConfig(name="torchvision:fashionmnist", root=tmp_path), seed=0)
    assert data.facts.class_names[9] == "Ankle boot"
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (30, 10, 10)
    assert data.test is not None
    assert list(data.test.labels) == list(range(10))
    np.testing.assert_array_equal(np.asarray(data.test.load(3).inputs)[..., 1], images["t10k"][3])


def write_gray(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def test_torchvision_set_of_files_without_splits(tmp_path: Path) -> None:
    for name in ("Forest", "River", "Sea"):
        for i in range(5):
            write_gray(tmp_path / "eurosat" / "2750" / name / f"{i}.png", i)
    data = open_data(DataConfig(name="torchvision:EuroSAT", root=tmp_path), seed=0)
    assert data.facts.class_names == ("Forest", "River", "Sea")
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (9, 3, 3)
    assert Path(data.train.describe(0)).parent.name == data.facts.class_names[data.train.labels[0]]


def test_torchvision_set_that_opens_its_own_images(tmp_path: Path) -> None:
    root = tmp_path / "caltech101" / "101_ObjectCategories"
    for name in ("BACKGROUND_Google", "ant", "yin_yang"):
        for i in range(1, 11):
            write_gray(root / name / f"image_{i:04d}.jpg", i + 100 * (name == "ant"))
    broken = root / "ant" / "image_0002.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    data = open_data(DataConfig(name="torchvision:caltech101", root=tmp_path), seed=0)
    assert data.facts.class_names == ("ant", "yin_yang")
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (14, 2, 4)
    unreadable = 0
    for source in (data.train, data.validation, data.test):
        assert source is not None
        for i, label in enumerate(source.labels):
            try:
                assert (source.load(i).inputs.getpixel((4, 4))[0] < 50) == (label == 1)
            except UnreadableImage:
                unreadable += 1
    assert unreadable == 1


def test_torchvision_set_without_class_names(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb"
    for label in range(3):
        for i in range(4):
            write_gray(base / "GTSRB" / "Training" / f"{label:05d}" / f"{i}.ppm", i)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i in range(3):
        write_gray(base / "GTSRB" / "Final_Test" / "Images" / f"{i}.ppm", i)
        rows.append(f"{i}.ppm;8;8;0;0;8;8;{i}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")
    data = open_data(DataConfig(name="torchvision:GTSRB", root=tmp_path), seed=0)
    assert data.facts.class_names == ("0", "1", "2")
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (9, 3, 3)
    assert data.test is not None
    assert list(data.test.labels) == [0, 1, 2]


def test_imagenette_val_is_its_test(tmp_path: Path) -> None:
    wnids = list(datasets.Imagenette._WNID_TO_CLASS)
    for split, count in (("train", 4), ("val", 2)):
        for wnid in wnids:
            for i in range(count):
                write_gray(tmp_path / "imagenette2" / split / wnid / f"{i}.jpeg", i)
    data = open_data(DataConfig(name="torchvision:Imagenette", root=tmp_path), seed=0)
    assert (data.facts.num_train, data.facts.num_validation, data.facts.num_test) == (30, 10, 20)
    assert "tench, Tinca tinca" in data.facts.class_names
    assert any("'val'" in note for note in data.facts.notes)


@pytest.mark.parametrize(
    "name", ["CIFAR10", "FashionMNIST", "Flowers102", "Food101", "ImageNet", "USPS", "StanfordCars"]
)
def test_failing_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match=f"torchvision:{name} is not in") as caught:
        open_data(DataConfig(name=f"torchvision:{name}", root=tmp_path / "data"), seed=0)
    assert str(tmp_path / "data") in caught.value.hint
