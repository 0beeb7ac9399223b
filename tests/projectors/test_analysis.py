"""Numbers against loops and numpy's SVD, identities, and values derived by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from kdcli.projectors import spectra as analysis
from kdcli.projectors.similarity import linear_cka


def _orthogonal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(tall).Q
    return q.T.contiguous() if rows < columns else q


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _raise_linalg_error(*_: object, **__: object) -> None:
    raise torch.linalg.LinAlgError("planted")


# --- spectra ---


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_singular_values_match_numpy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = _randn(*shape, dtype=dtype)
    values = analysis.singular_values(matrix.requires_grad_())
    expected = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
    assert values.dtype == torch.float64
    assert not values.requires_grad
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_singular_values_survive_a_failing_svd(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = _randn(*shape) * 1e-170  # the squares would underflow
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)
    monkeypatch.setattr(torch.linalg, "svdvals", _raise_linalg_error)
    np.testing.assert_allclose(analysis.singular_values(matrix).numpy(), expected, rtol=1e-12)
    assert analysis.singular_values(torch.zeros(3, 2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "bad", [torch.zeros(3), torch.zeros(0, 3), torch.full((2, 2), torch.nan), torch.full((2, 2), torch.inf)]
)
def test_singular_values_refuse_what_is_no_finite_matrix(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"non-empty matrix|must be finite"):
        analysis.singular_values(bad)


def test_ranks_by_hand() -> None:
    """s = (2, 1, 1): stable (4+1+1)/4 = 1.5; p = (1/2, 1/4, 1/4), entropy 1.5 log 2, effective 2^1.5."""
    values = [2.0, 1.0, 1.0]
    assert analysis.stable_rank(values) == pytest.approx(1.5, rel=1e-15)
    assert analysis.effective_rank(values) == pytest.approx(2**1.5, rel=1e-14)
    assert analysis.numerical_rank(values, relative_threshold=0.4) == 3
    assert analysis.numerical_rank(values, relative_threshold=0.5) == 1  # strictly above
    assert analysis.numerical_rank([1.0, 0.011, 0.009]) == 2
    assert analysis.numerical_rank([1.0, 0.0], relative_threshold=0.0) == 1


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e200])
def test_ranks_ignore_scale(scale: float) -> None:
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64) * scale
    assert analysis.stable_rank(values) == pytest.approx(1.5, rel=1e-12)
    assert analysis.effective_rank(values) == pytest.approx(2**1.5, rel=1e-12)
    assert analysis.numerical_rank(values) == 3


def test_ranks_of_zero_are_zero() -> None:
    zero = torch.zeros(4)
    assert (analysis.numerical_rank(zero), analysis.stable_rank(zero), analysis.effective_rank(zero)) == (0, 0.0, 0.0)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, math.nan])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="relative_threshold"):
        analysis.numerical_rank([1.0], relative_threshold=threshold)


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, -1.0], [math.nan]])
def test_impossible_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="singular values"):
        analysis.stable_rank(values)


def test_rank_evolution_has_one_entry_a_step() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1e-5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    ranks = analysis.rank_evolution(values)
    assert ranks["numerical"] == [3, 2, 1, 0]
    assert ranks["stable"] == pytest.approx([3, 2, 1, 0], abs=1e-9)
    assert ranks["effective"] == pytest.approx([3, 2, 1, 0], abs=1e-3)
    json.dumps(ranks, allow_nan=False)


@pytest.mark.parametrize("shape", [(4, 11), (11, 4), (6, 6)])
def test_summary_of_an_orthogonal_projector(shape: tuple[int, int]) -> None:
    summary = analysis.summarize(_orthogonal(*shape))
    r = min(shape)
    assert summary.shape == shape
    assert summary.rank == r
    assert summary.stable_rank == pytest.approx(r, rel=1e-12)
    assert summary.effective_rank == pytest.approx(r, rel=1e-12)
    assert summary.condition_number == pytest.approx(1.0, rel=1e-12)
    assert summary.orthogonality_error < 1e-14


def test_summary_by_hand() -> None:
    """P = [[2, 0, 0], [0, 1, 0]]: P Pᵀ − I = diag(3, 0); for its transpose Pᵀ P is the same."""
    matrix = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for summary in (analysis.summarize(matrix), analysis.summarize(matrix.T)):
        assert (summary.largest, summary.smallest, summary.condition_number) == (2.0, 1.0, 2.0)
        assert summary.orthogonality_error == 3.0
        assert summary.stable_rank == 1.25


def test_orthogonality_error_sees_the_off_diagonal() -> None:
    matrix = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    assert analysis.orthogonality_error(matrix) == pytest.approx(0.6, rel=1e-6)
    assert matrix[0, 0] == 1.0  # the input is left alone


@pytest.mark.parametrize("matrix", [torch.zeros(3, 4), torch.ones(3, 4)])
def test_summary_of_a_singular_projector_is_json(matrix: torch.Tensor) -> None:
    summary = analysis.summarize(matrix)
    assert summary.condition_number is None
    assert summary.rank == int(matrix.any())
    assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["shape"] == [3, 4]


# --- decomposition ---


def _projector(kind: str, a: int, b: int) -> torch.Tensor:
    if kind == "zero":
        return torch.zeros(a, b, dtype=torch.float64)
    if kind == "deficient":
        return _randn(a, 2, seed=3) @ _randn(2, b, seed=4)
    if kind == "orthogonal":
        return _orthogonal(a, b, seed=5)
    if kind == "decaying":
        k = min(a, b)
        decay = torch.logspace(0, -6.5, k, dtype=torch.float64)  # none of them at the threshold
        return _orthogonal(a, k, seed=6) * decay @ _orthogonal(k, b, seed=7)
    return _randn(a, b, seed=2)


def _by_loops(x: np.ndarray, y: np.ndarray, p: np.ndarray, threshold: float) -> tuple[float, float, float, int]:
    """Transfer, spectral, dropped energy share and rank by plain loops over numpy's full SVD."""
    u, s, vt = np.linalg.svd(p, full_matrices=True)
    transfer = spectral = dropped = 0.0
    rank = 0
    for i in range(p.shape[1]):
        value = s[i] if i < s.size else 0.0
        kept = value > threshold * s[0]
        rank += int(kept)
        term = energy = 0.0
        for n in range(x.shape[0]):
            along = float(y[n] @ vt[i])
            mapped = float(value * (x[n] @ u[:, i])) if i < s.size else 0.0
            term += (along - mapped) ** 2
            energy += along**2
        transfer, spectral = (transfer + term, spectral) if kept else (transfer, spectral + term)
        dropped += 0.0 if kept else energy
    return transfer, spectral, dropped / float((y**2).sum()), rank


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
@pytest.mark.parametrize("kind", ["random", "deficient", "decaying", "zero", "orthogonal"])
@pytest.mark.parametrize("failing_svd", [False, True])
def test_decomposition_matches_loops(
    shape: tuple[int, int], kind: str, failing_svd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = shape
    x, y, p = _randn(13, a, seed=0), _randn(13, b, seed=1), _projector(kind, a, b)
    transfer, spectral, dropped, rank = _by_loops(x.numpy(), y.numpy(), p.numpy(), 1e-3)
    if failing_svd:
        monkeypatch.setattr(torch.linalg, "svd", _raise_linalg_error)
    result = analysis.decompose(x, y, p, relative_threshold=1e-3)

    direct = float(((y - x @ p) ** 2).sum())
    assert result.residual_check < 1e-13
    assert result.total == pytest.approx(direct, rel=1e-13)
    assert sum(result.terms) == pytest.approx(direct, rel=1e-13)
    assert sum(result.target_energy) == pytest.approx(float((y**2).sum()), rel=1e-13)
    assert result.rank == rank
    assert len(result.terms) == len(result.singular_values) == b
    assert result.transfer == pytest.approx(transfer, rel=1e-10, abs=1e-12)
    assert result.spectral == pytest.approx(spectral, rel=1e-10, abs=1e-12)
    assert result.dropped_energy_share == pytest.approx(dropped, rel=1e-10, abs=1e-12)
    assert result.transfer_share + result.spectral_share == pytest.approx(1.0)
    assert result.transfer_per_sample == pytest.approx(transfer / 13, rel=1e-10, abs=1e-12)
    assert result.total_per_sample == pytest.approx(direct / 13, rel=1e-13)


def test_decomposition_by_hand() -> None:
    """P = diag(2, 0), X = (1, 5), Y = (3, 4): (3 − 2·1)² = 1 is transfer, 4² = 16 spectral, 16/25 of the energy."""
    result = analysis.decompose(
        torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 4.0]]), torch.diag(torch.tensor([2.0, 0.0]))
    )
    assert result.transfer == pytest.approx(1.0, rel=1e-14)
    assert result.spectral == pytest.approx(16.0, rel=1e-14)
    assert result.spectral_share == pytest.approx(16 / 17, rel=1e-14)
    assert result.dropped_energy_share == pytest.approx(0.64, rel=1e-14)


