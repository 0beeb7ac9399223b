"""Folders that transformers and timm saved, and damaged ones, as teacher and as student, through the command line."""

from __future__ import annotations

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from transformers import ViTForImageClassification

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def plan(run_cli, photos, tmp_path):
    """``plan(teacher, *options)``: the outcome of a dry run; a refused one writes nothing."""

    def run(teacher, *options):
        before = sorted(tmp_path.rglob("*"))
        student = () if "--student" in options else ("--student", "test_resnet")
        outcome = run_cli("distill", "--teacher", teacher, *student, "--data", photos, *options, "--dry-run")
        assert "Traceback" not in outcome.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return outcome

    return run


@pytest.fixture
def folders(hf_folder, tmp_path):
    """The same ViT in one file, in several of safetensors, and in several of pickled tensors."""
    model = ViTForImageClassification.from_pretrained(hf_folder)
    shutil.copytree(hf_folder, tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    bins = tmp_path / "bins"
    bins.mkdir()
    shutil.copy(hf_folder / "config.json", bins)
    state = model.state_dict()
    files = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in state if files[name] == file}, bins / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (bins / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tmp_path


def test_every_way_to_save_a_model_of_transformers(folders, plan):
    assert len(list((folders / "shards").glob("*.safetensors"))) > 2
    for name in ("whole", "shards", "bins"):
        outcome = plan(folders / name)
        assert outcome.exit_code == 0, outcome.stderr
        assert f"pretrained, {folders / name}" in outcome.stdout
        outcome = plan("none", "--student", folders / name, "--student-pretrained")
        assert outcome.exit_code == 0, outcome.stderr


def shard(folder):
    return sorted(folder.glob("*.safetensors"))[1]


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("name", "damage", "part"),
    [
        ("shards", lambda folder: shard(folder).unlink(), "No such file"),
        ("shards", lambda folder: shard(folder).write_text(POINTER), "is a Git LFS pointer"),
        ("shards", lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[:-9]), "not fully covered"),
        ("bins", lambda folder: (folder / "pytorch_model-00002-of-00002.bin").unlink(), "No such file"),
        ("whole", lambda folder: (folder / "model.safetensors").write_text("<html>"), "is a web page"),
        ("whole", lambda folder: (folder / "model.safetensors").write_bytes(b""), "is empty"),
        ("whole", lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (
            "whole",
            lambda folder: change_config(folder, hidden_size=64),
            "37 are of another shape (classifier.weight (3, 32) for (3, 64), vit.embeddings.cls_token",
        ),
        (
            "whole",
            lambda folder: change_config(folder, id2label={str(n): str(n) for n in range(5)}),
            "2 are of another shape (classifier.bias (3,) for (5,), classifier.weight (3, 32) for (5, 32))",
        ),
        ("whole", lambda folder: save_file({"a": torch.ones(1)}, folder / "model.safetensors"), "40 are missing"),
    ],
)
def test_damaged_folders_of_transformers(folders, plan, name, damage, part):
    damage(folders / name)
    outcome = plan(folders / name)
    assert outcome.exit_code == 2
    assert part in outcome.stderr


@pytest.fixture
def timm_folder(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(model, tmp_path / "timm", model_config={"label_names": ["a", "b", "c"]}, safe_serialization="both")
    return tmp_path / "timm"


@pytest.mark.parametrize("kept", ["model.safetensors", "pytorch_model.bin"])
def test_folders_of_timm(timm_folder, plan, kept):
    for file in ("model.safetensors", "pytorch_model.bin"):
        if file != kept:
            (timm_folder / file).unlink()
    outcome = plan(timm_folder)
    assert outcome.exit_code == 0, outcome.stderr
    assert "3 classes" in outcome.stdout
    outcome = plan("none", "--student", timm_folder, "--student-pretrained")
    assert outcome.exit_code == 0, outcome.stderr
    assert plan("test_resnet", "--teacher-weights", timm_folder / kept).exit_code == 0


def test_what_lies_beside_safetensors_is_not_read(folders, plan):
    (folders / "whole" / "pytorch_model.bin").write_text(POINTER)
    outcome = plan(folders / "whole")
    assert outcome.exit_code == 0, outcome.stderr


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (POINTER.encode(), "is a Git LFS pointer"),
        (b"", "is empty"),
        ("resnet18", "of another shape (bn1.weight (64) for (32), bn1.bias (64) for (32)"),
        ("resnet18", "that the model lacks (conv1.weight"),
        ("classes", "2 of another shape (fc.weight (5, 96) for (3, 96), fc.bias (5) for (3))"),
    ],
)
def test_damaged_folders_of_timm(timm_folder, plan, content, part):
    (timm_folder / "pytorch_model.bin").unlink()
    file = timm_folder / "model.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        name, number = ("resnet18", 3) if content == "resnet18" else ("test_resnet", 5)
        save_file(timm.create_model(name, num_classes=number).state_dict(), file)
    outcome = plan(timm_folder)
    assert outcome.exit_code == 2
    assert part in outcome.stderr


def test_what_transformers_wraps_of_timm(plan, tmp_path):
    from transformers import TimmWrapperConfig, TimmWrapperModel

    settings = {"architecture": "test_resnet", "pretrained_cfg": timm.get_pretrained_cfg("test_resnet").to_dict()}
    TimmWrapperModel(TimmWrapperConfig(**settings)).save_pretrained(tmp_path / "wrapped")
    outcome = plan(tmp_path / "wrapped")
    assert outcome.exit_code == 2
    assert "was saved by transformers, which wrapped a model of timm" in outcome.stderr
    outcome = plan("test_resnet", "--teacher-weights", tmp_path / "wrapped" / "model.safetensors")
    assert outcome.exit_code == 0, outcome.stderr


def test_encoders_without_a_classifier_in_timm(plan):
    outcome = plan("none", "--student", "gemma4_vit_167m_enc?depth=1&embed_dim=48&num_heads=2")
    assert outcome.exit_code == 2
    assert "timm has no classifier of" in outcome.stderr
    assert "--task image-embedding" in outcome.stderr
