"""Distillation losses as pure functions: student first, teacher second, hyperparameters by keyword, a scalar out.

Half-precision inputs are computed and reduced in float32, also under autocast; float64 stays float64. Gradients flow to
whatever requires them: pass the teacher's tensors without gradient, and not as inference tensors. A shape that doesn't
fit is a ``ValueError``: nothing is broadcast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.normalize import centre, full_precision

# ---- Distances between features -------------------------------------------------------------------------------------


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error, ``mean((s − t)²)`` over all elements. FitNets (Romero et al., ICLR 2015), up to its factor 1/2.

    Args:
        student: features of any shape.
        teacher: features of the same shape.
    """
    student, teacher = _pair(student, teacher)
    return F.mse_loss(student, teacher)


def smooth_l1(student: Tensor, teacher: Tensor, *, beta: float = 1.0) -> Tensor:
    """Smooth L1, the mean over all elements of ``d²/(2β)`` where ``|d| < β`` and ``|d| − β/2`` elsewhere, ``d = s − t``.

    VkD's distance (Miles et al., CVPR 2024, arXiv 2403.06213), with β = 1.

    Args:
        student: features of any shape.
        teacher: features of the same shape.
        beta: where the square turns into the absolute value, in the features' units; positive.
    """
    student, teacher = _pair(student, teacher)
    _require_positive("beta", beta)
    return F.smooth_l1_loss(student, teacher, beta=beta)


def log_sum(student: Tensor, teacher: Tensor, *, alpha: float = 4.0, eps: float = 1e-5) -> Tensor:
    """Log-sum distance, ``log(Σ |s − t|^α + eps)``: one sum over all elements of the batch, one logarithm.

    Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024, with α = 4.
    The reduction, and ``eps`` from its DeiT variant, are those of the authors' code; there both sides are normalised by
    a batch norm without affine parameters first. The logarithm makes the gradient independent of the scale of the
    differences: a mean in place of the sum would only shift the loss. ``eps`` bounds it from below, by ``log(eps)`` at
    ``s = t``, where the gradient is zero. Any finite difference gives a finite loss: the largest one is factored out.

    Args:
        student: features of any shape.
        teacher: features of the same shape.
        alpha: exponent; positive.
        eps: added to the sum; positive.
    """
    student, teacher = _pair(student, teacher)
    _require_positive("alpha", alpha)
    _require_positive("eps", eps)
    difference = (student - teacher).abs()
    scale = difference.detach().amax().clamp_min(1)
    # pow has an infinite slope at zero for alpha < 1: leave those elements out.
    differs = difference != 0
    powers = (torch.where(differs, difference, 1) / scale).pow(alpha) * differs
    return torch.log(powers.sum() + eps * scale.pow(-alpha)) + alpha * scale.log()


# ---- Logits ---------------------------------------------------------------------------------------------------------


def logit_kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Distillation of logits, ``T² · KL(softmax(t/T) ‖ softmax(s/T))``, mean over samples.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; ``T²`` keeps the
    size of the gradient as the temperature changes.

    Args:
        student_logits: ``(..., num_classes)``.
        teacher_logits: the same shape, over the same classes in the same order.
        temperature: ``T``; positive.
    """
    student_logits, teacher_logits = _pair(student_logits, teacher_logits)
    _require_positive("temperature", temperature)
    student_log_probs = F.log_softmax(student_logits / temperature, dim=-1).flatten(end_dim=-2)
    teacher_log_probs = F.log_softmax(teacher_logits / temperature, dim=-1).flatten(end_dim=-2)
    return F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True) * temperature**2


# ---- Without a teacher ----------------------------------------------------------------------------------------------


def spectral_regularization(features: Tensor, *, rank: float) -> Tensor:
    """Share of the features' energy outside their leading directions, ``Σ_{i>r} σ_i² / Σ_i σ_i²``, in [0, 1].

    ``σ_i`` are the singular values of the features centred over the batch, ``Z̃``. The idea is Learning to Project's
    (BMVC 2024, arXiv 2403.14494); the exact form and the choice of ``r`` are ours. The numerator is
    ``‖Z̃ (I − V_r V_rᵀ)‖_F²`` with ``V_r`` held fixed: by the envelope theorem the gradient is that of the sum above where
    ``σ_r > σ_{r+1}``, and it is always finite. ``V_r`` (or ``U_r``, in ``‖(I − U_r U_rᵀ) Z̃‖_F²``) comes from the smaller
    of the two Gram matrices. Constant features, one sample among them, give 0 with zero gradient.

    Args:
        features: ``(B, d)``.
        rank: ``r``, the number of directions that aren't suppressed: an ``int`` of at least 1, or a ``float`` in (0, 1),
            the fraction of ``min(B, d)``, rounded, at least 1.
    """
    if features.ndim != 2:
        raise ValueError(f"Features must have the shape (batch, channels), got {tuple(features.shape)}.")
    if not (rank >= 1 if isinstance(rank, int) else 0 < rank < 1):
        raise ValueError(f"rank must be an int of at least 1 or a float in (0, 1), got {rank!r}.")
    smaller = min(features.shape)
    kept = min(rank if isinstance(rank, int) else max(1, round(rank * smaller)), smaller)
    with torch.autocast(features.device.type, enabled=False):
        centred = centre(full_precision(features))
        rows = centred if len(centred) == smaller else centred.T  # (min(B, d), max(B, d))
        basis = _leading_eigenvectors(rows.detach() @ rows.detach().T, kept)
        residual = rows - basis @ (basis.T @ rows)
        energy = centred.square().sum()
        # The comparison is false for NaN, which thus reaches the loss.
        vanishes = energy <= 0
        return torch.where(vanishes, 0 * energy, residual.square().sum() / torch.where(vanishes, 1, energy))


# ---- Shared ---------------------------------------------------------------------------------------------------------


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in full precision; raise ``ValueError`` where their shapes differ."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    return full_precision(student), full_precision(teacher)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}.")


def _leading_eigenvectors(gram: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading eigenvectors of ``gram`` ``(k, k)`` as columns; of something finite where it isn't."""
    return torch.linalg.eigh(torch.nan_to_num(gram, nan=0.0, posinf=0.0, neginf=0.0)).eigenvectors[:, -count:]
