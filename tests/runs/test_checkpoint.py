"""Checkpoints: what is put in comes out bit for bit, damage is noticed, and nothing is half-written."""

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2

from kdcli.base.errors import UserError
from kdcli.runs.checkpoint import Checkpoints, pack, restore_module, unpack


def state(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "optimizer": {
            "state": {0: {"exp_avg": torch.randn(3, 4, generator=generator), "step": torch.tensor(float(step))}},
            "param_groups": [
                {"lr": 0.1 + 1e-17, "betas": (0.9, 0.999), "params": [0, 1], "fused": None, "amsgrad": False}
            ],
        },
        "bf16": torch.randn(5, generator=generator).bfloat16(),
        "ints": torch.arange(3),
        "channels_last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "worst": math.inf,
        "momentum_dtype": torch.bfloat16,
        "tied": [torch.ones(2), torch.ones(2)],
        "name": "é\n",
    }


def assert_same(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_same(one, two)
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert first == second


def write(folder, *steps, keep=2, best=None):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, state(step), best=best)
    return checkpoints


def test_what_goes_in_comes_out(tmp_path):
    checkpoints = write(tmp_path / "checkpoints", 7)
    assert_same(checkpoints.load(warn=pytest.fail).state, state(7))


def test_json_and_tensors_are_all_there_is():
    tensors = {}
    tree = json.loads(json.dumps(pack(state(1), tensors)))
    assert_same(unpack(tree, tensors), state(1))
    with pytest.raises(TypeError, match="can't hold a object"):
        pack({"x": object()}, {})


@pytest.mark.parametrize("name", ["adafactorbv", "lamb", "lookahead_adamw", "madgrad", "muon", "novograd"])
def test_an_optimiser_of_unusual_state_goes_on_bit_for_bit(name):
    """Three steps, saved, loaded into a new one, and three more: as six at once."""

    def train(module, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            module(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def make():
        torch.manual_seed(0)
        module = torch.nn.Linear(6, 4)
        return module, create_optimizer_v2(module, opt=name, lr=0.1)

    whole, optimizer = make()
    train(whole, optimizer, range(6))
    half, optimizer = make()
    train(half, optimizer, range(3))
    tensors = {}
    tree = json.loads(json.dumps(pack([dict(half.state_dict()), optimizer.state_dict()], tensors)))
    again, optimizer = make()
    weights, state = unpack(tree, tensors)
    again.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(again, optimizer, range(3, 6))
    assert torch.equal(again.weight, whole.weight)
    assert not torch.equal(half.weight, whole.weight)


def test_old_ones_are_pruned_and_the_newest_is_loaded(tmp_path):
    checkpoints = write(tmp_path, 5, 10, 15, keep=2)
    assert checkpoints.steps() == [10, 15]
    assert checkpoints.load(warn=pytest.fail).state["step"] == 15
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = write(tmp_path, 5, 5)
    assert checkpoints.steps() == [5]
    assert_same(checkpoints.load(warn=pytest.fail).state, state(5))


def damage_bytes(path):
    content = bytearray((path / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "state.safetensors").write_bytes(content)


def cut(path):
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        cut,
        lambda path: (path / "state.json").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("{}"),
        lambda path: (path / "manifest.json").write_text('{"state.js'),
    ],
)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, damage):
    checkpoints = write(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010")
    warnings = []
    assert checkpoints.load(warn=warnings.append).state["step"] == 5
    assert len(warnings) == 1
    assert "step-00000010 is damaged" in warnings[0]
    damage(tmp_path / "step-00000005")
    with pytest.raises(UserError, match="None of the 2 checkpoints"):
        checkpoints.load(warn=warnings.append)


def test_files_outside_are_not_looked_at(tmp_path):
    checkpoints = write(tmp_path / "c", 5)
    (tmp_path / "secret").write_text("x")
    manifest = tmp_path / "c" / "step-00000005" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"../../secret": "0"}))
    warnings = []
    with pytest.raises(UserError):
        checkpoints.load(warn=warnings.append)
    assert "outside" in warnings[0]


def test_a_foreign_one_is_refused_not_passed_over(tmp_path):
    """Its checksums are right, so it was written on purpose: by another version, say."""
    checkpoints = write(tmp_path, 5, 10)
    path = tmp_path / "step-00000010"
    content = json.loads((path / "state.json").read_text()) | {"format": "kdcli-checkpoint-99"}
    (path / "state.json").write_text(json.dumps(content))
    resign(path)
    with pytest.raises(UserError, match="kdcli-checkpoint-99"):
        checkpoints.load(warn=pytest.fail)


def resign(path):
    """Write the manifest anew, as somebody who plants a checkpoint would."""
    import hashlib

    files = [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    digests = {f.relative_to(path).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    (path / "manifest.json").write_text(json.dumps(digests))


@pytest.mark.parametrize(
    "content", ["[]", '{"format": "kdcli-checkpoint-1", "state": {"pickle": "x", "y": 1}}', "\x80\x04"]
)
def test_planted_nonsense_is_refused(tmp_path, content):
    checkpoints = write(tmp_path, 5)
    path = tmp_path / "step-00000005"
    (path / "state.json").write_text(content)
    resign(path)
    with pytest.raises(UserError, match="is no checkpoint of this version"):
        checkpoints.load(warn=pytest.fail)


def test_a_failed_write_leaves_the_others_as_they_were(tmp_path, monkeypatch):
    checkpoints = write(tmp_path, 5)

    def full(tensors, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdcli.runs.checkpoint.save_file", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        write(tmp_path, 10)
    assert "--resume" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005"]
    assert_same(checkpoints.load(warn=pytest.fail).state, state(5))


def test_what_a_killed_process_left_is_swept_away_and_never_read(tmp_path):
    write(tmp_path, 5)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".kdcli-abc" / "new")
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".kdcli-def" / "old")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [5]
    checkpoints.save(6, state(6), best=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_the_best_student_is_kept_as_it_was(tmp_path):
    """The run replaces its files by renaming, so a link in the checkpoint still has the old content."""
    student = tmp_path / "student"
    student.mkdir()
    save_file({"w": torch.ones(2)}, student / "model.safetensors")
    checkpoints = write(tmp_path / "c", 5, best=student)
    save_file({"w": torch.zeros(2)}, tmp_path / "new")
    os.replace(tmp_path / "new", student / "model.safetensors")  # noqa: PTH105
    best = checkpoints.load(warn=pytest.fail).best
    assert torch.equal(load_file(best / "student" / "model.safetensors")["w"], torch.ones(2))


def test_restoring_names_what_does_not_fit(tmp_path):
    module = torch.nn.Linear(2, 3)
    restore_module(module, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, what="student", path=tmp_path)
    assert torch.equal(module.weight, torch.ones(3, 2))
    with pytest.raises(UserError, match="3 tensors differ") as caught:
        restore_module(module, {"weight": torch.ones(2, 2), "other": torch.zeros(3)}, what="student", path=tmp_path)
    for part in ("bias is missing", "other is unknown", r"weight has shape (2, 2), not (3, 2)"):
        assert part in caught.value.message
