"""The programs of coverage still run and still tell working models, refusals and faults apart."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kdcli.models.timm.model import TimmModel
from kdcli.models.transformers.dense import HFDense

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def program_of(file):
    name = Path(file).stem + "_program"
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def program():
    yield from program_of("coverage.py")


@pytest.fixture(scope="module")
def dense():
    yield from program_of("dense_coverage.py")


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


def test_a_dense_kind_in_both_roles_and_a_refusal(dense, tmp_path):
    tried = {"tasks": [], "work": tmp_path / "work", "output": tmp_path}
    (row,) = dense.cover("transformers", only=["glpn"], **tried)
    assert (row.teacher, row.student, row.size, row.head) == ("yes", "yes", "64×64", "depth 1×64×64")
    rows = dense.cover("transformers", only=["pp_ocrv5_mobile_det"], **tried)
    assert rows[0] == row
    for said in (rows[1].teacher, rows[1].student):
        assert said.startswith("no: hf:pp_ocrv5_mobile_det (pp_ocrv5_mobile_det) marks the pixels of text")
    page = (tmp_path / "transformers-dense.md").read_text()
    assert "Of 2, 1 work as teacher, 1 as student and 1 as both. Faults: 0." in page
    assert "| depth-estimation | glpn | 64×64 |" in page


def test_faults_of_dense_models_are_rows(dense, tmp_path, monkeypatch):
    """A model that is saved wrongly."""
    original = HFDense.save

    def save(model, folder):
        original(model, folder)
        model.module.head.head[2].bias.data.add_(1)

    monkeypatch.setattr(HFDense, "save", save)
    (row,) = dense.cover("transformers", only=["glpn"], tasks=[], work=tmp_path / "work", output=tmp_path)
    assert row.teacher == "yes"
    assert row.student.startswith("FAULT: AssertionError: depth of the reloaded student differs by")
    assert (
        "1 work as teacher, 0 as student and 0 as both. Faults: 1." in (tmp_path / "transformers-dense.md").read_text()
    )
