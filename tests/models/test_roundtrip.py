"""A student that can't be loaded again once it is saved is found out before it is trained."""

import os
import tempfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.roundtrip import check_reloads

STAGES = "hf:resnet?hidden_sizes=[16,32]&depths=[1,1]"


def student(name, **options):
    return build_student(StudentConfig(name=name, **options), DataFacts.of_labels(("a", "b", "c")), seed=0)


@pytest.mark.parametrize(
    "name",
    [
        STAGES,
        "hf:swin?depths=[1,1]&num_heads=[2,2]&embed_dim=16",
        "hf:beit?num_hidden_layers=1&hidden_size=32&num_attention_heads=2&intermediate_size=32",
    ],
)
def test_networks_with_other_numbers_of_stages_are_loaded_again(tmp_path, name):
    """transformers' config keeps the names of the stages that it had when it was made."""
    model = student(name, image_size=64).eval()
    model.save(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load_saved(tmp_path)(images).logits, model(images).logits)


@pytest.mark.parametrize("name", ["test_vit", "cifar:resnet20", STAGES])
def test_a_good_student_passes_and_stays_as_it_is(name):
    model = student(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_reloads(model, label=name)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("task", ["text-classification", "sentence-embedding", "token-classification", "masked-lm"])
def test_students_of_text(bert_folder, task):
    kinds = {"text-classification": "class", "token-classification": "words", "masked-lm": "tokens"}
    names = ("a", "b") if task.endswith("classification") else ()
    data = DataFacts("x", task, names, 4, 4, 1, 1, label_kind=kinds.get(task, "none"))
    config = StudentConfig(name="hf:bert?num_hidden_layers=1&hidden_size=16&num_attention_heads=2&intermediate_size=16")
    teacher = load_teacher(TeacherConfig(name=f"random:{bert_folder}"), seed=0, task="text-classification")
    check_reloads(build_student(config, data, teacher=teacher, seed=0), label="x")


def test_what_computes_something_else_is_refused(monkeypatch):
    model = student("test_resnet", image_size=32)
    save = type(model).save

    def save_otherwise(self, folder):
        save(self, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["fc.bias"] += 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(type(model), "save", save_otherwise)
    with pytest.raises(UserError, match="Student mine computes other logits once it is saved and loaded again"):
        check_reloads(model, label="mine")


def test_what_a_killed_process_left_of_its_student_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = student("test_resnet", image_size=32)
    killed = os.fork()
    if not killed:
        monkeypatch.setattr("kdcli.models.roundtrip.load_saved", lambda folder: os._exit(9))
        check_reloads(model, label="x")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == 9
    assert list(tmp_path.rglob("model.safetensors")), "the student is there"
    check_reloads(model, label="x")
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_loaded_again_is_refused_before_training(run_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("kdcli.models.transformers.build._renew_stages", lambda config, label: None)
    arguments = ("--teacher", "none", "--student", STAGES, "--data", "demo:digits", "--set", "student.image_size=32")
    for further in (("--output", "run"), ("--dry-run",)):
        exit_code, _, stderr = run_cli("distill", *arguments, *further)
        assert exit_code == 2
        assert f"Student {STAGES} could not be loaded again once it is saved" in stderr
        assert "out_features must be a subset" in stderr
        assert "student" in stderr.split("Hint: ")[1]
    assert not (tmp_path / "run").exists()
