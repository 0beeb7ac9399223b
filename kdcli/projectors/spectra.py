"""What a trained projector kept and what it threw away: pure functions, computed in float64 on the CPU.

Notation: a projector ``P`` has shape ``(a, b)`` and maps source features ``X`` ``(N, a)`` onto target features ``Y``
``(N, b)``; its singular values are ``s_1 ≥ s_2 ≥ ...``. Inputs may have any floating dtype and lie on any device.
Every result is a plain number, a list, a dictionary or a dataclass of these, ready for JSON, except
``singular_values``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

DEFAULT_RELATIVE_THRESHOLD = 1e-2
"""A singular value counts to the numerical rank when it exceeds this fraction of the largest one.

The choice is ours. The usual default of ``matrix_rank``, ``max(a, b) * eps``, detects exact deficiency up to rounding,
which an optimiser never produces: minibatch noise and steps of a finite size keep the values of a discarded direction
on a floor. In small trainings of inverted projectors (96 to 48, AdamW and SGD) two directions stood far above that
floor: at 1e-4 all 48 counted, at 1e-3 still 33 to 44, at 1e-2 5 to 20. A direction at 1e-2 carries 1e-4 of the energy
of the leading one. Values near the threshold are noise as likely as signal, so read the rank beside the stable and the
effective rank, which need no threshold.
"""

_ROWS_AT_ONCE = 8192
_EPS = torch.finfo(torch.float64).eps


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def as_matrix(tensor: Tensor, name: str) -> Tensor:
    """Return ``tensor`` as a finite, non-empty float64 matrix on the CPU, or raise ``ValueError``."""
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise ValueError(f"{name} must be a non-empty matrix, got shape {tuple(tensor.shape)}")
    matrix = _float64(tensor)
    num_bad = int((~torch.isfinite(matrix)).sum())
    if num_bad:
        raise ValueError(f"{name} must be finite, got {num_bad} of {matrix.numel()} values that are NaN or infinite")
    return matrix


def _as_values(values: Tensor | Sequence[float]) -> Tensor:
    """Return singular values ``(k,)`` in float64, or raise ``ValueError`` when they can't be singular values."""
    vector = _float64(torch.as_tensor(values))
    if vector.ndim != 1 or vector.numel() == 0:
        raise ValueError(f"singular values must be a non-empty vector, got shape {tuple(vector.shape)}")
    if not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
        raise ValueError("singular values must be finite and not negative")
    return vector


def _check_threshold(relative_threshold: float) -> None:
    if not 0.0 <= relative_threshold < 1.0:
        raise ValueError(f"relative_threshold must be at least 0 and below 1, got {relative_threshold}")


# --- spectra ---------------------------------------------------------------------------------------------------------


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of ``matrix`` ``(a, b)``: ``(min(a, b),)``, float64, descending.

    LAPACK's divide and conquer can fail to converge on repeated singular values, which is just what an orthogonal
    projector has. Then they are the roots of the eigenvalues of the smaller Gram matrix; there, values below about 1e-8
    of the largest are lost in rounding.

    Raises:
        ValueError: ``matrix`` isn't a finite, non-empty matrix.
    """
    matrix = as_matrix(matrix, "matrix")
    try:
        return torch.linalg.svdvals(matrix)
    except torch.linalg.LinAlgError:
        return _singular_values_by_gram(matrix)


def _singular_values_by_gram(matrix: Tensor) -> Tensor:
    scale = float(matrix.abs().max()) or 1.0
    matrix = matrix / scale
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return scale * torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()


def numerical_rank(values: Tensor | Sequence[float], *, relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD) -> int:
    """Number of singular values ``s_i > relative_threshold * s_1``; 0 when all are zero.

    Args:
        values: singular values ``(k,)``, in any order.
        relative_threshold: in ``[0, 1)``; see ``DEFAULT_RELATIVE_THRESHOLD`` for why it isn't a multiple of eps.
    """
    _check_threshold(relative_threshold)
    vector = _as_values(values)
    return int((vector > relative_threshold * vector.max()).sum())


def stable_rank(values: Tensor | Sequence[float]) -> float:
    """``‖P‖_F² / ‖P‖_2² = Σ s_i² / s_1²`` of singular values ``(k,)``: in ``[1, k]``; 0 when all are zero.

    Rudelson & Vershynin, "Sampling from large matrices", 2007.
    """
    vector = _as_values(values)
    largest = vector.max()
    return float((vector / largest).square().sum()) if largest > 0 else 0.0


def effective_rank(values: Tensor | Sequence[float]) -> float:
    """``exp(-Σ p_i log p_i)`` with ``p_i = s_i / Σ_j s_j``, of values ``(k,)``: in ``[1, k]``; 0 when all are zero.

    Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
    """
    vector = _as_values(values)
    largest = vector.max()
    if largest <= 0:
        return 0.0
    shares = vector / largest
    shares = shares / shares.sum()
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def rank_evolution(
    values: Iterable[Tensor | Sequence[float]], *, relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD
) -> dict[str, list[float]]:
    """The three ranks of every recorded spectrum: ``{"numerical": [...], "effective": [...], "stable": [...]}``.

    Args:
        values: ``(T, k)``: one spectrum for each recorded step.
        relative_threshold: of the numerical rank.
    """
    spectra = list(values)
    return {
        "numerical": [float(numerical_rank(s, relative_threshold=relative_threshold)) for s in spectra],
        "effective": [effective_rank(s) for s in spectra],
        "stable": [stable_rank(s) for s in spectra],
    }


@dataclass(frozen=True)
class SpectrumSummary:
    """The spectrum of one projector in a few numbers.

    ``condition_number`` is ``largest / smallest``, and None when that isn't a finite number in float64 (singular
    matrix). ``orthogonality_error`` is the largest absolute entry of ``P Pᵀ − I`` (``Pᵀ P − I`` when ``a > b``).
    """

    shape: tuple[int, int]
    rank: int
    relative_threshold: float
    stable_rank: float
    effective_rank: float
    largest: float
    smallest: float
    condition_number: float | None
    orthogonality_error: float

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain numbers and lists."""
        return {**asdict(self), "shape": list(self.shape)}