def test_zero_projector_leaves_all_energy_to_the_spectral_part() -> None:
    y = _randn(7, 5)
    result = analysis.decompose(_randn(7, 3), y, torch.zeros(3, 5))
    assert (result.rank, result.transfer, result.dropped_energy_share) == (0, 0.0, pytest.approx(1.0))
    assert result.spectral == pytest.approx(float(y.square().sum()), rel=1e-13)


def test_perfect_fit_has_a_meaningful_check() -> None:
    x, p = _randn(20, 6), _randn(6, 4, seed=1)
    result = analysis.decompose(x, x @ p, p)
    assert result.total < 1e-25
    assert result.residual_check < 1e-12


def test_trivial_optimum_is_all_zeros() -> None:
    result = analysis.decompose(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2, 2))
    assert (result.total, result.transfer_share, result.dropped_energy_share, result.residual_check) == (0, 0, 0, 0)


def test_decomposition_adds_up_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, p = _randn(23, 6), _randn(23, 9, seed=1), _randn(6, 9, seed=2)
    whole = analysis.decompose(x, y, p)
    monkeypatch.setattr(analysis, "_ROWS_AT_ONCE", 4)
    assert analysis.decompose(x, y, p).terms == pytest.approx(whole.terms, rel=1e-13)


def test_decomposition_of_half_precision_with_gradients_is_json() -> None:
    x = _randn(10, 4, dtype=torch.bfloat16)
    result = analysis.decompose(
        x, _randn(10, 6, dtype=torch.float16), _randn(4, 6, dtype=torch.float32).requires_grad_()
    )
    assert result.residual_check < 1e-13
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["terms"] == asdict(result)["terms"]


