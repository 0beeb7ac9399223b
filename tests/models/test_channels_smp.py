"""Models of segmentation-models-pytorch for greyscale and four channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.libraries import library_called
from kdcli.models.library import Library

TASK = "semantic-segmentation"
SMALL = StudentConfig(name="smp:unet/mobilenet_v2", image_size=32)


def facts(channels: int) -> DataFacts:
    return DataFacts("", TASK, ("sky", "tree"), 0, 0, 0, 0, label_kind="pixels", channels=channels)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_student_is_saved_and_loaded_by_the_library_alone(tmp_path: Path, channels: int) -> None:
    student = build_student(SMALL, facts(channels), seed=1).eval()
    student.save(tmp_path)
    images = student.example(2)
    assert images.shape == (2, channels, 32, 32)
    module = smp.from_pretrained(str(tmp_path)).eval()
    with torch.no_grad():
        expected = student.module(images)
        assert torch.equal(module(images), expected)
        assert torch.equal(load_saved(tmp_path).module(images), expected)
    library: Library = library_called(student.facts.library)
    from kdcli.base.tasks import TASKS

    code = library.snippet(tmp_path, TASKS[TASK])
    assert f"(B, {channels}, H, W)" in code
    assert ('convert("L")' in code) == (channels == 1)


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_for_colours_are_adapted(tmp_path: Path, channels: int) -> None:
    student = build_student(SMALL, facts(3), seed=1).eval()
    student.save(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task=TASK, channels=channels)
    pretrained = build_student(
        StudentConfig(name=str(tmp_path), pretrained=True, image_size=32), facts(channels), seed=0
    )
    name = "encoder.features.0.0.weight"
    for adapted in (teacher, pretrained):
        ours, theirs = adapted.module.state_dict(), student.module.state_dict()
        own = theirs.pop(name)
        expected = own.sum(1, keepdim=True) if channels == 1 else torch.cat((own, own[:, :1]), 1) * 0.75
        assert torch.equal(ours.pop(name), expected)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert "adapted from 3 channels" in adapted.facts.weights
    assert teacher.facts.preprocessing.num_channels == channels