def orthogonality_error(matrix: Tensor) -> float:
    """Largest absolute entry of ``P Pᵀ − I`` for ``P`` ``(a, b)``; of ``Pᵀ P − I`` when ``a > b``."""
    matrix = as_matrix(matrix, "matrix")
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    gram.diagonal().sub_(1.0)
    return float(gram.abs().max())


def summarize(matrix: Tensor, *, relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD) -> SpectrumSummary:
    """Summarise the spectrum of a projector ``(a, b)``; raises ``ValueError`` when it isn't finite."""
    values = singular_values(matrix)
    largest, smallest = float(values[0]), float(values[-1])
    deficient = smallest <= max(matrix.shape) * _EPS * largest
    return SpectrumSummary(
        shape=(matrix.shape[0], matrix.shape[1]),
        rank=numerical_rank(values, relative_threshold=relative_threshold),
        relative_threshold=relative_threshold,
        stable_rank=stable_rank(values),
        effective_rank=effective_rank(values),
        largest=largest,
        smallest=smallest,
        condition_number=None if deficient else largest / smallest,
        orthogonality_error=orthogonality_error(matrix),
    )


# --- decomposition of the projection loss ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Decomposition:
    """``‖Y − X P‖_F²`` split over the right singular directions ``v_i`` of ``P``; see ``decompose``.

    Lists have one entry for each of the ``b`` directions, by descending singular value, zero-padded where ``a < b``.
    Sums run over all samples; ``*_per_sample`` are divided by ``num_samples``, ``*share`` by ``total`` (0 when that is
    0).
    """

    shape: tuple[int, int]
    num_samples: int
    rank: int
    relative_threshold: float
    singular_values: list[float]
    terms: list[float]
    """``‖Y v_i − s_i X u_i‖²``."""
    target_energy: list[float]
    """``‖Y v_i‖²``: they sum to ``‖Y‖_F²``."""
    transfer: float
    """Sum of the terms ``i ≤ rank``."""
    spectral: float
    """Sum of the terms ``i > rank``."""
    total: float
    transfer_share: float
    spectral_share: float
    transfer_per_sample: float
    spectral_per_sample: float
    total_per_sample: float
    dropped_energy_share: float
    """Share of ``‖Y‖_F²`` along the directions ``i > rank``."""
    residual_check: float
    """Relative difference between ``total`` and ``‖Y − X P‖_F²`` computed directly: rounding, if all is right."""

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain numbers and lists."""
        return {**asdict(self), "shape": list(self.shape)}


def _right_basis(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``P V = U S`` ``(a, b)``, singular values ``(b,)`` padded by zeros, and orthonormal ``V`` ``(b, b)``."""
    num_rows, num_columns = matrix.shape
    try:
        # Only a wide matrix needs completing; a tall one has all of V in its thin SVD and would get a huge U.
        left, values, right = torch.linalg.svd(matrix, full_matrices=num_rows < num_columns)
    except torch.linalg.LinAlgError:
        return _right_basis_by_gram(matrix)
    padding = num_columns - values.numel()
    return (
        torch.nn.functional.pad(left * values, (0, padding)),
        torch.nn.functional.pad(values, (0, padding)),
        right.mH,
    )


