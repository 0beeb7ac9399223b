"""FID, KID, precision and recall against torchmetrics, scipy and plain loops, and of images by an extractor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.facts import ExtractorFacts
from kdcli.data import prepare
from kdcli.machine.team import ALONE, Team
from kdcli.tasks.generative import distances
from kdcli.tasks.generative.distances import fid, kid, precision_recall
from kdcli.tasks.generative.extractor import Extractor, ImageDistances

GENERATOR = torch.Generator().manual_seed(0)
NAME = "untrained_resnet10t_32px"


def features(n, d=8, shift=0.0, scale=1.0):
    mixed = torch.randn(n, d, dtype=torch.float64, generator=GENERATOR) @ torch.randn(
        d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return scale * mixed + shift


REAL, GENERATED = features(40), features(60, shift=0.7, scale=1.3)
FEW, FEWER = features(6, 20), features(9, 20, shift=0.2)


def scipys_fid(real, generated):
    linalg = pytest.importorskip("scipy.linalg")
    means = [side.mean(dim=0).numpy() for side in (real, generated)]
    covariances = [np.cov(side.numpy(), rowvar=False) for side in (real, generated)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real))


def test_fid_is_scipys():
    assert fid(REAL, GENERATED) == pytest.approx(scipys_fid(REAL, GENERATED), rel=1e-9)
    assert fid(REAL.float(), GENERATED.float()) == pytest.approx(fid(REAL, GENERATED), rel=1e-5)
    assert fid(REAL, REAL) == pytest.approx(0, abs=1e-9)
    assert fid(REAL, REAL.flip(0)) == pytest.approx(0, abs=1e-9)
    # Of a shift alone it is the squared distance of the means.
    assert fid(REAL, REAL + 2) == pytest.approx(4 * REAL.shape[1])


def test_fid_of_fewer_samples_than_features_is_exact():
    """Where scipy's root of a singular product loses half of the digits: the nonzero eigenvalues say what is right."""
    pair = (FEW, FEWER)
    left, right = (torch.cov(side.T) for side in pair)
    roots = torch.linalg.eigvals(left @ right).real.clamp(min=0).topk(len(FEW) - 1).values.sqrt().sum()
    expected = (FEW.mean(0) - FEWER.mean(0)).square().sum() + left.trace() + right.trace() - 2 * roots
    assert fid(*pair) == pytest.approx(float(expected), rel=1e-9)
    assert fid(*pair) == pytest.approx(scipys_fid(*pair), rel=1e-3)
    assert fid(*pair) == pytest.approx(fid(*(side.flip(0) for side in reversed(pair))), rel=1e-12)


