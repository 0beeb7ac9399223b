"""Spectral regularisation against a full SVD, with the cases in which it could break."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli import losses

HALF = (torch.float16, torch.bfloat16)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2


def svd_spectral(features: Tensor, kept: int) -> Tensor:
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    return values[kept:].square().sum() / values.square().sum()


class TestSpectralRegularization:
    @pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (2, 5)])
    @pytest.mark.parametrize(
        ("rank", "kept"), [(0.5, lambda k: max(1, round(k / 2))), (1, lambda k: 1), (0.01, lambda k: 1)]
    )
    def test_value_and_gradient_are_those_of_a_full_svd(self, shape, rank, kept):
        features = (normal(*shape) + 5).requires_grad_()
        reference = features.detach().clone().requires_grad_()
        value, expected = losses.spectral_regularization(features, rank=rank), svd_spectral(reference, kept(min(shape)))
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)
        value.backward()
        expected.backward()
        torch.testing.assert_close(features.grad, reference.grad, rtol=1e-8, atol=1e-12)

    def test_known_spectrum(self):
        # Orthogonal centred columns (1, 1, -1, -1) · 3, (1, -1, 1, -1) · 2 and (1, -1, -1, 1): energies 36, 16 and 4.
        signs = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]).T
        features = signs * torch.tensor([3.0, 2.0, 1.0]) + 10
        assert losses.spectral_regularization(features, rank=1).item() == pytest.approx(20 / 56, rel=1e-6)
        assert losses.spectral_regularization(features, rank=2).item() == pytest.approx(4 / 56, rel=1e-6)
        assert losses.spectral_regularization(features, rank=3).item() == pytest.approx(0, abs=1e-6)
        assert losses.spectral_regularization(features, rank=99).item() == pytest.approx(0, abs=1e-6)

    def test_gradient_is_finite_where_singular_values_repeat(self):
        features = torch.cat([torch.eye(4), -torch.eye(4)]).requires_grad_()
        value = losses.spectral_regularization(features, rank=0.5)
        value.backward()
        assert value.item() == pytest.approx(0.5, rel=1e-6)
        assert features.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, *HALF])
    @pytest.mark.parametrize(
        "features", [torch.randn(1, 8), torch.full((6, 4), 0.1), torch.full((4, 6), 1e4), torch.zeros(3, 3)]
    )
    def test_nothing_to_suppress(self, features, dtype):
        features = features.detach().clone().to(dtype).requires_grad_()
        value = losses.spectral_regularization(features, rank=0.5)
        value.backward()
        assert value.item() == 0
        assert torch.equal(features.grad, torch.zeros_like(features))

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision_is_computed_in_float32(self, dtype):
        features = normal(12, 20).to(dtype)
        expected = pytest.approx(svd_spectral(features.double(), 6).item(), rel=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            value = losses.spectral_regularization(features, rank=0.5)
        assert value.dtype == torch.float32
        assert value.item() == expected

    def test_non_finite_features_reach_the_loss(self):
        assert losses.spectral_regularization(torch.tensor([[1.0, math.nan], [0.0, 1.0]]), rank=1).isnan()

    @pytest.mark.parametrize("rank", [0, -1, 0.0, 1.0, 1.5, math.nan])
    def test_rank_must_be_a_count_or_a_fraction(self, rank):
        with pytest.raises(ValueError, match="rank must be"):
            losses.spectral_regularization(torch.randn(3, 3), rank=rank)

    def test_features_must_be_a_matrix(self):
        with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
            losses.spectral_regularization(torch.randn(2, 3, 4), rank=1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("residual.square().sum() / torch", "residual.square().mean() / torch"),
        ("rows - basis @ (basis.T @ rows)", "basis @ (basis.T @ rows)"),
        ("centre(full_precision(features))", "full_precision(features)"),
        ("round(rank * smaller)", "round(rank * smaller) + 1"),
    ],
)
def test_mutants_differ_from_the_svd(old, new, check_mutant):
    def reference(features, rank):
        return svd_spectral(features, round(rank * min(features.shape))).item()

    check_mutant(
        losses.spectral_regularization,
        reference,
        (normal(9, 6) + 1,),
        {"rank": 0.5},
        "spectral_regularization",
        old,
        new,
    )
