"""Folded batch normalisations: outputs of every tap stay, and what is no one convolution is left alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from kdcli.base.reads import Reads
from kdcli.config.models import TeacherConfig
from kdcli.models import load_teacher
from kdcli.models.base import freeze
from kdcli.models.fold import Foldable, find_foldable, fold
from kdcli.models.layers import list_layers


def load(name, *taps):
    """A teacher whose normalisations do something."""
    model = load_teacher(TeacherConfig(name=f"random:{name}"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    model.open_taps(taps)
    return freeze(model)


def norms(model):
    return [
        name for name, module in model.module.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


def everything(model):
    return Reads(tuple(model.facts.feature_dims), tuple(model.facts.grids), model.facts.heads)


def outputs(model, reads):
    with torch.no_grad():
        found = model(model.example(3, seed=2), reads)
    return {**found.features, **{f"map {tap}": value for tap, value in found.maps.items()}, **found.heads}


def assert_same(model, other, reads):
    expected, found = outputs(model, reads), outputs(other, reads)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


@pytest.mark.parametrize(
    ("name", "folds"),
    [
        ("test_resnet", 1.0),
        ("test_efficientnet", 1.0),  # timm's normalisation with an activation inside
        ("mobilenetv3_small_050", 1.0),
        ("repvgg_a0", 44 / 61),  # those of identity branches come after no convolution
        ("cifar:resnet20", 1.0),
        ("test_vit", None),
    ],
)
def test_every_output_stays_and_the_model_too(name, folds):
    model = load(name)
    before = copy.deepcopy(model.state_dict())
    layers = [layer.name for layer in list_layers(model) if "." in layer.name and not layer.name.startswith("conv")]
    model.open_taps(layers)
    reads = everything(model)
    pairs = find_foldable(model, model.example(), reads)
    folded = fold(model, pairs)
    assert len(pairs) == (0 if folds is None else round(folds * len(norms(model))))
    assert len(layers) > 2
    assert_same(model, folded, reads)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_a_tap_between_convolution_and_normalisation_keeps_them_apart():
    model = load("test_resnet", "layer1.0.conv2", "layer2.0.bn1")
    reads = everything(model)
    pairs = find_foldable(model, model.example(), reads)
    assert Foldable("layer1.0.conv2", "layer1.0.bn2") not in pairs
    assert Foldable("layer2.0.conv1", "layer2.0.bn1") in pairs
    assert len(pairs) == len(norms(model)) - 1
    assert_same(model, fold(model, pairs), reads)


def test_only_what_is_run_is_looked_at():
    model = load("test_resnet", "layer1")
    pairs = find_foldable(model, model.example(), Reads(("layer1",)))
    assert {pair.convolution.partition(".")[0] for pair in pairs} == {"conv1", "layer1"}
    folded = fold(model, pairs)
    ran = []
    folded.module.layer2.register_forward_hook(lambda *_: ran.append(1))
    assert_same(model, folded, Reads(("layer1",), ("layer1",)))
    assert not ran  # it is run no further than it is read
    assert_same(model, folded, everything(model))


class _Odd(nn.Module):
    """Convolutions whose normalisations can't be folded, and one that can."""

    def __init__(self):
        super().__init__()
        self.twice, self.norm_of_twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.shared, self.other, self.norm_of_shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.other.weight = self.shared.weight
        self.read, self.norm_of_read = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.made, self.norm_of_made = parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)
        self.batch, self.norm_of_batch = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.plain, self.norm_of_plain = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False)

    def forward(self, x):
        x = self.norm_of_twice(self.twice(self.twice(x)))
        x = self.norm_of_shared(self.shared(x)) + self.other(x)
        read = self.read(x)
        x = self.norm_of_read(read) + read
        x = self.norm_of_batch(self.batch(self.norm_of_made(self.made(x))))
        return self.norm_of_plain(self.plain(x))


def test_what_is_shared_made_or_read_elsewhere_is_left_alone():
    model = load("test_resnet")
    model.module.conv1 = nn.Sequential(_Odd().eval(), model.module.conv1)
    pairs = find_foldable(model, model.example(), everything(model))
    odd = [pair for pair in pairs if pair.convolution.startswith("conv1.0")]
    assert odd == [Foldable("conv1.0.plain", "conv1.0.norm_of_plain")]
    assert_same(model, fold(model, pairs), everything(model))
