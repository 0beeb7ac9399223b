"""The average of weights: timm's own, and exact where weights are spectrally normalised."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from kdcli.training.average import WeightAverage


@pytest.fixture
def trained():
    """A network, and what a step of a training does to it, power iterations included."""
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), spectral_norm(nn.Linear(6, 5)))

    def step():
        with torch.no_grad():
            for part in (model[0], model[2]):
                part.parametrizations.weight.original += 0.3 * torch.randn_like(part.parametrizations.weight.original)
                part.weight  # noqa: B018 - one power iteration
            model[1](torch.randn(2, 8, 3, 3))

    return model, step


def largest(layer):
    """Return the largest singular value of what a layer computes with."""
    return torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)


def test_an_average_of_normalised_weights_is_normalised(trained):
    """Its largest singular value is 1; with timm's average of the vectors weights are divided by too little."""
    model, step = trained
    average, plain = WeightAverage(model, decay=0.99), ModelEmaV3(model, decay=0.99, use_warmup=True)
    for number in range(1, 101):
        step()
        average.update(model, step=number)
        plain.update(model, step=number)
    for place in (0, 2):
        assert float(largest(average.module[place])) == pytest.approx(1, abs=1e-3)
        assert float(largest(plain.module[place])) > 1.02
        own, theirs = (one.module[place].parametrizations.weight.original for one in (average, plain))
        assert torch.equal(own, theirs)
        assert average.module[place].parametrizations.weight[0]._u.norm() == pytest.approx(1, abs=1e-6)
    assert torch.equal(average.module[1].running_var, plain.module[1].running_var)


def test_other_networks_are_averaged_as_timm_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    both = WeightAverage(model, decay=0.9), ModelEmaV3(model, decay=0.9, use_warmup=True)
    for number in range(1, 6):
        with torch.no_grad():
            model[0].weight += 0.1
            model(torch.randn(5, 3))
        for average in both:
            average.update(model, step=number)
    ours, theirs = (average.module.state_dict() for average in both)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
