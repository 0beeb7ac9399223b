"""Generators as models: shapes, the reference's start, taps, folders that need no kdcli, refusals."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils.parametrizations import spectral_norm

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.data import fit
from kdcli.data.images.augment import Augmentation
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.generators.networks import TRANSLATORS
from kdcli.models.generators.sampler_loading import preprocessing_at
from kdcli.models.quantization import count_parameters
from kdcli.tasks.generation.task import ImageGeneration

DATA = DataFacts.of_labels((), task="image-translation")
NAMES = {name: f"generator:{name}?channels=4" for name in TRANSLATORS}


def student(name, **settings):
    return build_student(StudentConfig(name=name, image_size=32, **settings), DATA, seed=3)


def test_sizes_are_those_of_the_reference():
    """CycleGAN's ResNet-9 has 11.378 M parameters, as its authors' program prints."""
    count = {name: sum(p.numel() for p in make().parameters()) for name, make in TRANSLATORS.items()}
    assert count["resnet9"] == 11_378_179
    assert count["resnet9"] - count["resnet6"] == 3 * 2 * (256 * 256 * 9 + 256)
    assert count["mobile"] < count["resnet6"] / 5


def test_counting_parameters_leaves_a_spectral_normalisation_as_it_is():
    layer = spectral_norm(torch.nn.Linear(6, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert count_parameters(layer) == 6 * 4 + 4
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_images_come_out_as_large_as_they_went_in(name):
    model = student(NAMES[name])
    output = model(model.example(2), Reads(maps=("pooled",), heads=("image",)))
    assert output.heads["image"].shape == (2, 3, 32, 32)
    assert output.heads["image"].abs().max() <= 1
    assert output.maps["pooled"].shape[2:] == ((1, 1) if name == "unet" else (8, 8))
    weights = torch.cat([p.flatten() for n, p in model.module.named_parameters() if p.ndim == 4])
    assert abs(float(weights.detach().std()) - 0.02) < 0.001


def test_layers_of_the_decoder_are_taps_without_the_head_being_read():
    model = student(NAMES["resnet6"]).eval()
    model.open_taps(["up.1", "blocks.2", "down.0"])
    images = model.example(2)
    only = model(images, Reads(maps=("up.1",))).maps["up.1"]
    assert only.shape == (2, 4, 32, 32)
    both = model(images, Reads(maps=("up.1", "down.0"), heads=("image",)))
    assert torch.equal(both.maps["up.1"], only)
    assert torch.allclose(model.module.last(only), both.heads["image"])


def test_a_saved_folder_loads_without_kdcli(tmp_path):
    model = student(NAMES["unet"]).eval()
    model.save(tmp_path)
    images = model.example(2)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; sys.path.insert(0, '.'); from generator import load; m = load('.');"
        "torch.save(m(torch.load('images.pt')), 'made.pt'); assert not any(n.startswith('kdcli') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert torch.allclose(torch.load(tmp_path / "made.pt"), model(images).heads["image"], atol=1e-6)
    assert torch.equal(load_saved(tmp_path)(images).heads["image"], model(images).heads["image"])


def test_a_smaller_copy_of_a_teacher_takes_its_weights(tmp_path):
    teacher = student(NAMES["resnet6"])
    teacher.save(tmp_path)
    config = TeacherConfig(name=str(tmp_path))
    loaded = load_teacher(config, seed=0, task="image-translation")
    small = build_student(
        StudentConfig(name="teacher?layers=2&width=0.5"), DATA, seed=0, teacher=loaded, source=(config, loaded)
    )
    assert len(small.module.blocks) == 2
    assert small.module.stem[1].out_channels == 2


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("generator:resnet6", 30, "multiples of 4"),
        ("generator:unet?depth=3", 28, "multiples of 8"),
        ("generator:resnet6?blocks=3", 32, "no argument 'blocks'"),
        ("generator:resnet6?norm=layer", 32, "norm is instance or batch"),
        ("generator:resnet8", 32, "There is no model"),
        ("timm:resnet18", 32, "image-translation"),
    ],
)
def test_what_does_not_fit_is_refused(name, size, told):
    with pytest.raises(UserError, match=told):
        build_student(StudentConfig(name=name, image_size=size), DATA, seed=0)


def test_metrics_of_a_sampler_compare_with_what_its_discriminator_is_shown():
    """Of an image that is not square, too: by default both are all of it, at the size of the images that are made."""
    x, y = np.meshgrid(np.arange(120), np.arange(60))
    image = Image.fromarray(np.stack([2 * x, 4 * y, 0 * x], axis=2).astype(np.uint8))
    asked = {"task": "image-generation", "teacher": "none", "student": "generator:biggan32", "data": {"name": "none"}}
    augment = ImageGeneration.with_usual(parse_config(asked, source="a test"), None).augment
    shown, _ = Augmentation(augment.model_copy(update={"flip": 0}), canvas=(32, 32), seed=0)(image, epoch=0, index=0)
    compared = torch.from_numpy(np.array(fit(image, preprocessing_at(32)))).permute(2, 0, 1)
    assert torch.equal(shown, compared)
