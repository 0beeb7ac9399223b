"""Names that are not UTF-8, of files, classes, folders, models and runs, through every command."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import yaml

from kdcli.base.text import check_name
from kdcli.config.recipes import apply_overrides

pytestmark = pytest.mark.usefixtures("few_points")


def latin(name: str) -> str:
    """Return ``name`` in Latin-1 as Python has it."""
    return os.fsdecode(name.encode("latin-1"))


@pytest.fixture(scope="module")
def place(photos, trained_teacher, tiny, run_cli_in, tmp_path_factory):
    """A finished run of which nothing is named in UTF-8. Not to be changed."""
    folder = tmp_path_factory.mktemp("names")
    data = folder / latin("d\xe9mo")
    for number, name in enumerate(("apple", "leaf")):
        (data / latin(f"{name}\xe9")).mkdir(parents=True)
        for file in sorted((photos / name).iterdir()):
            shutil.copy(file, data / latin(f"{name}\xe9") / latin(f"\xfc{number}{file.name}"))
    (data / latin("apple\xe9") / latin("br\xf6ken.png")).write_bytes(b"no image")
    shutil.copytree(trained_teacher, folder / latin("m\xf6del"))
    shutil.copytree(photos / "sky", folder / latin("m\xf6re"))
    outcome = run_cli_in(
        *("distill", *tiny, "--teacher", latin("m\xf6del"), "--student", "test_resnet", "--data", latin("d\xe9mo")),
        *("--set", "data.unlabelled=" + latin("m\xf6re"), "--output", latin("r\xfcn")),
        cwd=folder,
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert r"br\udcf6ken.png" in outcome.stdout
    return folder


def test_what_is_written_names_the_files(place):
    run = place / latin("r\xfcn")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["name"] == str(place / latin("d\xe9mo"))
    assert latin("d\xe9mo") in json.dumps(json.loads((run / "plan.json").read_text()), ensure_ascii=False)
    assert r"d\udce9mo" in (run / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", latin("r\xfcn"), "--device", "cpu", "--json"),
        ("evaluate", latin("m\xf6del"), "--data", "photos", "--device", "cpu", "--output", latin("\xfct")),
        ("export", latin("r\xfcn"), "--output", latin("\xe4us")),
        ("compare", latin("r\xfcn"), "--output", latin("v\xe9")),
        ("analyze-projector", latin("r\xfcn")),
        ("distill", "--resume", latin("r\xfcn"), "--epochs", "2"),
    ],
)
def test_every_command_reads_it_back(place, photos, run_cli, tmp_path, command):
    folder = shutil.copytree(place, tmp_path / "copy", symlinks=True)
    shutil.copytree(photos, folder / "photos")
    outcome = run_cli(*command, cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    assert "Traceback" not in outcome.stdout + outcome.stderr


def test_half_characters_that_are_no_bytes_are_refused():
    assert check_name(latin("d\xe9mo")) == "d\udce9mo"
    with pytest.raises(ValueError, match="it has the character"):
        check_name("\ud800")
    assert apply_overrides({}, ["data.name=" + latin("d\xe9mo")]) == {"data": {"name": "d\udce9mo"}}
