"""The recipes travel with the package: inside a wheel, beside the package in an editable install."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kdcli

ROOT = Path(kdcli.__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with hatchling alone, offline, and unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


LOCATE = "import kdcli, kdcli.config.recipes; print(kdcli.__file__); print(kdcli.config.recipes.recipes_folder())"


def test_what_the_wheel_holds(unpacked):
    shipped = {file.relative_to(ROOT / "recipes") for file in (ROOT / "recipes").rglob("*.yaml")}
    assert {file.relative_to(unpacked / "kdcli" / "_recipes") for file in unpacked.rglob("*.yaml")} == shipped
    (info,) = unpacked.glob("*.dist-info")
    assert {entry.name for entry in unpacked.iterdir()} == {"kdcli", info.name}
    assert (info / "licenses" / "LICENSE").is_file()
    assert "kdcli = kdcli.cli:main" in (info / "entry_points.txt").read_text()
    assert f"Version: {kdcli.__version__}" in (info / "METADATA").read_text()
    guides = {file.relative_to(ROOT) for file in (ROOT / "kdcli" / "guides").glob("*.md")}
    assert {file.relative_to(unpacked) for file in (unpacked / "kdcli" / "guides").iterdir()} == guides
    modules = {file.relative_to(ROOT) for file in (ROOT / "kdcli").rglob("*.py")}
    assert {file.relative_to(unpacked) for file in unpacked.rglob("*.py")} == modules


def test_the_wheel_finds_its_own_recipes(unpacked, tmp_path):
    module, folder = python("-c", LOCATE, cwd=tmp_path, path=unpacked).splitlines()
    assert Path(module).is_relative_to(unpacked)
    assert Path(folder) == unpacked / "kdcli" / "_recipes"
    listed = python("-m", "kdcli", "recipes", "list", cwd=tmp_path, path=unpacked)
    assert "quickstart" in listed
    assert "image-classification/vkd-deit-ti" in listed
    shown = python("-m", "kdcli", "recipes", "show", "vkd-deit-ti", cwd=tmp_path, path=unpacked)
    assert shown == (ROOT / "recipes" / "image-classification" / "vkd-deit-ti.yaml").read_text()


def test_this_install_finds_the_recipes(tmp_path):
    assert "quickstart" in python("-m", "kdcli", "recipes", "list", cwd=tmp_path)
    module, folder = python("-c", LOCATE, cwd=tmp_path).splitlines()
    assert Path(module) == Path(kdcli.__file__).resolve()
    assert (Path(folder) / "quickstart.yaml").is_file()
