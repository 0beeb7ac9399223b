"""The retraction against the polar factor of a float64 SVD, from nearly orthonormal to singular."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.projectors.stiefel import (
    FIXED_CONDITION,
    _symmetric_product,
    orthogonality_error,
    retract_,
    retract_adaptive_,
    retract_fixed_,
)

SHAPES = [(24, 96), (96, 24), (32, 32), (1, 7), (7, 1)]


def with_spectrum(shape: tuple[int, int], values: Tensor, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(d, len(values), generator=generator, dtype=torch.float64))[0] for d in shape)
    return (u * values) @ v.T


def conditioned(shape: tuple[int, int], condition: float) -> Tensor:
    return 2 * with_spectrum(shape, torch.logspace(0, -math.log10(condition), min(shape), dtype=torch.float64))


def polar_factor(matrix: Tensor) -> Tensor:
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vt


def exact_error(matrix: Tensor) -> float:
    matrix = matrix.double()
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return max(abs(x - (i == j)) for i, row in enumerate(gram.tolist()) for j, x in enumerate(row))


@pytest.mark.parametrize("shape", SHAPES)
class TestPolarFactor:
    @pytest.mark.parametrize("condition", [1.001, 1.3, 2.0, 30.0, 1e5])
    def test_adaptive(self, shape, condition):
        matrix = conditioned(shape, condition).float()
        actual = retract_adaptive_(matrix.clone())
        assert exact_error(actual) <= 2e-6
        torch.testing.assert_close(actual.double(), polar_factor(matrix), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("distance", [0.0, 1e-4, 0.1, 0.2, 0.4, 0.44])
    def test_adaptive_near_the_manifold(self, shape, distance):
        # Singular values within `distance` of 1 on both sides: the branches of Newton-Schulz, with and without polish.
        values = torch.linspace(1 - distance, 1 + distance / 2, min(shape), dtype=torch.float64)
        matrix = with_spectrum(shape, values).float()
        actual = retract_adaptive_(matrix.clone())
        assert exact_error(actual) <= 2e-6
        torch.testing.assert_close(actual.double(), polar_factor(matrix), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("condition", [1.001, 1.3, 10.0, FIXED_CONDITION])
    @pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
    def test_fixed(self, shape, condition, scale):
        matrix = conditioned(shape, condition).float()
        actual = retract_fixed_(matrix * scale)
        assert exact_error(actual) <= 2e-6
        torch.testing.assert_close(actual.double(), polar_factor(matrix), rtol=0, atol=1e-5 * condition)

    @pytest.mark.parametrize("retract", [retract_adaptive_, retract_fixed_])
    def test_float64_stays_float64(self, shape, retract):
        matrix = conditioned(shape, 1.01)
        actual = retract(matrix.clone())
        assert actual.dtype == torch.float64
        assert exact_error(actual) <= 1e-12
        torch.testing.assert_close(actual, polar_factor(matrix), rtol=0, atol=1e-10)


def test_is_in_place_and_autograd_does_not_see_it():
    parameter = torch.nn.Parameter(torch.randn(4, 9))
    assert retract_(parameter) is parameter
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert exact_error(parameter.detach()) <= 1e-6


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(5, 9),
        torch.zeros(4, 4),
        torch.ones(4, 6),
        torch.randn(6, 2) @ torch.randn(2, 8),
        torch.eye(5, 7).index_fill(0, torch.tensor(2), 0.0),
        torch.eye(4).index_fill(0, torch.tensor([0, 3]), 0.0),
        conditioned((8, 12), 1e6).float(),
        conditioned((8, 12), 1e9).float(),
        torch.randn(8, 16) * 1e30,
        torch.randn(8, 16) * 1e-30,
    ],
)
def test_singular_and_extreme_matrices_end_orthonormal(matrix, transpose):
    matrix = matrix.T if transpose else matrix
    first, second = retract_(matrix.clone()), retract_(matrix.clone())
    assert exact_error(first) <= 1e-6
    assert torch.equal(first, second)


def test_completion_keeps_what_is_there():
    # Rank 3 of 6: on its row space the result must agree with U Vᵀ of the three directions.
    matrix = with_spectrum((6, 10), torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    actual = retract_(matrix.clone())
    torch.testing.assert_close(u[:, :3].T @ actual, vt[:3], rtol=0, atol=1e-9)
    assert exact_error(actual) <= 1e-9


def test_fixed_is_bounded_for_singular_matrices():
    for matrix in (torch.zeros(5, 9), torch.ones(40, 60), torch.randn(6, 2) @ torch.randn(2, 8)):
        actual = retract_fixed_(matrix.clone())
        assert actual.isfinite().all()
        assert orthogonality_error(actual) <= 1.01


@pytest.mark.parametrize("retract", [retract_adaptive_, retract_fixed_])
def test_huge_step(retract):
    # A first AdamW step moves every element by the learning rate: enough to leave Newton-Schulz's region here.
    torch.manual_seed(0)
    matrix = torch.nn.init.orthogonal_(torch.empty(128, 160))
    matrix -= 2e-2 * torch.sign(torch.randn(128, 2) @ torch.randn(2, 160))
    assert torch.linalg.matrix_norm(matrix @ matrix.T - torch.eye(128), ord=2) > 1
    polar = polar_factor(matrix)
    assert exact_error(retract(matrix)) <= 2e-6
    torch.testing.assert_close(matrix.double(), polar, rtol=0, atol=1e-4)


@pytest.mark.parametrize("retract", [retract_adaptive_, retract_fixed_])
def test_neither_autocast_nor_low_precision_products_matter(retract):
    matrix = conditioned((24, 96), 1.2).float()
    expected = retract(matrix.clone())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            actual = retract(matrix.clone())
            assert orthogonality_error(actual) <= 1e-6
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(actual, expected)


def test_half_precision_is_rounded_once():
    matrix = conditioned((8, 20), 1.2).bfloat16()
    expected = retract_(matrix.float()).bfloat16()
    assert torch.equal(retract_(matrix), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_matrices_do_not_raise(value):
    matrix = torch.eye(3, 5)
    matrix[1, 1] = value
    torch.testing.assert_close(retract_adaptive_(matrix.clone()), matrix, rtol=0, atol=0, equal_nan=True)
    assert not retract_fixed_(matrix).isfinite().all()


@pytest.mark.parametrize("matrix", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(2, 2, dtype=torch.int64)])
def test_refuses_what_is_no_matrix(matrix):
    with pytest.raises(ValueError, match="floating-point matrix"):
        retract_(matrix)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonality_error(shape):
    matrix = conditioned(shape, 3.0)
    assert orthogonality_error(matrix).item() == pytest.approx(exact_error(matrix), rel=1e-12)
    assert orthogonality_error(matrix.float()).dtype == torch.float32


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(96, 160), (40, 24)])
def test_it_stays_on_the_manifold_over_long_walks(shape, rate):
    """Steps as Adam's are: of one size everywhere, and partly of one sign pattern, which is one large direction."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.nn.init.orthogonal_(torch.empty(shape))
    pattern = torch.outer(*(torch.randn(size, generator=generator) for size in shape)).sign()
    for step in range(60):
        matrix -= rate * (pattern if step % 3 == 0 else torch.randn(shape, generator=generator).sign())
        before = matrix.clone()
        retract_(matrix)
        assert float(orthogonality_error(matrix)) <= 5e-6
        if step % 20 == 0:
            torch.testing.assert_close(matrix.double(), polar_factor(before), rtol=0, atol=5e-6)


def test_symmetric_products_in_blocks_are_the_products():
    left = torch.randn(301, 301, dtype=torch.float64)
    left += left.T.clone()
    square = left @ left
    torch.testing.assert_close(_symmetric_product(left, left), square)
    torch.testing.assert_close(_symmetric_product(square, left), square @ left)