@pytest.mark.parametrize(
    ("source", "target", "matrix"),
    [((4, 3), (5, 2), (3, 2)), ((4, 3), (4, 2), (2, 3)), ((4, 3, 1), (4, 2), (3, 2)), ((0, 3), (0, 2), (3, 2))],
)
def test_decomposition_refuses_shapes_that_do_not_fit(
    source: tuple[int, ...], target: tuple[int, ...], matrix: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="must be"):
        analysis.decompose(torch.zeros(source), torch.zeros(target), torch.zeros(matrix))


# --- CKA ---


def _cka_by_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC with the explicit centring matrix: tr(K H L H) / sqrt(tr(K H K H) tr(L H L H))."""
    n = x.shape[0]
    h = np.eye(n) - 1.0 / n
    k, m = x @ x.T, y @ y.T

    def hsic(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.trace(p @ h @ q @ h))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("n", "a", "b"), [(40, 3, 5), (6, 30, 20), (12, 12, 2), (2, 3, 3)])
def test_cka_matches_kernels_in_both_spaces(n: int, a: int, b: int) -> None:
    x = _randn(n, a) + 3.0
    y = torch.tanh(x[:, : min(a, b)].repeat(1, b)[:, :b]) + 0.3 * _randn(n, b, seed=1)
    value = linear_cka(x, y)
    assert value == pytest.approx(_cka_by_kernels(x.numpy(), y.numpy()), rel=1e-10)
    assert value == pytest.approx(linear_cka(y, x), rel=1e-12)
    assert linear_cka(x, x) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("n", [50, 5])
def test_cka_ignores_rotation_scale_and_offset(n: int) -> None:
    x, y = _randn(n, 6), _randn(n, 4, seed=1)
    expected = linear_cka(x, y)
    assert linear_cka(-1e-6 * x @ _orthogonal(6, 6) + 7.0, 1e5 * y) == pytest.approx(expected, rel=1e-6)
    assert linear_cka(x @ _orthogonal(6, 11), y) == pytest.approx(expected, rel=1e-10)
    assert linear_cka(x @ torch.diag(torch.arange(1.0, 7.0).double()), y) != pytest.approx(expected, rel=1e-3)


def test_cka_by_hand() -> None:
    """x = (1, 0, -1), y = (1, -2, 1) are orthogonal: 0. y = (1, -1, 0): ‖xᵀy‖² = 1, over 2 · 2: 1/4."""
    x = torch.tensor([[1.0], [0.0], [-1.0]])
    assert linear_cka(x, torch.tensor([[1.0], [-2.0], [1.0]])) == pytest.approx(0.0, abs=1e-15)
    assert linear_cka(x, torch.tensor([[1.0], [-1.0], [0.0]])) == pytest.approx(0.25, rel=1e-14)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_cka_of_constant_features_is_zero(constant: float) -> None:
    assert linear_cka(torch.full((7, 3), constant, dtype=torch.float64), _randn(7, 3)) == 0.0
    assert linear_cka(_randn(1, 3), _randn(1, 3)) == 0.0


def test_cka_refuses_other_samples() -> None:
    with pytest.raises(ValueError, match="same samples"):
        linear_cka(torch.zeros(3, 2), torch.zeros(4, 2))
