"""tests/benchmarks/coverage.py still runs and still tells working models, refusals and faults apart."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kdcli.models.timm.model import TimmModel

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("coverage_program", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_family_in_both_roles(program, tmp_path):
    (row,) = program.cover("timm", only=["starnet"], work=tmp_path / "work", output=tmp_path)
    assert (row.family, row.member) == ("starnet", "starnet_s050")
    assert (row.teacher, row.student, row.other) == ("yes", "yes", "yes")
    page = (tmp_path / "timm.md").read_text()
    assert "Of 1, 1 work as teacher, 1 as student and 1 as both; 1 pass the last column. Faults: 0." in page
    assert f"| {row.parameters:,} | yes | yes |" in page


def test_a_refusal_and_a_text(program, tmp_path):
    (row,) = program.cover("transformers-image", only=["imagegpt"], work=tmp_path / "work", output=tmp_path)
    assert row.teacher == "no: imagegpt is no model of images: it reads input_ids."
    assert row.student.startswith("no: imagegpt can't take RGB images")
    (row,) = program.cover("transformers-text", only=["distilbert"], work=tmp_path / "work", output=tmp_path)
    assert (row.teacher, row.student, row.other, row.places) == ("yes", "yes", "yes", "32, mean")


def test_faults_are_rows(program, tmp_path, monkeypatch):
    """A model that is saved wrongly, and an error that is none of the user's."""
    original = TimmModel.save

    def save(model, folder):
        next(model.module.parameters()).data.add_(1)
        original(model, folder)

    monkeypatch.setattr(TimmModel, "save", save)
    monkeypatch.setattr(program, "check_image_features", lambda model, native: 1 / 0)
    (row,) = program.cover("timm", only=["starnet"], work=tmp_path / "work", output=tmp_path)
    assert row.student.startswith("FAULT: AssertionError: what the reloaded student returns: differ")
    assert row.teacher == "FAULT: ZeroDivisionError: division by zero"
    assert "0 work as teacher, 0 as student" in (tmp_path / "timm.md").read_text()
