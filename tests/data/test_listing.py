"""What of a data folder is read, and what is said of the rest."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import open_data, open_texts, open_unlabelled
from kdcli.data.images.decode import FORMATS
from kdcli.data.listing import is_image, list_files

MakeFolder = Callable[..., Path]


def note_of(root: Path, **options: object) -> str:
    """Return what is said of files that are not read."""
    data = open_data(DataConfig(name=str(root), **options), seed=0)  # type: ignore[arg-type]
    return next((note for note in data.facts.notes if note.startswith("Not read")), "")


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_decoder_reads_is_read_whatever_its_suffix(name: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    suffixes = {suffix for suffix, known in Image.registered_extensions().items() if known == name}
    (tmp_path / "a").mkdir()
    files = [
        f"{number}{suffix}" for number, suffix in enumerate([*suffixes, *map(str.upper, suffixes), "", ".dat", ".0001"])
    ]
    for file in files:
        image.save(tmp_path / "a" / file, format=name)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    data = open_data(DataConfig(name=str(tmp_path)), seed=0)
    assert data.facts.num_train + data.facts.num_validation + data.facts.num_test == 2 * len(files)
    assert data.train.load(0).inputs.size == (8, 8)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", b"BM"),
        ("readme", b"BMW is a car"),
        ("x.dat", b"P1 is the first"),
        ("x", b""),
        ("x.heic", b"\0\0\0\x18ftypheic"),
    ],
)
def test_what_is_no_image_is_not_read(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert not is_image(str(tmp_path / name))


def test_what_is_not_read_is_counted_by_suffix(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 9, "b": 9})
    for name in ("1.heic", "2.HEIC", "1.json", "2.json", "3.json", "notes", ".hidden.png", "._1.png"):
        (root / "a" / name).write_bytes(b"none")
    (root / "classes.csv").write_text("a,b")
    shutil.copy(root / "a" / "000.png", root / "loose.png")
    assert note_of(root) == (
        "Not read: 9 files (.json: 3, .heic: 2, .csv: 1, hidden: 1, images beside the folders: 1, without a suffix: 1)."
    )
    unlabelled = open_unlabelled(DataConfig(name=str(root)), None, seed=0)
    assert any(".json: 3, .heic: 2" in note for note in unlabelled.facts.notes)
    assert unlabelled.facts.num_train + unlabelled.facts.num_validation + unlabelled.facts.num_test == 19
    more = make_folder({".": 2}, name="more")
    (more / "1.heic").write_bytes(b"none")
    data = open_data(DataConfig(name=str(root), unlabelled=more), seed=0)
    assert any("2 images of" in note and "Not read: 1 file (.heic: 1)" in note for note in data.facts.notes)


def test_splits_are_counted_together(make_folder: MakeFolder) -> None:
    root = make_folder({f"{split}/{name}": 3 for split in ("train", "val") for name in "ab"})
    for split in ("train", "val"):
        (root / split / "b" / "1.svg").write_text("<svg/>")
        (root / split / "index.csv").write_text("")
    shutil.copy(root / "val" / "a" / "000.png", root / "val" / "loose.png")
    assert note_of(root) == "Not read: 5 files (.csv: 2, .svg: 2, images beside the folders: 1)."


@pytest.mark.parametrize("suffix", [".heic", ".nef", ".npy", ".zip", ".dat", ""])
def test_a_class_that_loses_most_of_its_images_is_refused(make_folder: MakeFolder, suffix: str) -> None:
    root = make_folder({"a": 5, "b": 2})
    for number in range(3):
        (root / "b" / f"{number}{suffix}").write_bytes(b"what")
    with pytest.raises(
        UserError, match=f"b: 2 images are read, and most files are not: {suffix or 'without a suffix'}: 3"
    ):
        note_of(root)


def test_files_beside_each_image_are_no_lost_images(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 4})
    for file in root.rglob("*.png"):
        for suffix in (".json", ".txt", ".xml"):
            file.with_suffix(suffix).write_text("")
    assert note_of(root) == "Not read: 24 files (.json: 8, .txt: 8, .xml: 8)."


def test_more_images_beside_the_folders_than_inside_are_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(UserError, match="5 images beside its class folders, and only 4 inside"):
        note_of(make_folder({".": 5, "a": 2, "b": 2}))


def test_an_empty_class_says_what_is_in_it(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 0})
    (root / "b" / "1.heic").write_bytes(b"none")
    with pytest.raises(UserError, match=r"no images of class b \(not read: \.heic: 1\)"):
        note_of(root)


def test_pipes_sockets_and_broken_links_are_counted(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 8, "b": 8})
    os.mkfifo(root / "a" / "pipe.png")
    os.mkfifo(root / "pipe")
    monkeypatch.chdir(root / "b")  # a socket's name has to be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.jpg")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "null.png").symlink_to("/dev/null")
    shutil.copy(root / "b" / "000.png", root / "far.png")
    (root / "b" / "again.png").symlink_to(root / "far.png")
    assert (
        note_of(root)
        == "Not read: 8 files (pipes, sockets or devices: 4, broken links: 2, images beside the folders: 1, "
        "links to a folder above: 1)."
    )
    assert len(list_files(root / "b", is_image).files) == 9
    assert len(open_unlabelled(DataConfig(name=str(root)), None, seed=0).facts.notes) >= 3


def test_a_folder_of_pipes_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 2, "b": 2})
    for number in range(3):
        os.mkfifo(root / "b" / f"{number}.jpg")
    with pytest.raises(UserError, match="2 images are read, and most files are not: pipes, sockets or devices: 3"):
        note_of(root)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "1.png").write_bytes(b"")
    (tmp_path / "far" / "deep" / "loop").symlink_to(tmp_path / "far")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    found = list_files(tmp_path / "near", is_image)
    assert found.files == [str(tmp_path / "near" / "link" / "deep" / "1.png")]
    assert found.unread == {"links to a folder above": 1}


def test_a_folder_that_can_not_be_read_is_named(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 3, "b": 3, "b/inside": 3})
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("inside"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"Can't read .*/b/inside: Permission denied"):
        note_of(root)


def texts_of(root: Path) -> tuple[int, str]:
    data = open_texts(DataConfig(name=str(root)), task="text-classification", seed=0)
    count = data.facts.num_train + data.facts.num_validation + data.facts.num_test
    return count, next((note for note in data.facts.notes if note.startswith("Not read")), "")


def test_text_folders_count_what_is_not_read(tmp_path: Path) -> None:
    for name in ("ham", "spam"):
        (tmp_path / name).mkdir()
        for number in range(6):
            (tmp_path / name / f"{number}.{'TXT' if number % 2 else 'txt'}").write_text(f"{name} {number}")
    (tmp_path / "ham" / "x.html").write_text("x")
    (tmp_path / "ham" / "6.txt").write_bytes("très bien".encode("latin-1"))
    os.mkfifo(tmp_path / "spam" / "pipe.txt")
    (tmp_path / "spam" / "up").symlink_to(tmp_path)
    expected = "Not read: 3 files (.html: 1, links to a folder above: 1, pipes, sockets or devices: 1)."
    assert texts_of(tmp_path) == (13, expected)
    notes = open_texts(DataConfig(name=str(tmp_path)), task="text-classification", seed=0).facts.notes
    assert any("1 texts of train are not UTF-8" in note for note in notes)
    for number in range(7):
        (tmp_path / "ham" / f"{number}.html").write_text("x")
    with pytest.raises(UserError, match=r"ham: 7 texts are read, and most files are not: \.html: 8"):
        texts_of(tmp_path)


def test_folders_of_tables_count_what_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20)))
    (tmp_path / "test.csv").write_text("text,label\nx,a\ny,b\n")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "old.xlsx").write_bytes(b"")
    os.mkfifo(tmp_path / "dev.csv")
    assert texts_of(tmp_path) == (22, "Not read: 3 files (.md: 1, .xlsx: 1, pipes, sockets or devices: 1).")


def test_image_tables_count_what_is_not_read(make_folder: MakeFolder) -> None:
    import datasets

    root = make_folder({"a": 9, "b": 9})
    files = sorted(map(str, root.rglob("*.png")))
    table = datasets.Dataset.from_dict({"image": files, "label": [number % 2 for number in range(18)]})
    table.cast_column("image", datasets.Image()).to_parquet(root / "index.PARQUET")
    assert note_of(root) == "Not read: 18 files (.png: 18)."


@pytest.mark.parametrize("task", ["text-classification", "token-classification", None])
def test_a_pipe_as_the_data_is_refused(task: str | None, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    config = DataConfig(name=str(tmp_path / "pipe.csv"))
    with pytest.raises(UserError, match=r"pipe\.csv"):
        open_texts(config, task=task, seed=0) if task else open_data(config, seed=0)
