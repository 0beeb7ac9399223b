"""``kdcli cache`` fills what ``kdcli distill --cache-teacher`` reads, in several processes, again and again."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kdcli.base.errors import UserError
from kdcli.training.teachers.teacher import LiveTeacher

OPTIONS = (
    *("--teacher", "random:test_efficientnet", "--student", "test_vit", "--data", "demo:digits", "--device", "cpu"),
    *("--batch-size", "16", "--epochs", "2", "--set", "data.workers=0", "--set", "data.train_images=64"),
    *("--set", "student.image_size=32", "--set", "teacher.image_size=32", "--set", "augment.mixup=0.2"),
)


def student(run):
    return load_file(run / "student" / "model.safetensors")


def assert_same(one, two):
    first, second = student(one), student(two)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture
def no_teacher(monkeypatch):
    """From here on the teacher may not be run in training."""

    def forbid():
        monkeypatch.setattr(LiveTeacher, "__call__", lambda *_: pytest.fail("the teacher is run"))

    return forbid


def test_two_processes_fill_what_one_reads_and_train_from_their_own(
    run_cli, run_in_two_processes, no_teacher, tmp_path
):
    ahead, own = tmp_path / "ahead", tmp_path / "own"
    untested = (*OPTIONS, "--no-test")
    trained = {"live": (), "filling": ("--cache-teacher", own), "cached": ("--cache-teacher", own)}
    commands = [("distill", *untested, *more, "--output", tmp_path / name) for name, more in trained.items()]
    printed = run_in_two_processes([("cache", *OPTIONS, "--cache-teacher", ahead), *commands])
    assert "2 views of 64 images, float32 (What is missing is computed and kept." in " ".join(printed[0].split())
    assert ", all there" in printed[3]
    assert_same(tmp_path / "live", tmp_path / "filling")
    assert_same(tmp_path / "live", tmp_path / "cached")
    assert run_cli("distill", *untested, "--output", "alone").exit_code == 0
    no_teacher()
    outcome = run_cli("cache", *OPTIONS, "--cache-teacher", ahead)
    assert outcome.exit_code == 0, outcome.stderr
    assert "All is there." in outcome.stdout
    outcome = run_cli("distill", *untested, "--cache-teacher", ahead, "--output", "from-ahead")
    assert outcome.exit_code == 0, outcome.stderr
    assert_same(tmp_path / "alone", tmp_path / "from-ahead")
    rows = json.loads((tmp_path / "from-ahead" / "plan.json").read_text())["decisions"]
    assert any(row["name"] == "teacher cache" and "all there" in row["value"] for row in rows)


def test_both_stages_of_a_run_are_filled(run_cli, no_teacher, tmp_path):
    options = (*OPTIONS[:-2], "--method", "refilled", "--cache-teacher", "cache")
    outcome = run_cli("cache", *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.count("view 2 of 2 is there") == 2
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"embedding", "seed-0"}
    no_teacher()
    outcome = run_cli("distill", *options, "--no-test", "--output", "run", "--quiet")
    assert "the teacher is run" not in outcome.stderr
    assert outcome.exit_code == 0, outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (OPTIONS, "Where to keep the teacher's outputs is not said"),
        ((*OPTIONS, "--cache-teacher", "c", "--cache-views", "0"), "train.cache_views"),
        ((*OPTIONS, "--cache-teacher", "c", "--cache-views", "2"), "mix an image with its neighbour"),
        ((*OPTIONS, "--cache-teacher", "c", "--cache-dtype", "float8"), "train.cache_dtype"),
        ((*OPTIONS, "--cache-teacher", "c", "--lr", "1"), "kdcli cache has no option '--lr'"),
        (("--cache-teacher", "c"), "--teacher, --student, --data is missing"),
    ],
)
def test_wrong_options_are_one_message(arguments, message, run_cli, tmp_path):
    outcome = run_cli("cache", *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "c").exists()


def test_a_dry_run_makes_nothing_and_no_room_is_an_error(run_cli, monkeypatch, tmp_path):
    outcome = run_cli("cache", *OPTIONS, "--cache-teacher", "c", "--dry-run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "2 views of 64 images" in outcome.stdout
    assert not (tmp_path / "c").exists()

    def full(*_):
        raise UserError("Can't write to c: No space left on device.", "Free some space.")

    monkeypatch.setattr("kdcli.training.teachers.store.write_atomically", full)
    outcome = run_cli("cache", *OPTIONS, "--cache-teacher", "c")
    assert outcome.exit_code == 2
    assert "No space left on device" in outcome.stderr
