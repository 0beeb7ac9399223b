"""The index of large folders: it saves looking, and changes nothing but time."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcli.config.data import DataConfig
from kdcli.data import fingerprint as fingerprints
from kdcli.data import index, open_data
from kdcli.data.fingerprint import Fingerprint, find_changes, fingerprint
from kdcli.data.index import SWITCH, Index
from kdcli.data.listing import is_image, list_files

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH, raising=False)
    return tmp_path / "cache" / "kdcli" / "index.sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 600 files each, which were written long ago, and a small one."""
    root = tmp_path / "data"
    for name, count in {"a": 600, "b": 600, "c": 3}.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            file = root / name / f"{number:04d}.png"
            file.write_bytes(b"\x89PNG" + name.encode() + number.to_bytes(2, "big"))
            os.utime(file, (LONG_AGO, LONG_AGO))
    settle(root)
    return root


def settle(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the folders that are looked through, and the files that are read."""
    counted: Counter[str] = Counter()

    def count(place: object, name: str, called: str) -> None:
        real: Callable[..., object] = getattr(place, name)

        def instead(*args: object, **options: object) -> object:
            counted[called] += 1
            return real(*args, **options)

        monkeypatch.setattr(place, name, instead)

    count(os, "scandir", "looked")
    count(fingerprints, "_file_content", "read")
    return counted


def opened(folder: Path) -> Fingerprint:
    return fingerprint(open_data(DataConfig(name=str(folder)), seed=0))


def test_the_second_start_looks_through_no_large_folder_and_reads_no_file(
    folder: Path, cache: Path, calls: Counter[str]
) -> None:
    first = opened(folder)
    assert cache.is_file()
    cold = Counter(calls)
    calls.clear()
    assert opened(folder) == first
    assert cold["read"] == 1203
    assert calls["read"] == 0
    # Each time a folder is listed: the data folder itself, for its classes, and the small class.
    large = sum(1 for _ in ("a", "b"))
    assert 0 < calls["looked"] <= cold["looked"] - large


def test_it_can_be_turned_off(folder: Path, cache: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    first, cold = opened(folder), Counter(calls)
    calls.clear()
    assert opened(folder) == first
    assert calls == cold
    assert not cache.exists()


@pytest.mark.parametrize("change", ["add", "remove", "rename", "link"])
def test_what_has_changed_in_a_folder_is_noticed(folder: Path, change: str) -> None:
    before = list_files(folder, is_image)
    assert list_files(folder, is_image) == before
    expected = set(before.files)
    if change == "add":
        (folder / "a" / "new.png").write_bytes(b"\x89PNGnew")
        expected |= {str(folder / "a" / "new.png")}
    elif change == "remove":
        (folder / "b" / "0007.png").unlink()
        expected -= {str(folder / "b" / "0007.png")}
    elif change == "rename":
        (folder / "b" / "0007.png").rename(folder / "b" / "0007.heic")
        expected -= {str(folder / "b" / "0007.png")}
    else:
        (folder / "a" / "z.png").symlink_to(folder / "gone.png")
    for _ in range(2):
        found = list_files(folder, is_image)
        assert set(found.files) == expected
        assert found.files == sorted(found.files)
    assert found.unread == {"rename": Counter({".heic": 1}), "link": Counter({"broken links": 1})}.get(
        change, Counter()
    )


def test_a_folder_of_links_is_looked_through_each_time(folder: Path, calls: Counter[str]) -> None:
    """What they lead to may change without the folder."""
    (folder / "elsewhere.png").write_bytes(b"\x89PNG")
    (folder / "a" / "link.png").symlink_to(folder / "elsewhere.png")
    settle(folder)
    assert len(list_files(folder / "a", is_image).files) == 601
    (folder / "elsewhere.png").unlink()
    calls.clear()
    assert len(list_files(folder / "a", is_image).files) == 600
    assert calls["looked"] == 1


def test_a_time_stamp_that_was_put_back_hides_no_change(folder: Path) -> None:
    """As rsync and tar do it."""
    expected = set(list_files(folder / "a", is_image).files)
    (folder / "a" / "0003.png").rename(folder / "a" / "new.png")
    settle(folder)
    found = set(list_files(folder / "a", is_image).files)
    assert found == expected - {str(folder / "a" / "0003.png")} | {str(folder / "a" / "new.png")}


def test_a_folder_that_has_just_changed_is_not_kept(folder: Path, calls: Counter[str]) -> None:
    """It may change again within the same time stamp."""
    os.utime(folder / "a")
    for _ in range(2):
        calls.clear()
        list_files(folder / "a", is_image)
        assert calls["looked"] == 1


def test_a_file_of_other_content_is_noticed(folder: Path, calls: Counter[str]) -> None:
    first = opened(folder)
    (folder / "a" / "0003.png").write_bytes(b"\x89PNGa\x01\x01")  # of the same size
    calls.clear()
    now = opened(folder)
    assert calls["read"] == 1
    (change,) = find_changes(first, now, splits=("train", "validation", "test"))
    assert change.changed == ("a/0003.png",)
    calls.clear()
    assert opened(folder) == now
    assert calls["read"] == 1, "it was changed just now, and may be so again"


@pytest.mark.parametrize("damage", [b"", b"no data base", None])
def test_nothing_depends_on_the_index(folder: Path, cache: Path, damage: bytes | None) -> None:
    expected = opened(folder)
    if damage is None:
        cache.unlink()
        cache.mkdir()
    else:
        cache.write_bytes(damage)
    assert opened(folder) == expected


def test_names_that_are_no_text(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder / "a") + b"/\xff.png"))).write_bytes(b"\x89PNG")
    settle(folder)
    for _ in range(2):
        assert len(list_files(folder / "a", is_image).files) == 601


def test_several_write_at_once(folder: Path, cache: Path) -> None:
    expected = list_files(folder, is_image).files
    cache.unlink()
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(list_files(folder, is_image).files)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8
    with sqlite3.connect(cache) as base:
        assert base.execute("SELECT count(*) FROM folders").fetchone() == (2,)


def test_what_is_not_used_goes(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_files(folder / "a", is_image)
    monkeypatch.setattr(index, "_UNUSED", -60)
    list_files(folder / "b", is_image)
    with sqlite3.connect(cache) as base:
        assert base.execute("SELECT count(*) FROM folders").fetchone() == (0,)
    with Index():
        pass
