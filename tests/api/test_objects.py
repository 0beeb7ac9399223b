"""Modules and data of a program's own, as teacher, student and data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from safetensors.torch import load_file
from torch import nn

import kdcli
from kdcli.api.objects import name_of_data
from kdcli.base import extensions
from kdcli.models.held import HeldModule

NAMES = ("apple", "leaf", "sky")


class Net(nn.Module):
    def __init__(self, num_classes=3, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 4), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.stem(images).mean((2, 3)))


class Pictures(torch.utils.data.Dataset):
    classes = NAMES

    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(count, 3, 16, 16, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 3


def network(module, **options):
    return kdcli.Network(module, features="stem", image_size=16, **options)


def options(tmp_path):
    return {
        "epochs": 1,
        "batch_size": 16,
        "device": "cpu",
        "show": False,
        "output": tmp_path / "run",
        "settings": {"data.workers": 0},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    teacher = Net(width=8)
    return kdcli.distill(
        teacher=network(teacher, label_names=NAMES),
        student=network(Net),
        data={"train": Pictures(48), "test": Pictures(12, seed=1)},
        method="fitnet",
        feature_layers=["network.stem.0:network.stem.0"],
        unchecked_teacher=True,
        baseline=True,
        **options(tmp_path_factory.mktemp("objects")),
    )


def test_modules_and_a_torch_data_set_make_a_run(run):
    assert run.is_finished
    assert set(run.metrics) == {"validation", "test"}
    assert run.plan["relation"] == "same"
    assert run.config.train.num_processes == 1
    assert type(run.student) is Net
    state = load_file(run.path / "student" / "model.safetensors")
    assert torch.equal(run.student.fc.weight, state["network.fc.weight"])
    assert run.result.outcome is not None, "the student alone is made by the same function"
    found = run.evaluate(device="cpu")["models"]
    assert found["student"]["top1"] == pytest.approx(run.metrics["test"]["accuracy"])
    assert "teacher" in found


def test_what_is_exported_is_compared(run, tmp_path):
    assert (run.export(tmp_path / "out") / "model.safetensors").is_file()


def test_one_pass_gives_features_and_logits():
    held, images = HeldModule(Net().eval(), "stem"), torch.rand(2, 3, 16, 16)
    features = held.features(images)
    assert features.shape == (2, 4, 4, 4)
    assert torch.equal(held.head(features), held.network(images))
    with pytest.raises(ValueError, match="is to give one tensor"):
        HeldModule(nn.Sequential(nn.Flatten(0), nn.Identity()), "1").features(images)


def test_a_module_is_the_students_start_and_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    module = Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    table = Dataset.from_dict(
        {"image": [np.full((16, 16, 3), 8 * n, np.uint8) for n in range(30)], "label": [n % 3 for n in range(30)]},
        features=Features(image=Image(), label=ClassLabel(names=list(NAMES))),
    )
    run = kdcli.distill(teacher="none", student=network(module), data=table, **{**options(tmp_path), "epochs": 0})
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(run.student.fc.weight, before["fc.weight"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"teacher": Net()}, "A Net does not say where its features are"),
        ({"teacher": kdcli.Network(Net(), features="stm", image_size=16)}, "Net has no layer 'stm'. Did you mean stem"),
        ({"teacher": network(nn.Identity())}, "Identity has no layer 'stem'"),
        ({"teacher": network(Net(), label_names=("a",))}, "Net has 3 outputs, and 1 labels."),
        ({"teacher": kdcli.Network(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), features="0")}, "can't take images of (224, 224)"),
        ({"student": network(Net(5))}, "Net has 5 outputs, and the data 3 classes."),
        ({"data": [1, 2]}, "train[0] is no pair of an image and a class number: 1."),
        ({"data": iter(())}, "neither a datasets table nor a torch data set"),
        ({"num_processes": 2}, "Modules and data of this process can't be had by others."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(given, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = {"teacher": "none", "student": network(Net), "data": Pictures(30), "device": "cpu", **given}
    with pytest.raises(kdcli.UserError) as error:
        kdcli.plan(**call)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 5, 3), np.uint8), np.zeros((1, 4, 5), np.float32), torch.ones(3, 4, 5, dtype=torch.uint8), torch.ones(3, 4, 5)]
)  # fmt: skip
def test_forms_of_images(image):
    table = extensions.find("data", name_of_data([(image, 0)]).partition(":")[0], own=()).load()("")["train"]
    assert table[0]["image"].size == (5, 4)


def test_sections_and_names_are_as_they_are():
    for given in (None, "photos", {"name": "photos", "strict": True}):
        assert name_of_data(given) == given