def kernel(x, y):
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def loop_kid(real, generated):
    real, generated = real.tolist(), generated.tolist()
    own = [kernel(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j]
    theirs = [kernel(a, b) for i, a in enumerate(generated) for j, b in enumerate(generated) if i != j]
    mixed = [kernel(a, b) for a in real for b in generated]
    return sum(own) / len(own) + sum(theirs) / len(theirs) - 2 * sum(mixed) / len(mixed)


@pytest.mark.parametrize("rows", [7, 1024])
def test_kid_is_that_of_a_loop(monkeypatch, rows):
    monkeypatch.setattr(distances, "_ROWS", rows)
    expected = loop_kid(REAL, GENERATED)
    assert kid(REAL, GENERATED) == pytest.approx(expected, rel=1e-9)
    whole = kid(REAL[:30], GENERATED[:30], subset=30, subsets=2)
    assert whole == pytest.approx(loop_kid(REAL[:30], GENERATED[:30]), rel=1e-9)
    drawn = [kid(REAL, GENERATED, subset=20, subsets=3, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    generator = torch.Generator().manual_seed(0)
    subsets = [[side[torch.randperm(len(side), generator=generator)[:20]] for side in (REAL, GENERATED)] for _ in "123"]
    assert drawn[0] == pytest.approx(sum(loop_kid(*pair) for pair in subsets) / 3, rel=1e-9)


def loop_precision_recall(real, generated, k):
    def inside(points, manifold):
        radii = [
            sorted(math.dist(a, b) for j, b in enumerate(manifold) if i != j)[k - 1] for i, a in enumerate(manifold)
        ]
        return sum(any(math.dist(p, m) <= r for m, r in zip(manifold, radii, strict=True)) for p in points) / len(
            points
        )

    real, generated = real.tolist(), generated.tolist()
    return inside(generated, real), inside(real, generated)


@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_a_loop(monkeypatch, k, rows):
    monkeypatch.setattr(distances, "_ROWS", rows)
    real, generated = REAL[:, :3] + 100, GENERATED[:, :3] + 100
    expected = loop_precision_recall(real, generated, k)
    assert min(expected) > 0
    assert max(expected) < 1
    assert precision_recall(real, generated, neighbours=k) == pytest.approx(expected, abs=1e-12)
    assert precision_recall(real, real, neighbours=k) == (1.0, 1.0)
    assert precision_recall(real, generated + 1000, neighbours=k) == (0.0, 0.0)


def test_what_can_not_be_measured():
    damaged = GENERATED.clone()
    damaged[3, 2] = torch.nan
    assert math.isnan(fid(REAL, damaged))
    assert math.isnan(kid(REAL, damaged))
    assert all(math.isnan(value) for value in precision_recall(REAL, damaged))
    with pytest.raises(ValueError, match="At least two"):
        fid(REAL, GENERATED[:1])
    with pytest.raises(ValueError, match="shapes"):
        kid(REAL, GENERATED[:, :4])
    with pytest.raises(ValueError, match="can't be drawn"):
        kid(REAL, GENERATED, subset=41)
    with pytest.raises(ValueError, match="have no 3 neighbours"):
        precision_recall(REAL, GENERATED[:3])


class Features(nn.Module):
    """What torchmetrics takes for an extractor."""

    num_features = 512

    def __init__(self, extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, images):
        return self.extractor.features(images, torch.device("cpu"))


@pytest.fixture(scope="module")
def extractor():
    return Extractor(ExtractorFacts("random:resnet10t", (32, 32)))


@pytest.fixture(scope="module")
def images():
    """Real images, and fake ones."""
    generator = torch.Generator().manual_seed(2)
    real = torch.randint(0, 256, (12, 3, 16, 20), generator=generator).float() / 127.5 - 1
    return real, (0.5 * real.flip(0) + 0.3 * torch.randn(real.shape, generator=generator))


def measured(extractor, real, generated, team=ALONE, order=slice(None)):
    meter = ImageDistances(extractor, team)
    ids = torch.arange(len(real))[order]
    for part in ids.split(5):
        meter.add_real(real[part], part)
        meter.add_generated(generated[part], part)
    return meter.compute()


def test_images_are_measured_as_torchmetrics_does(extractor, images):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    found = measured(extractor, *images)
    assert list(found) == [f"{metric}_{NAME}" for metric in ("minus_fid", "fid", "kid", "precision", "recall")]
    assert ImageDistances.monitor_of(extractor) == next(iter(found))
    others = {
        "fid": FrechetInceptionDistance(Features(extractor), input_img_size=(3, 16, 20)).set_dtype(torch.float64),
        "kid": KernelInceptionDistance(Features(extractor), subsets=1, subset_size=len(images[0])),
    }
    for metric in others.values():
        metric.update(images[0], real=True)
        metric.update(images[1], real=False)
    assert found[f"fid_{NAME}"] == -found[f"minus_fid_{NAME}"]
    assert found[f"fid_{NAME}"] == pytest.approx(float(others["fid"].compute()), rel=1e-3)  # n < d: it takes a root
    assert found[f"kid_{NAME}"] == pytest.approx(float(others["kid"].compute()[0]), abs=2e-6)  # in float32
    assert found[f"kid_{NAME}"] != 0


def test_an_extractor_sees_eight_bits_and_its_own_normalisation(extractor, images):
    real, fake = images
    model = extractor.model
    pixels = ((fake.clamp(-1, 1) + 1) / 2 * 255).round()
    with torch.inference_mode():
        expected = model.module.forward_features(prepare(pixels, model.preprocessing)).mean(dim=(2, 3))
    torch.testing.assert_close(extractor.features(fake, torch.device("cpu")), expected)
    assert model.preprocessing.image_size == (32, 32)
    assert not model.training
    # The same weights for whoever asks.
    torch.testing.assert_close(Extractor(extractor.facts).features(fake, torch.device("cpu")), expected)
    damaged = fake.clone()
    damaged[0, 0, 0, 0] = torch.nan
    assert math.isnan(measured(extractor, real, damaged)[f"fid_{NAME}"])


def test_features_of_real_images_are_computed_once(extractor, images, monkeypatch):
    fresh = Extractor(extractor.facts)
    first = measured(fresh, *images)
    seen = []
    compute = fresh.features
    monkeypatch.setattr(fresh, "features", lambda images, device: seen.append(len(images)) or compute(images, device))
    assert measured(fresh, *images) == pytest.approx(first, rel=1e-6)
    assert sum(seen) == len(images[0])
    assert measured(fresh, images[1], images[0])[f"fid_{NAME}"] == pytest.approx(first[f"fid_{NAME}"], rel=1e-4)


class Half(Team):
    """The first of two processes; the other's images are known."""

    def __init__(self, others):
        super().__init__(0, 2)
        self.others = list(others)

    def gather(self, part):
        return torch.cat([part, self.others.pop(0)])

    def broadcast(self, value):
        return value


def test_processes_and_orders_change_nothing(extractor, images):
    whole = measured(extractor, *images)
    assert measured(extractor, *images, order=torch.arange(11, -1, -1)) == pytest.approx(whole, rel=1e-6)
    share = torch.arange(1, 12, 2)
    device = torch.device("cpu")
    theirs = [extractor.features(side[share], device) for side in images]
    meter = ImageDistances(extractor, Half([theirs[0], share, theirs[1], share]))
    mine = torch.arange(0, 12, 2)
    meter.add_real(images[0][mine], mine)
    meter.add_generated(images[1][mine], mine)
    assert meter.compute() == pytest.approx(whole, rel=1e-6)


def test_names_say_which_model_and_how_large():
    names = {
        ("package:efficientnet_lite0", None): "efficientnet_lite0",
        ("timm:resnet18.a1_in1k", (64, 64)): "resnet18_a1_in1k_64px",
        ("random:timm:resnet18?layers=[1,1,1,1]", (32, 48)): "untrained_resnet18_32x48px",
        ("hf:org/some-vit", None): "some_vit",
        ("/data/runs/mine/", None): "mine",
    }
    assert {facts: Extractor(ExtractorFacts(*facts)).name for facts in names} == names
    with pytest.raises(UserError, match="extractor of features for FID and KID can't be had") as caught:
        _ = Extractor(ExtractorFacts("no_such_model")).model
    assert "--set data.eval_extractor=random:resnet18" in caught.value.hint
    with pytest.raises(UserError, match="1 real and 1 generated"):
        measured(Extractor(ExtractorFacts("random:resnet10t", (32, 32))), *torch.zeros(2, 1, 3, 8, 8))
