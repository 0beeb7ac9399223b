"""Normalisations against plain loops, and where a batch has too little in it."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from kdcli.base.names import NormalizeName
from kdcli.losses.normalize import enlarged, layer_norm, normalizer, standardize, whiten

HALF = (torch.float16, torch.bfloat16)


def features_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) @ mixing + 3


def normalised(values: list[float], *, eps: float) -> list[float]:
    mean = sum(values) / len(values)
    variance = sum((x - mean) ** 2 for x in values) / len(values)
    return [(x - mean) / math.sqrt(variance + eps) for x in values]


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (4,)])
def test_layer_norm_is_per_sample(shape):
    features = features_of(*shape)
    expected = [normalised(row, eps=1e-5) for row in features.view(-1, shape[-1]).tolist()]
    torch.testing.assert_close(layer_norm(features).view(-1, shape[-1]), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_standardize_is_per_channel_over_all_leading_dimensions(shape):
    features = features_of(*shape)
    expected = [normalised(column, eps=0) for column in features.view(-1, shape[-1]).T.tolist()]
    actual = standardize(features)
    assert actual.shape == shape
    torch.testing.assert_close(actual.view(-1, shape[-1]).T, torch.tensor(expected, dtype=torch.float64))


def test_standardize_gives_zeros_for_constant_channels():
    # 1000.1 isn't a float32: a mean that is rounded would leave something behind, and eps would blow it up.
    features = torch.randn(64, 3)
    features[:, 1] = 1000.1
    features.requires_grad_()
    actual = standardize(features)
    assert torch.equal(actual[:, 1], torch.zeros(64))
    torch.testing.assert_close(actual[:, [0, 2]].var(dim=0, correction=0), torch.ones(2))
    (actual * torch.randn(64, 3)).sum().backward()
    assert features.grad.isfinite().all()
    assert not features.grad[:, 1].any()
    assert features.grad[:, [0, 2]].all()


class TestWhiten:
    @pytest.mark.parametrize("shape", [(40, 6), (5, 8, 6)])
    def test_zero_mean_and_identity_covariance(self, shape):
        actual = whiten(features_of(*shape), eps=1e-12)
        assert actual.shape == shape
        actual = actual.view(-1, 6)
        torch.testing.assert_close(actual.mean(dim=0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            actual.T @ actual / len(actual), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9
        )

    def test_is_zca(self):
        # Of all whitenings, ZCA's is the symmetric one: Z (ZᵀZ/N)^(-1/2), here by SVD, Z = U S Vᵀ -> √N U Vᵀ.
        features = features_of(30, 5)
        u, _, vt = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
        torch.testing.assert_close(whiten(features, eps=1e-12), 30**0.5 * u @ vt, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("shape", [(4, 9), (6, 6), (9, 4), (2, 5)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_only_directions_with_energy_are_whitened(self, shape, dtype):
        features = features_of(*shape).to(dtype)
        features[:, -1] = features[:, 0]  # a channel that says nothing new
        actual = whiten(features).double()
        variances = torch.linalg.svdvals(actual).square() / len(features)
        rank = min(shape[0] - 1, shape[1] - 1)
        expected = torch.tensor([1.0] * rank + [0.0] * (min(shape) - rank), dtype=torch.float64)
        torch.testing.assert_close(variances, expected, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-9)
        torch.testing.assert_close(actual[:, -1], actual[:, 0], rtol=0, atol=1e-3)

    @pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
    def test_does_not_depend_on_the_scale(self, scale):
        features = features_of(20, 4).float()
        torch.testing.assert_close(whiten(features * scale), whiten(features), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
    def test_gradient(self, shape):
        # Rank-deficient in every case but the first: perturbations leave the dropped direction of constants dropped.
        features = features_of(*shape, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(whiten, (features,), atol=1e-5, rtol=1e-4)

    def test_gradient_is_finite_where_eigenvalues_repeat(self):
        features = torch.cat([torch.eye(4), -torch.eye(4)]).requires_grad_()
        (whiten(features) * torch.arange(32.0).view(8, 4)).sum().backward()
        assert features.grad.isfinite().all()


@pytest.mark.parametrize("name", get_args(NormalizeName))
class TestEveryNormalizer:
    @pytest.mark.parametrize(
        "features", [torch.zeros(6, 4), torch.full((6, 4), 0.1), torch.full((3, 6), -1e4), torch.randn(1, 5)]
    )
    def test_degenerate_batches_stay_finite(self, name, features):
        features = features.clone().requires_grad_()
        actual = normalizer(name)(features)
        actual.square().sum().backward()
        assert actual.shape == features.shape
        assert actual.isfinite().all()
        assert features.grad.isfinite().all()
        if name in ("standardize", "whiten"):
            assert torch.equal(actual, torch.zeros_like(actual))

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision_is_computed_in_float32(self, name, dtype):
        features = (features_of(64, 6) + 30).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            actual = normalizer(name)(features)
        assert actual.dtype == (dtype if name == "none" else torch.float32)
        torch.testing.assert_close(actual.double(), normalizer(name)(features.double()), rtol=1e-3, atol=1e-3)

    def test_non_finite_features_do_not_raise(self, name):
        features = torch.randn(5, 3)
        features[2, 1] = math.inf
        assert not normalizer(name)(features).isfinite().all()


def test_none_is_the_identity():
    features = torch.randn(3, 2)
    assert normalizer("none")(features) is features


def test_unknown_name():
    with pytest.raises(ValueError, match="'batchnorm'; valid are none, layer_norm, standardize, whiten"):
        normalizer("batchnorm")  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [-40, -30, -20, -12])
@pytest.mark.parametrize("name", ["layer_norm", "standardize", "whiten"])
def test_features_however_small_are_normalised(name, power):
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    normalize = normalizer(name)
    expected = normalize(features)
    torch.testing.assert_close(normalize(enlarged(features * 2.0**power)), expected, rtol=1e-3, atol=1e-3)
    assert float(expected.square().mean()) == pytest.approx(1, abs=0.05)


def test_features_that_are_large_enough_stay_to_the_bit():
    features = torch.tensor([[2.0**-6, 0.0], [-3e-4, 1e-9]])
    assert torch.equal(enlarged(features), features)
    assert torch.equal(enlarged(torch.zeros(3, 2)), torch.zeros(3, 2))
    assert 1 <= float(enlarged(features / 4).abs().max()) < 2
    assert enlarged(torch.tensor([[math.nan, 1e-9]])).isnan()[0, 0]
