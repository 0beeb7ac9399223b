"""Every loss against plain loops over Python floats, with the cases in which it could break."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli import losses

HALF = (torch.float16, torch.bfloat16)


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).to(dtype) for _ in range(2))


def differences(student: Tensor, teacher: Tensor) -> list[float]:
    return [
        s - t for s, t in zip(student.double().flatten().tolist(), teacher.double().flatten().tolist(), strict=True)
    ]


def loop_mse(student, teacher):
    d = differences(student, teacher)
    return sum(x * x for x in d) / len(d)


def loop_smooth_l1(student, teacher, beta=1.0):
    d = [abs(x) for x in differences(student, teacher)]
    return sum(x * x / (2 * beta) if x < beta else x - beta / 2 for x in d) / len(d)


def loop_log_sum(student, teacher, alpha=4.0, eps=1e-5):
    return math.log(sum(abs(x) ** alpha for x in differences(student, teacher)) + eps)


def loop_logit_kd(student, teacher, temperature):
    def log_softmax(row):
        log_total = math.log(sum(math.exp(x / temperature) for x in row))
        return [x / temperature - log_total for x in row]

    total, rows = 0.0, student.double().flatten(end_dim=-2).tolist()
    for s_row, t_row in zip(rows, teacher.double().flatten(end_dim=-2).tolist(), strict=True):
        log_s, log_t = log_softmax(s_row), log_softmax(t_row)
        total += sum(math.exp(t) * (t - s) for s, t in zip(log_s, log_t, strict=True))
    return total / len(rows) * temperature**2


CASES = [
    pytest.param(losses.mse, loop_mse, {}, id="mse"),
    pytest.param(losses.smooth_l1, loop_smooth_l1, {}, id="smooth_l1"),
    pytest.param(losses.smooth_l1, loop_smooth_l1, {"beta": 0.3}, id="smooth_l1-0.3"),
    pytest.param(losses.log_sum, loop_log_sum, {}, id="log_sum"),
    pytest.param(losses.log_sum, loop_log_sum, {"alpha": 0.5}, id="log_sum-0.5"),
    pytest.param(losses.log_sum, loop_log_sum, {"alpha": 2.5, "eps": 0.1}, id="log_sum-2.5"),
    pytest.param(losses.logit_kd, loop_logit_kd, {"temperature": 1.0}, id="logit_kd-1"),
    pytest.param(losses.logit_kd, loop_logit_kd, {"temperature": 4.0}, id="logit_kd-4"),
]


@pytest.mark.parametrize(("loss", "loop", "options"), CASES)
@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (2, 4, 3)])
class TestAgainstLoops:
    def test_value_and_gradient(self, loss, loop, options, shape):
        student, teacher = pair(*shape)
        value = loss(student, teacher, **options)
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(loop(student, teacher, **options), rel=1e-12)
        student.requires_grad_()
        assert torch.autograd.gradcheck(lambda s: loss(s, teacher, **options), (student,))

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision_is_computed_in_float32(self, loss, loop, options, shape, dtype):
        student, teacher = pair(*shape, dtype=dtype)
        expected = pytest.approx(loop(student, teacher, **options), rel=2e-6, abs=1e-6)
        value = loss(student.requires_grad_(), teacher, **options)
        assert value.dtype == torch.float32
        assert value.item() == expected
        value.backward()
        assert student.grad.dtype == dtype
        assert student.grad.isfinite().all()
        with torch.autocast("cpu", torch.bfloat16):
            assert loss(student.detach().float(), teacher.float(), **options).item() == expected


@pytest.mark.parametrize(("loss", "loop", "options"), CASES)
class TestEveryPairLoss:
    def test_equal_inputs_have_zero_gradient(self, loss, loop, options):
        student = pair(3, 4)[0].float().requires_grad_()
        value = loss(student, student.detach().clone(), **options)
        value.backward()
        assert value.item() == pytest.approx(
            math.log(options.get("eps", 1e-5)) if loss is losses.log_sum else 0, abs=1e-6
        )
        torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-6)

    def test_refuses_to_broadcast(self, loss, loop, options):
        student, teacher = pair(3, 4)
        with pytest.raises(ValueError, match=r"same shape, got \(3, 4\) and \(1, 4\)"):
            loss(student, teacher[:1], **options)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (losses.smooth_l1, {"beta": 0.0}),
        (losses.log_sum, {"alpha": -1.0}),
        (losses.log_sum, {"eps": 0.0}),
        (losses.logit_kd, {"temperature": 0.0}),
        (losses.logit_kd, {"temperature": math.nan}),
    ],
)
def test_hyperparameters_must_be_positive(loss, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive"):
        loss(*pair(2, 3), **options)


class TestLogSum:
    def test_large_differences_do_not_overflow(self):
        # Two elements that differ by 1e12: log(2 * 1e48) is far from any float32 limit, 1e48 isn't.
        student = torch.full((1, 2), 1e12, requires_grad=True)
        value = losses.log_sum(student, torch.zeros(1, 2))
        value.backward()
        assert value.item() == pytest.approx(math.log(2) + 4 * math.log(1e12), rel=1e-6)
        # d/dx log(Σ x^4) = 4 x^3 / Σ x^4 = 4 / (2x)
        torch.testing.assert_close(student.grad, torch.full((1, 2), 2e-12), rtol=1e-5, atol=0)

    def test_gradient_does_not_depend_on_the_scale_of_the_difference(self):
        student, teacher = pair(4, 5)
        gradients = []
        for scale in (1.0, 1000.0):
            scaled = (student * scale).requires_grad_()
            losses.log_sum(scaled, teacher * scale).backward()
            gradients.append(scaled.grad * scale)
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


def test_logit_kd_is_asymmetric_with_the_teacher_first():
    # t = (log 3, 0): p = (3/4, 1/4); s = (0, 0): q = (1/2, 1/2). KL(p‖q) = 3/4 log(3/2) + 1/4 log(1/2).
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.logit_kd(student, teacher, temperature=1.0).item() == pytest.approx(expected, rel=1e-6)


def svd_spectral(features: Tensor, kept: int) -> Tensor:
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    return values[kept:].square().sum() / values.square().sum()


class TestSpectralRegularization:
    @pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (2, 5)])
    @pytest.mark.parametrize(
        ("rank", "kept"), [(0.5, lambda k: max(1, round(k / 2))), (1, lambda k: 1), (0.01, lambda k: 1)]
    )
    def test_value_and_gradient_are_those_of_a_full_svd(self, shape, rank, kept):
        features = (pair(*shape, seed=3)[0] + 5).requires_grad_()
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
        features = pair(12, 20, dtype=dtype)[0]
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