def _right_basis_by_gram(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``_right_basis`` does from the eigenvectors of ``Pᵀ P``: a complete orthonormal basis."""
    scaled = matrix / (float(matrix.abs().max()) or 1.0)
    basis = torch.linalg.eigh(scaled.T @ scaled).eigenvectors
    projected = matrix @ basis
    values, order = projected.norm(dim=0).sort(descending=True)
    return projected[:, order], values, basis[:, order]


def decompose(
    source: Tensor, target: Tensor, matrix: Tensor, *, relative_threshold: float = DEFAULT_RELATIVE_THRESHOLD
) -> Decomposition:
    """Split the projection loss into what is transferred and what only shapes the target's spectrum.

    With the SVD ``P = U S Vᵀ``, ``V`` completed to an orthonormal basis of the target space when ``a < b``, and ``r``
    the numerical rank of ``P``::

        ‖Y − X P‖_F² = Σ_{i≤r} ‖Y v_i − s_i X u_i‖²   knowledge transfer
                     + Σ_{i>r} ‖Y v_i − s_i X u_i‖²   spectral part

    exactly, since ``V`` is orthogonal and ``X P v_i = s_i X u_i``. After "Learning to Project for Cross-Task Knowledge
    Distillation" (BMVC 2024, arXiv 2403.14494); the exact form with the numerical rank is ours.

    What the parts mean depends on which side the projector acts:

    - Inverted projector: source = normalised teacher features, target = student features. Transfer is the mismatch
      along student directions that still receive something from the teacher. The spectral part tends to the student's
      own energy along directions that ``P`` dropped: minimising it suppresses them, with or without a teacher.
    - Student to teacher (linear, orthogonal): source = student features, target = normalised teacher features. Transfer
      is the mismatch along teacher directions that the student can reach. The spectral part tends to the teacher's
      energy outside that range: the student's features can't lower it while ``P`` stays, so it is a floor of the loss.

    Args:
        source: ``X`` ``(N, a)``, what the projector is applied to.
        target: ``Y`` ``(N, b)``.
        matrix: ``P`` ``(a, b)``, applied as ``X @ P``; a layer that stores ``(b, a)`` has to be transposed.
        relative_threshold: of the numerical rank, in ``[0, 1)``.

    Raises:
        ValueError: shapes don't fit, or a value isn't finite.
    """
    _check_threshold(relative_threshold)
    matrix = as_matrix(matrix, "matrix")
    num_rows, num_columns = matrix.shape
    if source.ndim != 2 or target.ndim != 2 or source.shape[0] != target.shape[0]:
        raise ValueError(
            "source and target must be (N, a) and (N, b) over the same samples, "
            f"got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    if (source.shape[1], target.shape[1]) != (num_rows, num_columns):
        raise ValueError(
            f"matrix must be (a, b) = ({source.shape[1]}, {target.shape[1]}) for source {tuple(source.shape)} and "
            f"target {tuple(target.shape)}, got {(num_rows, num_columns)}"
        )
    scaled_left, values, basis = _right_basis(matrix)
    rank = numerical_rank(values, relative_threshold=relative_threshold)

    terms, energy = torch.zeros_like(values), torch.zeros_like(values)
    direct = 0.0
    for source_rows, target_rows in zip(source.split(_ROWS_AT_ONCE), target.split(_ROWS_AT_ONCE), strict=True):
        x, y = as_matrix(source_rows, "source"), as_matrix(target_rows, "target")
        coordinates = y @ basis
        energy += coordinates.square().sum(0)
        terms += (coordinates - x @ scaled_left).square().sum(0)
        direct += float((y - x @ matrix).square().sum())

    transfer, spectral = float(terms[:rank].sum()), float(terms[rank:].sum())
    total, total_energy, num_samples = transfer + spectral, float(energy.sum()), source.shape[0]
    # A perfect fit leaves only the rounding of Y, of which no relative difference can be taken.
    scale = max(direct, _EPS * total_energy)
    return Decomposition(
        shape=(num_rows, num_columns),
        num_samples=num_samples,
        rank=rank,
        relative_threshold=relative_threshold,
        singular_values=values.tolist(),
        terms=terms.tolist(),
        target_energy=energy.tolist(),
        transfer=transfer,
        spectral=spectral,
        total=total,
        transfer_share=share(transfer, total),
        spectral_share=share(spectral, total),
        transfer_per_sample=transfer / num_samples,
        spectral_per_sample=spectral / num_samples,
        total_per_sample=total / num_samples,
        dropped_energy_share=share(float(energy[rank:].sum()), total_energy),
        residual_check=share(abs(total - direct), scale),
    )


def share(part: float, whole: float) -> float:
    """Return ``part / whole``; 0 of nothing."""
    return part / whole if whole > 0 else 0.0
