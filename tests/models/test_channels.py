"""Models of timm for greyscale and four channels: adapted as timm does, saved, loaded, and refused where they can't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import prepare
from kdcli.models import build_student, load_saved, load_teacher

LABELS = ("ant", "bee", "cat")
SMALL = StudentConfig(name="cifar:resnet8")


def facts(channels: int) -> DataFacts:
    return DataFacts("", "image-classification", LABELS, 0, 0, 0, 0, channels=channels)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    build_student(SMALL, facts(3), seed=1).save(folder)
    return folder


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_for_colours_are_adapted_as_timm_does(colours: Path, channels: int) -> None:
    own = load_saved(colours)
    teacher = load_teacher(TeacherConfig(name=str(colours)), seed=0, channels=channels)
    theirs = timm.create_model(f"local-dir:{colours}", pretrained=True, in_chans=channels)
    for name, tensor in teacher.module.state_dict().items():
        before = own.module.state_dict()[name]
        assert torch.equal(tensor, adapt_input_conv(channels, before) if name == "conv1.weight" else before)
        assert torch.equal(tensor, theirs.state_dict()[name])
    assert f"adapted from 3 channels to {channels} as timm does" in teacher.facts.weights
    mean = sum(own.facts.preprocessing.mean) / 3  # type: ignore[union-attr]
    assert teacher.facts.preprocessing.mean == (pytest.approx(mean),) * channels  # type: ignore[union-attr]


def test_a_pretrained_student_is_adapted_too(colours: Path) -> None:
    config = StudentConfig(name=str(colours), pretrained=True)
    student = build_student(config, facts(1), seed=0)
    expected = load_saved(colours).module.state_dict()["conv1.weight"].sum(1, keepdim=True)
    assert torch.equal(student.module.state_dict()["conv1.weight"], expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_saved_student_is_loaded_by_timm_alone(tmp_path: Path, channels: int) -> None:
    student = build_student(SMALL, facts(channels), seed=1).eval()
    student.save(tmp_path)
    assert student.facts.weights == "untrained"
    images = student.example(2)
    assert images.shape[1] == channels
    module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    again = load_saved(tmp_path)
    with torch.no_grad():
        expected = student.module(images)
        assert torch.equal(module(images), expected)
        assert torch.equal(again.module(images), expected)
    assert module.pretrained_cfg["input_size"] == (channels, 32, 32)
    assert len(module.pretrained_cfg["mean"]) == len(again.facts.preprocessing.mean) == channels  # type: ignore[union-attr]
    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, channels=channels)
    assert "adapted" not in teacher.facts.weights


@pytest.mark.parametrize(("own", "wanted"), [(1, 3), (4, 3), (4, 1), (1, 4)])
def test_weights_for_other_channels_are_refused(tmp_path: Path, own: int, wanted: int) -> None:
    build_student(SMALL, facts(own), seed=1).save(tmp_path)
    with pytest.raises(UserError, match=f"weights for images of {own} channel.* read with {wanted} channel") as error:
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, channels=wanted)
    assert f"data.channels={own}" in error.value.hint


@pytest.mark.parametrize("own", [1, 3, 4])
@pytest.mark.parametrize("wanted", [None, 1, 4])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_has_the_channels_of_its_first_convolution(
    tmp_path: Path, own: int, wanted: int | None, prefix: str
) -> None:
    state = build_student(SMALL, facts(own), seed=1).module.state_dict()
    save_file({prefix + name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    config = TeacherConfig(name="cifar:resnet8", weights=str(tmp_path / "w.safetensors"))
    if own not in (3, wanted or own):
        with pytest.raises(UserError, match=f"weights for images of {own} channel"):
            load_teacher(config, seed=0, channels=wanted)
        return
    teacher = load_teacher(config, seed=0, channels=wanted)
    expected = state["conv1.weight"] if wanted in (None, own) else adapt_input_conv(wanted, state["conv1.weight"])
    assert torch.equal(teacher.module.state_dict()["conv1.weight"], expected)
    assert ("as timm does" in teacher.facts.weights) == (wanted not in (None, own))


def test_weights_that_timm_saved_with_a_mean_of_three(tmp_path: Path, colours: Path) -> None:
    """As timm itself takes them: by the average."""
    build_student(SMALL, facts(1), seed=1).save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.6], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    preprocessing = load_saved(tmp_path).facts.preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((pytest.approx(0.3),), (0.5,))  # type: ignore[union-attr]


def test_a_mean_for_each_channel_or_for_all(tmp_path: Path) -> None:
    config = TeacherConfig(name="random:cifar:resnet8", mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,))
    preprocessing = load_teacher(config, seed=0, channels=4).facts.preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.1, 0.2, 0.3, 0.4), (0.5,) * 4)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"teacher\.mean has 4 numbers, and images have 1 channel"):
        load_teacher(config, seed=0, channels=1)


def test_a_first_layer_that_is_no_convolution_is_refused(monkeypatch: pytest.MonkeyPatch, colours: Path) -> None:
    settings = json.loads((colours / "config.json").read_text())
    module = timm.create_model(f"local-dir:{colours}")
    assert settings["pretrained_cfg"]["first_conv"] == "conv1"
    from kdcli.models.timm.channels import check_adaptable

    module.conv1 = torch.nn.Linear(3, 16)
    with pytest.raises(UserError, match="can't adapt the first layer of it from 3 channels to 1"):
        check_adaptable("it", module, 1)


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4])
def test_a_model_of_transformers_is_adapted_saved_and_loaded(hf_folder: Path, tmp_path: Path, channels: int) -> None:
    name = "vit.embeddings.patch_embeddings.projection.weight"
    own = load_saved(hf_folder).module.state_dict()
    student = build_student(StudentConfig(name=str(hf_folder), pretrained=True), facts(channels), seed=0).eval()
    teacher = load_teacher(TeacherConfig(name=str(hf_folder)), seed=0, channels=channels)
    for model in (student, teacher):
        assert torch.equal(model.module.state_dict()[name], adapt_input_conv(channels, own[name]))
        assert f"adapted from 3 channels to {channels}" in model.facts.weights
        assert model.facts.preprocessing.num_channels == channels
    assert all(torch.equal(tensor, own[key]) for key, tensor in teacher.module.state_dict().items() if key != name)
    student.save(tmp_path)
    images = student.example(2)
    module = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    again = load_saved(tmp_path)
    with torch.no_grad():
        assert torch.equal(module(images).logits, student.module(images).logits)
        assert torch.equal(again.module(images).logits, student.module(images).logits)
    assert again.facts.preprocessing == student.facts.preprocessing
    pixels = torch.randint(256, (1, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(pixels, return_tensors="pt")["pixel_values"]
    assert torch.allclose(theirs, prepare(pixels, student.facts.preprocessing), atol=1e-5)  # type: ignore[arg-type]


def test_a_new_model_of_transformers_and_one_of_another_number(hf_folder: Path, tmp_path: Path) -> None:
    student = build_student(StudentConfig(name=str(hf_folder)), facts(1), seed=0)
    assert student.facts.weights == "untrained"
    student.save(tmp_path)
    with pytest.raises(UserError, match="weights for images of 1 channel, and the data are read with 3 channels"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, channels=3)
