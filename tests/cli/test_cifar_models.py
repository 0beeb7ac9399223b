"""``cifar:NAME`` through the commands, and its student where there is no kdcli."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

BEFORE = """
import sys
sys.modules["kdcli"] = None
import torch
from safetensors.torch import load_file
"""
AFTER = """
import json
reference = load_file(sys.argv[1])
with torch.inference_mode():
    difference = (model(reference["images"]) - reference["logits"]).abs().max() / reference["logits"].abs().max()
print(json.dumps({"labels": list(labels), "difference": float(difference)}))
"""


@pytest.fixture(scope="module")
def cifar_run(tmp_path_factory, run_cli_in, photos, tiny) -> Path:
    cwd = tmp_path_factory.mktemp("cifar")
    outcome = run_cli_in(
        *(
            "distill",
            "--teacher",
            "none",
            "--student",
            "cifar:resnet8",
            "--data",
            photos,
            *tiny,
            "--output",
            "runs/small",
        ),
        cwd=cwd,
    )
    assert outcome.exit_code == 0, outcome.stderr
    return cwd / "runs" / "small"


def test_the_model_cards_lines_load_it_without_kdcli(run_cli, cifar_run, tmp_path):
    outcome = run_cli("export", cifar_run, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("config.json", "model.safetensors", "README.md", "kdcli_networks.py")
    }
    from kdcli.models import load_saved

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits = load_saved(cifar_run / "student")(images).logits.clone()
    save_file({"images": images, "logits": logits}, tmp_path / "reference.safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.S)
    code = BEFORE + lines.replace("PATH", str(tmp_path / "out")) + AFTER
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "reference.safetensors")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["labels"] == ["apple", "leaf", "sky"]
    assert found["difference"] <= 1e-5
    # Importing the file left its compiled form there: a second export still takes the folder for its own.
    assert (tmp_path / "out" / "__pycache__").is_dir()
    assert run_cli("export", cifar_run, "--output", "out").exit_code == 0


def test_a_run_folder_is_a_teacher(run_cli, cifar_run, photos, tiny):
    outcome = run_cli(
        *("distill", "--teacher", cifar_run, "--student", "cifar:wrn_16_1", "--data", photos, *tiny, "--dry-run")
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "Both have the same 3 labels." in outcome.stdout
    assert "cifar:wrn_16_1" in outcome.stdout
    assert f"the best student of the run {cifar_run}" in outcome.stdout


@pytest.mark.parametrize("damage", ["import", "weights"])
def test_an_export_that_only_kdcli_could_load_is_refused(run_cli, cifar_run, tmp_path, monkeypatch, damage):
    from kdcli.models.timm.model import TimmModel

    save = TimmModel.save

    def sabotaged(self, folder):
        save(self, folder)
        if damage == "import":
            file = folder / "kdcli_networks.py"
            file.write_text(file.read_text() + "\nimport kdcli.base.errors\n")
        else:
            state = load_file(folder / "model.safetensors")
            name = next(name for name in state if name.endswith(("fc.bias", "classifier.bias")))
            save_file(state | {name: state[name] + 0.1}, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(TimmModel, "save", sabotaged)
    exit_code, _, stderr = run_cli("export", cifar_run, "--output", "out")
    assert exit_code == 2, stderr
    assert ("kdcli" if damage == "import" else "other logits") in stderr
    assert list(tmp_path.iterdir()) == []


def test_onnx_needs_no_file(run_cli, cifar_run, tmp_path):
    outcome = run_cli("export", cifar_run, "--format", "onnx", "--output", "deploy")
    assert outcome.exit_code == 0, outcome.stderr
    assert {file.name for file in (tmp_path / "deploy").iterdir()} == {"model.onnx", "preprocessing.json", "README.md"}


def test_a_teacher_without_weights_leaves_nothing(run_cli, photos, tmp_path):
    exit_code, _, stderr = run_cli("distill", "--teacher", "cifar:resnet20", "--student", "resnet18", "--data", photos)
    assert exit_code == 2
    assert "There are no published weights of cifar:resnet20." in stderr
    assert list(tmp_path.iterdir()) == []
