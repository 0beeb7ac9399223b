"""Files are whole or not there; leftovers of killed processes go, those of living ones stay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.base.files import remove_leftovers, replace_files, temporary_folder, write_atomically


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail(file):
        file.write_text("half")
        raise RuntimeError("torn")

    with pytest.raises(RuntimeError):
        write_atomically(target, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"


def test_replace_files_keeps_the_old_when_saving_fails(tmp_path):
    folder = tmp_path / "student"
    replace_files(folder, lambda f: (f / "a").write_text("1"))

    def fail(f):
        (f / "a").write_text("2")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace_files(folder, fail)
    assert (folder / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    replace_files(folder, lambda f: (f / "a").write_text("3"))
    assert (folder / "a").read_text() == "3"


def test_no_space_is_a_user_error(tmp_path):
    def full(file):
        raise OSError(28, os.strerror(28))

    with pytest.raises(UserError, match="No space left"):
        write_atomically(tmp_path / "x", full)


@pytest.mark.parametrize("number", [1, 20, 21, 28, 30, 122])
def test_what_the_file_system_refuses_is_one_message(tmp_path, number):
    def refuse(file):
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=os.strerror(number)):
        write_atomically(tmp_path / "x", refuse)


def test_a_folder_in_the_place_of_a_file_is_one_message(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        write_atomically(tmp_path / "x", lambda file: file.write_text("new"))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


_HOLDER = """
import sys, time
from pathlib import Path
from kdcli.base.files import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    folder = holder.stdout.readline().strip()
    with temporary_folder(tmp_path) as own:
        remove_leftovers(tmp_path)
        assert sorted(map(str, tmp_path.iterdir())) == sorted([folder, str(own)])
    write_atomically(tmp_path / "x", lambda file: file.write_text("whole"))
    assert sorted(map(str, tmp_path.iterdir())) == sorted([folder, str(tmp_path / "x")])
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert Path(folder).is_dir(), "nothing of it was cleaned up"
    write_atomically(tmp_path / "x", lambda file: file.write_text("again"))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_link_that_is_called_like_a_leftover_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".kdcli-link").symlink_to(tmp_path / "elsewhere")
    remove_leftovers(tmp_path)
    assert (tmp_path / ".kdcli-link").is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_new_folder_comes_as_a_whole(tmp_path):
    """Nobody sees it with some of its files."""
    seen = []

    def save(folder):
        for name in ("a", "b"):
            (folder / name).write_text("1")
            seen.append((tmp_path / "out").exists())

    replace_files(tmp_path / "out", save)
    assert seen == [False, False]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask
